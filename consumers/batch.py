"""How many messages a batch handler gets at once."""

from __future__ import annotations

from dataclasses import dataclass

from ackline.infra.durations import seconds
from ackline.infra.errors import ConfigurationError


@dataclass(frozen=True, slots=True, init=False)
class Batch:
    """How many messages a batch handler gets: up to *size*, or what came within *linger* of the first one."""

    size: int
    #: Seconds.
    linger: float

    def __init__(self, size: int = 100, linger: str | float = "100ms") -> None:
        """linger: "100ms", "1s", or seconds. Raises `ConfigurationError`."""
        if not 1 <= size <= 10_000:
            raise ConfigurationError(f"A batch of {size}: it can have 1 to 10,000 messages.")
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "linger", seconds(linger))
