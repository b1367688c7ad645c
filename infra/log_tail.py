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
    return "".join(_told(log, "The end of", lines[-_LINES:]) for log in logs if (lines := _lines_of(log)))


def first_errors(log: Path) -> str:
    """What *log* says from its first error on: for a program that ends with a long epilogue, as Erlang does."""
    lines = _lines_of(log)
    first = next((number for number, line in enumerate(lines) if "error" in line.lower()), None)
    return _told(log, "Of", lines[first : first + _LINES]) if first is not None else last_lines([log])


def _told(log: Path, what: str, lines: Sequence[str]) -> str:
    return "\n".join([f"\n  {what} {log}:", *(f"    {line}" for line in lines)])


def _lines_of(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _BYTES))
            return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return []
