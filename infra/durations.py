"""Durations as people write them."""

from __future__ import annotations

import re

from ackline.infra.errors import ConfigurationError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\Z")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

#: Seconds that a delay may be at most: ten years. Beyond it a time cannot be written into a header any more.
MAX_DELAY = 10 * 365 * 86400.0


def seconds(duration: str | float) -> float:
    """A duration in seconds: a number of them, or "250ms", "1s", "5m", "2h", "1d".

    Raises `ConfigurationError` for anything else, and beyond ten years.
    """
    if isinstance(duration, str):
        match = _DURATION.match(duration.strip())
        value = float(match[1]) * _UNITS[match[2] or "s"] if match else -1.0
    else:
        value = float(duration)
    if not 0 <= value <= MAX_DELAY:
        raise ConfigurationError(f"{duration!r} is no duration: write '250ms', '1s', '5m', '2h', '1d', or seconds.")
    return value


def written(value: float) -> str:
    """So many seconds as `seconds` reads them, in the largest unit that leaves no fraction: "2h", "90s", "0.25s"."""
    for unit in ("d", "h", "m"):
        if value and value % _UNITS[unit] == 0:
            return f"{value / _UNITS[unit]:g}{unit}"
    return f"{value:g}s"
