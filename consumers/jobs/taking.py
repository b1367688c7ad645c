"""Deliveries of jobs: from RabbitMQ to Celery's event loop, and their answers back.

    I/O thread:  Subscription ──► a deque, and a byte into a pipe ──► Celery's hub (main thread) ──► process
                 Subscription ◄── answers, when what follows from them is confirmed ◄──┘

Not by Celery's own connection, because that one holds what it has received in acks of its own, ends with a header that
py-amqp cannot decode (a timestamp of 10^13, at every redelivery), and takes everything that runs down with it when it
is lost. Here a lost connection makes the deliveries void, and no more: jobs go on, and

- what RabbitMQ delivers again of a job that still runs here *becomes* its delivery, which its end then settles;
- what ended while there was no delivery to settle keeps its settlement for that which comes. Of a job that is claimed
  it is carried out at once, for what comes may come to another worker (`claims`). So it is of one that took about as
  long as the broker has patience.

So a job that outlives a connection, or the broker's `consumer_timeout`, runs once. On 4.3 that timeout is longer for
jobs: it is an argument of the subscription.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from ackline.consumers.control import Control, Pause
from ackline.consumers.delivery import Delivery
from ackline.consumers.handling import HANDLED, Outgoing, Report, Settlement
from ackline.consumers.jobs.claims import Claims
from ackline.consumers.jobs.message import JobMessage
from ackline.consumers.reporting import Reports
from ackline.consumers.settling import Settling
from ackline.consumers.subscription import Subscription
from ackline.infra.connection import Connection
from ackline.infra.errors import AcklineError
from ackline.infra.link import Link
from ackline.infra.settings import process_name
from ackline.producer.publisher import Publisher

log = logging.getLogger(__name__)

#: Seconds for one confirm of a settlement before it is tried again.
_CONFIRM_SECONDS = 15.0
#: Seconds for which reports are collected, and answers. Jobs end one by one, and a wake-up of the I/O thread for each
#: costs a quarter of what a short one does.
_REPORT_SECONDS, _ANSWER_SECONDS = 0.01, 0.005
#: Weight of the newest measured time.
_WEIGHT = 0.1
#: Settlements that are kept for deliveries that were lost.
_KEPT = 10_000
#: The part of the `consumer_timeout` after which a delivery may be somebody else's. RabbitMQ 4.3 ignores the ack of one
#: that it has taken back, and has told us of that a quarter of a minute later.
_DOUBTFUL = 0.9


class Taking:
    """The deliveries of some queues of jobs. What does not say otherwise is for any thread."""

    def __init__(
        self,
        url: str,
        queues: Iterable[str],
        *,
        prefetch: int,
        consumer_timeout: float,
        claims: Claims | None,
        read_pauses: Callable[[], Mapping[str, Pause]] | None,
        declare: Callable[[], object],
        ready: Callable[[], None],
    ) -> None:
        """url: the broker. prefetch: unacked deliveries of each queue, to begin with. consumer_timeout: seconds that a
        delivery may stay without an answer, where RabbitMQ lets a subscription say so (4.3). claims: of long jobs.
        read_pauses: which queues are paused, by the database; None where there is none (see `Control`). declare:
        creates the topology; called on a thread after each connect. ready: called when all queues are consumed.
        """
        self.worker = process_name()
        self.link = Link(url, f"jobs consumes {self.worker}", on_up=self._up, on_down=self._down)
        self._publisher = Publisher(url, name="jobs publishes")
        self._reports = Reports(self._send, self._later)
        self._claims = claims
        self._doubtful = consumer_timeout * _DOUBTFUL
        self._declare = declare
        self._ready = ready
        self._consuming: set[str] = set()
        self._arrived: deque[Delivery] = deque()
        self._readable, self._writable = os.pipe()
        os.set_blocking(self._readable, False)
        os.set_blocking(self._writable, False)
        self._connection: Connection | None = None
        self._prefetch = prefetch
        #: Queues of which nothing is to begin.
        self.paused: set[str] = set()
        #: What ended when its delivery had been lost, by queue and try.
        self._kept: OrderedDict[tuple[str, str], Settlement] = OrderedDict()
        #: Seconds that a job takes, of late; None before the first.
        self.seconds: float | None = None
        self.subscriptions = {
            queue: Subscription(
                queue,
                self.link,
                prefetch=prefetch,
                deliver=self._deliver,
                consuming=partial(self._began, queue),
                arguments={"x-consumer-timeout": int(consumer_timeout * 1000)},
                gather=_ANSWER_SECONDS,
            )
            for queue in queues
        }
        self._control = Control(self.link, self.subscriptions, worker=self.worker, limit=self._limit, read=read_pauses)
        self._knows_pauses = False

    def start(self) -> None:
        """Begin to connect."""
        self.link.start()

    # --- the I/O thread --------------------------------------------------------------------------------

    def _up(self, connection: Connection) -> None:
        self._connection = connection
        threading.Thread(target=self._prepare, args=(connection,), name="topology", daemon=True).start()

    def _prepare(self, connection: Connection) -> None:
        """Create what is missing, as on a broker that lost its data; then subscribe. On a thread of its own."""
        try:
            self._declare()
        except AcklineError as error:
            log.error("%s Going on with what exists.", error)
        if not self._knows_pauses:
            self._control.start()
            self._knows_pauses = True
        self.link.call(partial(self._subscribe, connection))

    def _subscribe(self, connection: Connection) -> None:
        if connection is self._connection:
            self._control.open(connection)
            for subscription in self.subscriptions.values():
                subscription.open(connection)

    def _down(self, reason: AcklineError) -> None:
        self._connection = None
        self._control.lost()
        for subscription in self.subscriptions.values():
            subscription.lost()

    def _began(self, queue: str) -> None:
        self._consuming.add(queue)
        if len(self._consuming) == len(self.subscriptions):
            self._ready()

    def _deliver(self, deliveries: list[Delivery]) -> None:
        self._arrived.extend(deliveries)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # so full that it will be read
            os.write(self._writable, b"\0")

    # --- Celery's event loop, on the main thread -------------------------------------------------------

    def fileno(self) -> int:
        """What becomes readable when there are deliveries to `take`."""
        return self._readable

    def take(self) -> list[JobMessage]:
        """What has been delivered, and is to be run."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._readable, 65536)
        taken = []
        while self._arrived:
            delivery = self._arrived.popleft()
            if delivery.source.queue in self.paused:
                delivery.source.give_back(delivery)
            elif delivery.is_current:  # else RabbitMQ delivers it again
                taken.append(JobMessage(delivery, delivery.source.queue, self.worker, self.settle))
        return taken

    def settle(self, message: JobMessage, settlement: Settlement) -> None:
        """Do what becomes of a job. Returns at once."""
        delivery = message.delivery
        if message.began is not None:
            took, known = time.monotonic() - message.began, self.seconds
            self.seconds = took if known is None else known + (took - known) * _WEIGHT
        claims = self._claims if self._claims is not None and self._claims.holds(message) else None
        if not delivery.is_current and claims is None:
            self._keep(message, settlement)
            return
        if not delivery.is_current or time.monotonic() - delivery.arrived > self._doubtful:
            delivery = self._doubtful_one(message, claims)
        elif claims is not None:
            claims.end(message, known=False)
        if settlement is HANDLED:
            delivery.source.finish(delivery)
        elif settlement.report is not None and not settlement.outgoing:
            self._report(settlement.report, delivery)
        else:
            Settling(delivery, settlement, send=self._send, report=self._report, later=self._later).begin()

    def _doubtful_one(self, message: JobMessage, claims: Claims | None) -> Delivery:
        """The delivery of a job that is settled now, though RabbitMQ may deliver it again. claims: that have it."""
        delivery = message.delivery

        def end() -> None:
            if claims is not None:
                claims.end(message, known=not message.goes_on)
            self._keep(message, HANDLED)

        source = _Doubtful(delivery, end)
        return Delivery(delivery.exchange, delivery.routing_key, delivery.properties, delivery.body, source=source)

    def _keep(self, message: JobMessage, settlement: Settlement) -> None:
        self._kept[message.queue, message.try_] = settlement
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def kept(self, message: JobMessage) -> Settlement | None:
        """How the try ended here of which this is a further delivery; None when it did not, or that is settled."""
        return self._kept.pop((message.queue, message.try_), None)

    def hold(self, prefetch: int) -> None:
        """Have that many unacked deliveries of each queue at most."""

        self._prefetch = prefetch
        self.link.call(self._hold)

    def _limit(self, queue: str, most: int | None) -> None:
        """Pause a queue, or resume it."""
        if most == 0:
            self.paused.add(queue)
        else:
            self.paused.discard(queue)
        self.link.call(self._hold)
        self._wake()  # to give back what waits

    def _hold(self) -> None:
        for queue, subscription in self.subscriptions.items():
            subscription.hold(0 if queue in self.paused else self._prefetch)

    def stop(self) -> None:
        """Take nothing more; what has arrived and was not taken goes back."""

        def on_io() -> None:
            for subscription in self.subscriptions.values():
                subscription.stop()
            while self._arrived:
                delivery = self._arrived.popleft()
                delivery.source.give_back(delivery)

        self.link.call(on_io)

    def close(self, timeout: float) -> None:
        """Wait for what is being settled, *timeout* seconds at most, send every answer, and disconnect."""
        deadline = time.monotonic() + timeout
        self._control.stop()
        stopped = threading.Event()

        def look() -> None:
            for subscription in self.subscriptions.values():
                subscription.flush_all()
            if all(subscription.has_stopped for subscription in self.subscriptions.values()):
                stopped.set()
            else:
                self.link.later(0.01, look)

        self.link.call(look)
        stopped.wait(timeout)
        self._publisher.close(max(deadline - time.monotonic(), 0.5))
        self.link.stop()

    # --- any thread ------------------------------------------------------------------------------------

    def _send(self, outgoing: Outgoing) -> Any:
        return self._publisher.send(*outgoing, timeout=_CONFIRM_SECONDS)

    def _later(self, seconds: float, function: Callable[[], None]) -> None:
        self.link.call(lambda: self.link.later(seconds, function))

    def _report(self, report: Report, delivery: Delivery) -> None:
        self._reports.add(report, delivery)
        self._later(_REPORT_SECONDS, self._reports.flush)


class _Doubtful:
    """Where a delivery came from that may be void, of a job whose end is carried out all the same."""

    #: It is never another one: nobody waits for an answer.
    generation = 0

    def __init__(self, delivery: Delivery, end: Callable[[], None]) -> None:
        self._delivery = delivery
        self._end = end

    def finish(self, delivery: Delivery) -> None:
        """What follows from it is confirmed."""
        self._end()
        self._delivery.source.finish(self._delivery)

    def reject(self, delivery: Delivery) -> None:
        """What follows from it can never be sent: it is the broker's."""
        self._delivery.source.reject(self._delivery)
