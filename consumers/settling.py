"""Publishing what follows from a delivery, and then answering it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from ackline.consumers.delivery import Delivery
from ackline.consumers.handling import Outgoing, Report, Settlement
from ackline.producer.errors import MessageTooLarge, PublishBlocked

log = logging.getLogger(__name__)

#: Seconds between tries of a publish.
_RETRY_FIRST, _RETRY_MOST = 0.5, 10.0


class Settling:
    """Publishes what a delivery needs, and answers it when everything is confirmed; never before.

    A publish that fails is tried again for as long as the broker waits for the answer. When it does not any more it
    delivers the message again, and this is dropped.
    """

    def __init__(
        self,
        delivery: Delivery,
        settlement: Settlement,
        *,
        send: Callable[[Outgoing], Any],
        report: Callable[[Report, Delivery], None],
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        """send: publishes, and returns the future of the confirm. report: reports, and acks. later: runs a function in
        so many seconds."""
        self._delivery = delivery
        self._settlement = settlement
        self._publish = send
        self._report = report
        self._later = later
        self._left = len(settlement.outgoing)
        self._over = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Publish; returns at once."""
        if self._settlement.reject:
            self._delivery.source.reject(self._delivery)
        elif not self._left:
            self._all_sent()
        else:
            for outgoing in self._settlement.outgoing:
                self._send(outgoing, _RETRY_FIRST)

    def _send(self, outgoing: Outgoing, wait: float) -> None:
        if self._delivery.is_current:
            self._publish(outgoing).add_done_callback(partial(self._sent, outgoing, wait))

    def _sent(self, outgoing: Outgoing, wait: float, future: Any) -> None:
        error = future.exception()
        if error is None:
            with self._lock:
                self._left -= 1
                done = self._left == 0 and not self._over
            if done:
                self._all_sent()
        elif isinstance(error, MessageTooLarge):
            self._cannot_be_sent(error)
        elif self._delivery.is_current:  # else the broker delivers it again
            log.log(
                # An alarm has been said once, by the connection.
                logging.DEBUG if isinstance(error, PublishBlocked) else logging.WARNING,
                "what follows from a delivery is not confirmed, so it stays unacked; trying again in %g s: %s",
                wait,
                error,
            )
            self._later(wait, partial(self._send, outgoing, min(wait * 2, _RETRY_MOST)))

    def _all_sent(self) -> None:
        """What follows from the delivery is confirmed: report it, then ack."""
        if self._settlement.confirmed is not None:
            self._settlement.confirmed()
        if self._settlement.report is None:
            self._delivery.source.finish(self._delivery)
        else:
            self._report(self._settlement.report, self._delivery)

    def _cannot_be_sent(self, error: BaseException) -> None:
        with self._lock:  # several of one delivery may fail at once
            over, self._over = self._over, True
        if over:
            return
        fallback = self._settlement.fallback
        instead = fallback(error) if fallback is not None else Settlement(reject=True)
        Settling(self._delivery, instead, send=self._publish, report=self._report, later=self._later).begin()
