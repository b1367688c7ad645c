"""When to start again what has died: soon, and later and later while it keeps dying."""

from __future__ import annotations

import time

#: Seconds before a dead process is started again: the first time, and at most. It doubles in between.
FIRST_DELAY, LONGEST_DELAY = 0.5, 10.0

#: A process that was up for so many seconds is healthy: its next death waits for the first delay again.
HEALTHY_SECONDS = 30.0


class Delay:
    """How long to wait before the next start: longer after each quick death."""

    def __init__(self) -> None:
        self.due: float | None = None
        self._seconds = FIRST_DELAY
        self._since = time.monotonic()

    def schedule(self) -> float:
        """Note a death; returns the seconds to wait."""
        if time.monotonic() - self._since >= HEALTHY_SECONDS:
            self._seconds = FIRST_DELAY
        seconds, self._seconds = self._seconds, min(2 * self._seconds, LONGEST_DELAY)
        self.due = time.monotonic() + seconds
        return seconds

    def started(self) -> None:
        """Note a start."""
        self.due, self._since = None, time.monotonic()
