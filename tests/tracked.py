"""An application for tests: tracked messages, whose handlers do what the message says."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from ackline.consumers import Context, Reject, RetryLater, consumer, fixed
from ackline.producer import message

FOLDER = "ACKLINE_TEST_TRACKED"

Task = Literal["succeed", "retry once", "wait for an hour", "fail until repaired", "wait for the gate", "tell"]


@message("test.tracked", track=True)
class Tracked(BaseModel):
    """Something for one consumer."""

    task: Task = "succeed"
    #: Name of a file in the test's folder, which repairs what fails, or opens the gate.
    file: str = ""


@message("test.tracked.both", track=True)
class TrackedBoth(BaseModel):
    """Something for two consumers, of which only the second does what it says."""

    task: Task = "succeed"
    file: str = ""


@message("test.tracked.nobody", track=True)
class TrackedByNobody(BaseModel):
    """Something that no consumer takes."""


@message("test.untracked")
class Untracked(BaseModel):
    """Something that is not tracked unless its publisher says so."""


@consumer("tracked", retry=fixed(attempts=2, delay="1s"))
def handle(message: Tracked | Untracked, context: Context) -> None:
    if isinstance(message, Tracked):
        _do(message.task, message.file, context)


@consumer("tracked-first")
def always_succeed(message: TrackedBoth) -> None:
    pass


@consumer("tracked-second", retry=fixed(attempts=2, delay="1s"))
def do(message: TrackedBoth, context: Context) -> None:
    _do(message.task, message.file, context)


def _do(task: Task, file: str, context: Context) -> None:
    there = Path(os.environ[FOLDER]) / file
    if task == "retry once" and context.attempt == 1:
        raise ValueError("not at the first time")
    if task == "wait for an hour":
        raise RetryLater("1h", "the shop is closed")
    if task == "fail until repaired" and not there.exists():
        raise Reject("it is broken")
    if task == "tell":
        context.progress(0.1, "nobody need see this")
        context.progress(0.4, "4 of 10 rows")
    while task in ("wait for the gate", "tell") and not there.exists():
        time.sleep(0.01)
