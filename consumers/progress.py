"""What handlers tell of their progress, on its way to the reviewer: of each delivery, the last once a second."""

from __future__ import annotations

import time
from collections.abc import Callable

from ackline.consumers.delivery import Delivery
from ackline.consumers.handling import Report

#: Seconds between two reports of one delivery at least.
SECONDS = 1.0


class Progress:
    """Collects what is told, and reports it at `tick`."""

    def __init__(self, report: Callable[[Report], object], clock: Callable[[], float] = time.monotonic) -> None:
        """report: takes what is to be reported. clock: seconds."""
        self._report = report
        self._clock = clock
        self._told: dict[Delivery, Callable[[], Report]] = {}
        self._reported: dict[Delivery, float] = {}

    def tell(self, delivery: Delivery, report: Callable[[], Report]) -> None:
        """Have a report made of it. From any thread; no lock, for a time limit may interrupt it anywhere."""
        self._told[delivery] = report

    def tick(self) -> None:
        """Report what is due. Call it several times a second, on one thread."""
        if not self._told and not self._reported:
            return
        now = self._clock()
        self._reported = {delivery: at for delivery, at in self._reported.items() if now - at < SECONDS}
        for delivery in list(self._told):
            if delivery not in self._reported:
                self._reported[delivery] = now
                self._report(self._told.pop(delivery)())
