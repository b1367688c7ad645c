"""Notes that processes leave for a test in a file: each whole or not there, whoever else writes, reads or is killed."""

from __future__ import annotations

import os
from pathlib import Path

#: Bytes of a note in its file; 2 to some power. The kernel copies a write page by page: between two pages a reader
#: sees half of it, and SIGKILL leaves half of it for good. No such note lies in two pages.
SIZE = 256


def add(file: Path, note: str) -> None:
    """Write *note* down, at the end of *file*: one line, of fewer than `SIZE` bytes."""
    line = note.encode().ljust(SIZE - 1) + b"\n"
    if len(line) != SIZE or line.count(b"\n") != 1:
        raise ValueError(f"not a short line: {note!r}")
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def read(file: Path) -> list[str]:
    """All notes, in their order; none if there is no file."""
    try:
        return [line.decode().rstrip(" ") for line in file.read_bytes().split(b"\n")[:-1]]
    except FileNotFoundError:
        return []
