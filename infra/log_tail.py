"""The end of a log file, for an error that says what a program said last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

#: Log lines that an error carries.
_LINES = 15

#: Bytes that are read from the end of a log.
_BYTES = 16 * 1024


def last_lines(logs: Sequence[Path]) -> str:
    """The end of each of *logs* that there is, set off for an error message."""
    return "".join(_end_of(log) for log in logs)


def _end_of(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _BYTES))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    told = [f"    {line}" for line in lines[-_LINES:]]
    return "\n".join([f"\n  The end of {log}:", *told]) if told else ""
