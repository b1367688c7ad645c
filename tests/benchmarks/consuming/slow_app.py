"""Handlers that wait, of the Ackline worker under test."""

from __future__ import annotations

import asyncio
import time

from ackline.consumers import consumer
from tests.benchmarks.consuming.meter import Meter, Placed

#: Seconds of a slow handler, of a quick one beside a stuck one, and of that.
SLOW, QUICK, STUCK = 0.1, 0.01, 60.0
#: The note of a message whose handler is stuck.
STUCK_NOTE = "stuck"

meter = Meter()


@consumer("bench-slow")
def wait(placed: Placed) -> None:
    """Waits as a slow service makes one wait."""
    meter.begun()
    time.sleep(SLOW)
    meter.handled()


@consumer("bench-slow-async")
async def await_(placed: Placed) -> None:
    """Waits as a slow service makes one wait."""
    meter.begun()
    await asyncio.sleep(SLOW)
    meter.handled()


@consumer("bench-stuck")
def wait_or_be_stuck(placed: Placed) -> None:
    """Quick but for one."""
    if placed.note == STUCK_NOTE:
        time.sleep(STUCK)
        return
    meter.begun()
    time.sleep(QUICK)
    meter.handled()


@consumer("bench-stuck-async")
async def await_or_be_stuck(placed: Placed) -> None:
    """Quick but for one."""
    if placed.note == STUCK_NOTE:
        await asyncio.sleep(STUCK)
        return
    meter.begun()
    await asyncio.sleep(QUICK)
    meter.handled()
