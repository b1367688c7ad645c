"""Ports that no two test processes of this machine draw, and so cannot both start a server on."""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from ackline.infra import ports

#: A file for each port that was drawn, shared by all test processes.
DRAWN = Path(tempfile.gettempdir()) / "ackline-test-ports"

#: Seconds after which a port may be drawn again: its test run is over.
FORGOTTEN = 3600.0


def draw_apart() -> None:
    """Have `free_port` in this process draw no port that another test process drew.

    Between its choice and its server's start, a port is free in everybody's eyes: seconds, for a broker. With several
    test runs at once, two brokers then meet on a port every now and then.
    """
    DRAWN.mkdir(exist_ok=True)
    for file in DRAWN.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process forgets it too
            if file.stat().st_mtime < time.time() - FORGOTTEN:
                file.unlink()
    ports.random = SimpleNamespace(randint=_draw)  # type: ignore[assignment, attr-defined]


def _draw(first: int, last: int) -> int:
    while True:
        port = random.randint(first, last)
        with contextlib.suppress(FileExistsError):
            (DRAWN / str(port)).touch(exist_ok=False)
            return port
