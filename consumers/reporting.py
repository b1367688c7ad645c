"""Reports of what became of tracked messages, in batches: one message to `ackline.outcomes` tells of many.

A delivery whose end is reported is acked when the report is confirmed, so that what happened is known or happens again.
A report for itself would cost as much as handling the message did.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from ackline.consumers.delivery import Delivery
from ackline.consumers.handling import Outgoing, Report
from ackline.infra.names import OUTCOMES
from ackline.infra.properties import PERSISTENT, Properties
from ackline.producer.errors import PublishBlocked

log = logging.getLogger(__name__)

#: Reports in one message at most; less than that goes out at the worker's next tick.
MOST = 200
#: Seconds between tries of a publish.
_RETRY_FIRST, _RETRY_MOST = 0.5, 10.0
#: A batch of reports needs no id of its own.
_PROPERTIES = Properties(content_type=b"application/json", delivery_mode=PERSISTENT)


class _Batch:
    __slots__ = ("deliveries", "events")

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.deliveries: list[Delivery] = []


class Reports:
    """Collects reports and publishes them. Thread-safe."""

    def __init__(self, send: Callable[[Outgoing], Any], later: Callable[[float, Callable[[], None]], None]) -> None:
        """send: publishes, and returns the future of the confirm. later: runs a function in so many seconds."""
        self._send = send
        self._later = later
        self._lock = threading.Lock()
        self._batches: dict[str, _Batch] = {}

    def add(self, report: Report, delivery: Delivery | None = None) -> None:
        """Report it soon, and ack *delivery* when that is confirmed."""
        with self._lock:
            batch = self._batches.get(report.routing_key)
            if batch is None:
                batch = self._batches[report.routing_key] = _Batch()
            batch.events.append(report.event)
            if delivery is not None:
                batch.deliveries.append(delivery)
            if len(batch.events) < MOST:
                return
            del self._batches[report.routing_key]
        self._publish(report.routing_key, batch, _RETRY_FIRST)

    def flush(self) -> None:
        """Publish what has come together."""
        if not self._batches:
            return
        with self._lock:
            batches, self._batches = self._batches, {}
        for routing_key, batch in batches.items():
            self._publish(routing_key, batch, _RETRY_FIRST)

    def _publish(self, routing_key: str, batch: _Batch, wait: float) -> None:
        body = b"[" + b",".join(batch.events) + b"]"
        outgoing = Outgoing(OUTCOMES, routing_key, _PROPERTIES, body)
        self._send(outgoing).add_done_callback(partial(self._sent, routing_key, batch, wait))

    def _sent(self, routing_key: str, batch: _Batch, wait: float, future: Any) -> None:
        error = future.exception()
        if error is None:
            for delivery in batch.deliveries:
                delivery.source.finish(delivery)
        elif not batch.deliveries or any(delivery.is_current for delivery in batch.deliveries):
            log.log(
                # An alarm has been said once, by the connection.
                logging.DEBUG if isinstance(error, PublishBlocked) else logging.WARNING,
                "%d reports (%s) are not confirmed, so their messages stay unacked; trying again in %g s: %s",
                len(batch.events),
                routing_key,
                wait,
                error,
            )
            self._later(wait, partial(self._publish, routing_key, batch, min(wait * 2, _RETRY_MOST)))
