"""An application for tests: handlers that say when they begin, and then wait until the test opens their gate."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from pydantic import BaseModel

from ackline.consumers import consumer
from ackline.producer import message
from tests import notes

FOLDER = "ACKLINE_TEST_GATED"


@message("test.gated")
class Gated(BaseModel):
    """Something that takes as long as the test wants."""

    number: int


@message("test.gated.async")
class GatedAsync(BaseModel):
    """The same for the async handler."""

    number: int


@consumer("gated")
def wait(gated: Gated) -> None:
    _write("begun", gated.number)
    while not _gate().exists():
        time.sleep(0.01)
    _write("done", gated.number)


@consumer("gated-async")
async def wait_async(gated: GatedAsync) -> None:
    _write("begun", gated.number)
    while not _gate().exists():
        await asyncio.sleep(0.01)
    _write("done", gated.number)


def _gate() -> Path:
    return Path(os.environ[FOLDER]) / "open"


def _write(event: str, number: int) -> None:
    notes.add(Path(os.environ[FOLDER]) / event, str(number))


class Gate:
    """What the test sees of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()

    @property
    def environment(self) -> dict[str, str]:
        """What the worker's process needs."""
        return {FOLDER: str(self._folder)}

    def open(self) -> None:
        """Let every handler go on."""
        (self._folder / "open").touch()

    @property
    def begun(self) -> list[int]:
        """The numbers of the messages whose handler began."""
        return self._numbers("begun")

    @property
    def done(self) -> list[int]:
        """The numbers of the messages whose handler came to its end."""
        return self._numbers("done")

    def _numbers(self, event: str) -> list[int]:
        return list(map(int, notes.read(self._folder / event)))
