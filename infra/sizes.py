"""Sizes of memory as people write them."""

from __future__ import annotations

import re

from ackline.infra.errors import ConfigurationError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:(k|m|g)(?:i?b)?|b)?\Z", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def octets(size: str | int) -> int:
    """A size in bytes: a number of them, or "512MB", "1.5g", "64 KiB"; a kilobyte has 1,024, as for Docker.

    Raises `ConfigurationError` for anything else.
    """
    match = _SIZE.match(str(size).strip())
    if match is None:
        raise ConfigurationError(f"{size!r} is no size: write '512MB', '1.5GB', or bytes.")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


def shown(size: int) -> str:
    """A size for people: "512 MB"."""
    return f"{size / (1 << 20):g} MB"
