"""The handlers of tracked messages that run now, and the report that one has begun.

That report makes a status *being handled*. Most handlers are over before anybody could see it, and a report costs as
much as a message: so only one that has run for `REPORT_SECONDS` is reported as begun. It carries nobody's message, so
nothing waits for its confirm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ackline.consumers.handling import Outgoing

#: Seconds that a handler runs before it is reported as begun; it takes twice that at most.
REPORT_SECONDS = 0.1


class _Run(NamedTuple):
    begun: float
    report: Callable[[], Outgoing]


class Running:
    """Enter it around a handler: `with running(report): ...`. Any number of threads."""

    def __init__(
        self,
        send: Callable[[Outgoing], object],
        later: Callable[[float, Callable[[], None]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """send: publishes, without waiting. later: runs a function in so many seconds, on any other thread."""
        self._send = send
        self._later = later
        self._clock = clock
        self._runs: dict[int, _Run] = {}
        self._looking = False

    @contextmanager
    def __call__(self, report: Callable[[], Outgoing]) -> Iterator[None]:
        """report: makes the report that the handler has begun, should it be needed."""
        run = _Run(self._clock(), report)
        self._runs[id(run)] = run
        if not self._looking:
            self._looking = True
            self._later(REPORT_SECONDS, self._look)
        try:
            yield
        finally:
            self._runs.pop(id(run), None)

    def _look(self) -> None:
        """Report those that have run for long enough. Comes again for as long as a handler runs unreported."""
        old = self._clock() - REPORT_SECONDS
        for key, run in list(self._runs.items()):
            if run.begun <= old and self._runs.pop(key, None) is not None:
                self._send(run.report())
        # In this order: who enters now either is seen here, or sees that nobody looks.
        self._looking = False
        if self._runs:
            self._looking = True
            self._later(REPORT_SECONDS, self._look)
