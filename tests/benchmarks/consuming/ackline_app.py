"""The handlers of the Ackline worker under test."""

from __future__ import annotations

from ackline.consumers import consumer
from tests.benchmarks.consuming.meter import Meter, Placed, Tracked

meter = Meter()


@consumer("bench")
def handle(placed: Placed) -> None:
    """A no-op."""
    meter.handled()


@consumer("bench-async")
async def ahandle(placed: Placed) -> None:
    """A no-op."""
    meter.handled()


@consumer("bench-tracked")
def handle_tracked(placed: Tracked) -> None:
    """A no-op."""
    meter.handled()
