"""An application for tests: two consumers of one type that write down each message that they handle."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

from pydantic import BaseModel

from ackline.consumers import consumer, exponential
from ackline.producer import message
from tests import notes

FOLDER = "ACKLINE_TEST_COUNTING"
#: Names the delay after which what fails is tried again.
DELAY = "ACKLINE_TEST_COUNTING_DELAY"
CONSUMERS = ("counted", "mirrored")


@message("test.counted")
class Counted(BaseModel):
    """Something to count."""

    number: int
    fails: bool = False


RETRY = exponential(attempts=2, first=os.environ.get(DELAY, "5s"))

#: Seconds that a message takes to handle, so that a kill comes in the middle of work.
WORK = 0.001


def _write(name: str, number: int) -> None:
    time.sleep(WORK)
    notes.add(Path(os.environ[FOLDER]) / name, str(number))


@consumer("counted", retry=RETRY)
def count(counted: Counted) -> None:
    if counted.fails:
        raise RuntimeError("told to fail")
    _write("counted", counted.number)


@consumer("mirrored", retry=RETRY)
def mirror(counted: Counted) -> None:
    if counted.fails:
        raise RuntimeError("told to fail")
    _write("mirrored", counted.number)


def handled(folder: Path, name: str) -> Counter[int]:
    """How often each number was handled by the consumer *name*."""
    return Counter(map(int, notes.read(folder / name)))


def lines(folder: Path, name: str) -> int:
    """How many times the consumer *name* handled anything."""
    return len(notes.read(folder / name))
