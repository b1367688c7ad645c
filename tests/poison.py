"""An application for tests: handlers that end their process when a message says so, and write down what they handle."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from ackline.consumers import Batch, Context, consumer, exponential
from ackline.producer import message
from tests import notes

APP = "tests.poison"
FOLDER = "ACKLINE_TEST_POISON"

#: Bytes that a greedy message takes at most: a machine on which nobody kills it survives that.
GREED = 1_500_000_000

Deed = Literal[
    "good", "kill", "exit", "greed", "parent", "fails", "slow", "lingers", "tells", "forks", "hangs", "progress"
]


@message("test.poison", track=True)
class Dose(BaseModel):
    """What its handler is to do."""

    number: int
    deed: Deed = "good"


@message("test.poison.async")
class AsyncDose(Dose):
    """For the async handler."""


@message("test.poison.batch")
class BatchDose(Dose):
    """For the batch handler."""


@message("test.poison.limited")
class LimitedDose(Dose):
    """For the handler with a time limit."""


@message("test.poison.answer")
class Answer(BaseModel):
    """What the handler of a good one publishes."""

    number: int


RETRY = exponential(attempts=2, first="1s")


@consumer("taster", retry=RETRY)
def taste(dose: Dose, ctx: Context) -> None:
    _do(dose)
    if dose.deed == "lingers" and ctx.wait(600):
        _write("stopping", dose.number)
    if dose.deed == "progress":
        ctx.progress(0.5, "half of it")
    _write("handled", dose.number)


@consumer("limited-taster", retry=RETRY, time_limit="1s")
def taste_in_time(dose: LimitedDose) -> None:
    _do(dose)


@consumer("async-taster", retry=RETRY)
async def taste_async(dose: AsyncDose, ctx: Context) -> None:
    await asyncio.sleep(0)
    _do(dose)
    ctx.publish(Answer(number=dose.number))
    _write("handled", dose.number)


@consumer("batch-taster", retry=RETRY, batch=Batch(size=10, linger="50ms"))
def taste_batch(doses: list[BatchDose]) -> None:
    for dose in doses:
        _do(dose)
    for dose in doses:
        _write("handled", dose.number)


def _do(dose: Dose) -> None:
    if dose.deed == "good":
        return
    _write("process", os.getpid())
    _write("begun", dose.number)
    match dose.deed:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "greed":
            hoard = []
            for _ in range(GREED // 10_000_000):
                hoard.append(b"x" * 10_000_000)
                time.sleep(0.01)
            time.sleep(600)
        case "parent":
            _kill_the_parent()
        case "fails":
            raise RuntimeError("told to fail")
        case "hangs":
            ctypes.CDLL(None).sleep(600)
        case "forks":
            pid = os.fork()
            if not pid:
                time.sleep(600)
            _write("child", pid)
            os._exit(3)
        case "slow":
            while not (_folder() / "open").exists():
                time.sleep(0.01)


def _kill_the_parent() -> None:
    """End all of `ackline worker`, as the end of its host does; only this process, once that has come twice."""
    if len(begun(_folder(), "begun")) <= 2:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGKILL)


def _folder() -> Path:
    return Path(os.environ[FOLDER])


def _write(event: str, number: int) -> None:
    notes.add(_folder() / event, str(number))


def begun(folder: Path, event: str) -> list[int]:
    """The numbers that were written down for *event*, in order."""
    return list(map(int, notes.read(folder / event)))


def times(folder: Path, event: str) -> Counter[int]:
    """How often each number was."""
    return Counter(begun(folder, event))
