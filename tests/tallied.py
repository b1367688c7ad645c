"""An application for tests of faults: notes each message that it handles, and how often the broker counts it."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path

from pydantic import BaseModel

from ackline.consumers import Context, consumer, fixed
from ackline.infra import link
from ackline.producer import message
from tests import notes

APP = "tests.tallied"
FOLDER = "ACKLINE_TEST_TALLIED"
#: Names the seconds between heartbeats, if they are to be others.
HEARTBEAT = "ACKLINE_TEST_TALLIED_HEARTBEAT"
PLAIN, ASYNC, ECHO = "tallied", "tallied-async", "echoed"
CONSUMERS = (PLAIN, ASYNC, ECHO)
#: Of so many messages one fails at first; and one has another published.
FAILING, ECHOED = 25, 10
#: Seconds that a message takes to handle.
WORK = 0.002

if HEARTBEAT in os.environ:
    link.HEARTBEAT = int(os.environ[HEARTBEAT])


@message("test.tallied")
class Tallied(BaseModel):
    number: int


@message("test.tallied.echo")
class Echo(BaseModel):
    number: int


RETRY = fixed(attempts=3, delay="1s")


@consumer(PLAIN, retry=RETRY)
def tally(tallied: Tallied, ctx: Context) -> None:
    time.sleep(WORK)
    if tallied.number % FAILING == 0 and ctx.attempt == 1:
        raise RuntimeError("told to fail at first")
    if tallied.number % ECHOED == 0:
        ctx.publish(Echo(number=tallied.number))
    _note(tallied.number, ctx)


@consumer(ASYNC, retry=RETRY)
async def tally_async(tallied: Tallied, ctx: Context) -> None:
    await asyncio.sleep(WORK)
    _note(tallied.number, ctx)


@consumer(ECHO, retry=RETRY)
def echo(echo: Echo, ctx: Context) -> None:
    _note(echo.number, ctx)


def _note(number: int, ctx: Context) -> None:
    notes.add(Path(os.environ[FOLDER]) / ctx.consumer, f"{number} {ctx.headers.get('x-delivery-count', 0)}")


def handled(folder: Path, consumer: str) -> Counter[int]:
    """How often each number was handled."""
    return Counter(number for number, _ in _notes(folder, consumer))


def highest_count(folder: Path) -> int:
    """The highest `x-delivery-count` of all that was handled."""
    return max((count for consumer in CONSUMERS for _, count in _notes(folder, consumer)), default=0)


def expected(messages: int) -> dict[str, set[int]]:
    """What each consumer has handled when all of so many messages are."""
    everything = set(range(messages))
    return {PLAIN: everything, ASYNC: everything, ECHO: set(range(0, messages, ECHOED))}


def _notes(folder: Path, consumer: str) -> list[tuple[int, int]]:
    return [(int(number), int(count)) for number, count in map(str.split, notes.read(folder / consumer))]
