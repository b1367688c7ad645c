"""What commands print: on a terminal, in a pipe, and as JSON. What strangers wrote cannot steer the terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Any

from rich.console import Console

from ackline.infra.table import text

#: Columns of a pipe: nothing is cut there.
_UNBOUNDED = 1_000_000


def console() -> Console:
    """Standard output: colours and the terminal's width on a terminal; neither in a pipe."""
    width = None if sys.stdout.isatty() else _UNBOUNDED
    return Console(width=width, markup=False, highlight=False, emoji=False)


def printable(value: str) -> str:
    """*value* with every character that could steer a terminal shown as an escape; lines stay lines."""
    shown = text(value.encode("utf-8", "backslashreplace"))
    if shown.isprintable():
        return shown
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode() for char in shown
    )


def line(value: str) -> str:
    """*value* printable and in one line."""
    return " ".join(printable(value).split())


def moment(at: datetime | None) -> str:
    """A time for people: UTC, to the second."""
    return at.strftime("%Y-%m-%d %H:%M:%SZ") if at else ""


def plain(value: Any) -> Any:
    """*value* in what JSON knows: records by their fields, times in ISO 8601, bytes and odd numbers as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, bytes):
        return text(value)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else str(value)
