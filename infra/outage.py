"""The database or the broker is away: said once, waited for with patience."""

from __future__ import annotations

import logging
import threading

from ackline.infra.errors import AcklineError

log = logging.getLogger(__name__)

#: Seconds between tries, doubled from the first to the most.
FIRST, MOST = 0.25, 5.0


class Outage:
    """Counts the tries of one thread. Logs one line when an outage begins and one when it ends."""

    def __init__(self, doing: str, stopping: threading.Event) -> None:
        """doing: what has to wait, for the log. stopping: ends every wait."""
        self._doing = doing
        self._stopping = stopping
        self._wait = 0.0

    def wait(self, error: BaseException) -> None:
        """It failed once more: wait before the next try, or until the role stops."""
        if not self._wait:
            log.error("%s waits: %s Trying again until it works.", self._doing, error, exc_info=_bug(error))
        self._wait = min(self._wait * 2, MOST) or FIRST
        self._stopping.wait(self._wait)

    def over(self) -> None:
        """It worked."""
        if self._wait:
            log.info("%s goes on", self._doing)
        self._wait = 0.0


def _bug(error: BaseException) -> BaseException | None:
    """The error to show with its stack: one that is no sentence for a person is a fault of ours."""
    return None if isinstance(error, AcklineError) else error
