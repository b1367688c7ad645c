"""One consumer in a worker: what is delivered goes to its handler, and what follows from that back to the broker.

**How much it holds unacked** follows the time that its handler takes, as measured. Enough to keep every handler busy
for `HELD_SECONDS`, so quick handlers never wait for the broker; and no more, so that slow ones leave the rest of the
queue to other workers, and no delivery waits here until the broker's `consumer_timeout`, which runs from the delivery
and not from the handler's start. It begins with little, since nothing has been measured. What has waited here for a
quarter of that timeout none the less is given back.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeAlias

from ackline.consumers.batching import Collector, ahandle_batch, handle_batch
from ackline.consumers.breaker import Circuit
from ackline.consumers.calling import way_of
from ackline.consumers.consumer import Consumer
from ackline.consumers.delivery import Delivery
from ackline.consumers.event_loop import EventLoop
from ackline.consumers.handling import HANDLED, Outgoing, Report, Settlement, ahandle, handle, started
from ackline.consumers.isolation import Isolation
from ackline.consumers.journal import Section, key_of
from ackline.consumers.pool import Pool
from ackline.consumers.progress import Progress
from ackline.consumers.rate import Bucket, Throttle
from ackline.consumers.reporting import Reports
from ackline.consumers.settling import Settling
from ackline.consumers.stopping import Stopping
from ackline.consumers.subscription import Subscription
from ackline.consumers.time_limit import check
from ackline.infra import wire
from ackline.infra.link import Link

log = logging.getLogger(__name__)

#: Seconds for which what is held keeps the handlers busy.
HELD_SECONDS = 1.0
#: Unacked deliveries to begin with, for each handler that may run at once.
FIRST_HELD = 2
#: Share of `consumer_timeout` that a delivery may wait here for its handler.
_WAIT_SHARE = 0.25
#: Seconds that a handler runs before it is reported as begun: most are over before anybody could see it.
REPORT_SECONDS = 0.1
#: Seconds of a handler from which on it is of use to have several run at once in threads.
_SLOW_SECONDS = 0.0005
#: Weight of the newest measured time.
_WEIGHT = 0.1
#: By how much the prefetch has to be wrong before it is changed: each change is a new subscription.
_FACTOR = 2.0

Item: TypeAlias = Delivery | list[Delivery]


def enough(seconds: float, *, concurrency: int, long: int = 0, size: int = 1) -> int:
    """How many unacked deliveries keep handlers busy for HELD_SECONDS, besides what is in them.

    seconds: that a handler takes. long: how many of *concurrency* are in one that takes longer than HELD_SECONDS, and
    are not to be had by the others meanwhile. size: messages in a handler.
    """
    return concurrency * size + math.ceil(max(concurrency - long, 0) * HELD_SECONDS / seconds)


class Services(Protocol):
    """What a worker does for its runners."""

    name: str
    link: Link
    pool: Pool[Item]
    #: The thread for suspects.
    apart: Pool[Item]
    #: Tells suspects, and handles them; None where there is no process to do so.
    isolation: Isolation | None
    #: What is in a handler here.
    journal: Section
    reports: Reports
    #: What handlers tell of theirs.
    progress: Progress
    #: Set when the worker begins to stop.
    stopping: Stopping

    def event_loop(self) -> EventLoop[Item]:
        """The loop of the async handlers, made when it is first asked for."""

    def send(self, outgoing: Outgoing) -> Any:
        """Publish; the future of the confirm."""

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Run *function* on the consuming I/O thread in *seconds*. Any thread."""

    def consuming(self) -> None:
        """A subscription has begun."""

    def busy(self) -> None:
        """There are deliveries without an answer."""


class Runner:
    """Runs *consumer* on what its subscription delivers. What says so runs on the I/O thread only."""

    def __init__(
        self,
        consumer: Consumer,
        services: Services,
        *,
        concurrency: int,
        prefetch: int,
        consumer_timeout: float,
        processes: int,
        queue: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """concurrency: handlers at once. prefetch: unacked deliveries at most. consumer_timeout: the broker's, seconds.

        processes: those that share the consumer's rate. Raises `ConfigurationError` when the consumer's middleware does
        not fit its handler, or its rate is too low. queue: the one of the consumer's name when None. arguments: of the
        subscription.
        """
        self.consumer = consumer
        self._services = services
        self._concurrency = concurrency
        self._most = prefetch
        self._longest_wait = consumer_timeout * _WAIT_SHARE
        if consumer.time_limit is not None:
            check(consumer.name, consumer.time_limit, waiting=self._longest_wait, consumer_timeout=consumer_timeout)
        self.way = way_of(consumer, services.name, stopping=services.stopping, tell=services.progress.tell)
        if consumer.breaker is not None:
            circuit = Circuit(
                consumer.name, consumer.breaker, prefetch=prefetch, limit=self._limit_by_circuit, later=services.later
            )
            call = circuit.around(self.way.call, is_async=consumer.is_async, is_batch=consumer.batch is not None)
            self.way = self.way._replace(call=call)
        self._journal = services.journal
        #: Seconds that the handler takes, of late; None before the first.
        self.seconds: float | None = None
        self._limits: dict[str, int] = {}
        batch = consumer.batch
        least = batch.size * 2 if batch is not None else 1
        self._least = min(least, prefetch)
        self._wanted = min(max(concurrency * FIRST_HELD, self._least), prefetch)
        executor: Pool[Item] | EventLoop[Item]
        executor = self._executor = services.event_loop() if consumer.is_async else services.pool
        self._collector = Collector(batch, executor.submit, services.link.later) if batch is not None else None
        self._hand_over: Callable[[list[Delivery]], None] = (
            self._collector.add if self._collector is not None else executor.submit
        )
        self._throttle: Throttle | None = None
        if consumer.rate is not None:
            bucket = Bucket(consumer.rate / processes, time.monotonic())
            self._throttle = Throttle(bucket, self._hand_over, services.link.later)
            self._hand_over = self._throttle.add
            self._limits["rate"] = bucket.prefetch
        self.subscription = Subscription(
            queue or consumer.name,
            services.link,
            prefetch=self._allowed,
            deliver=self._deliver,
            consuming=services.consuming,
            quiet=self._is_quiet,
            voided=self.voided,
            arguments=arguments,
        )
        self.subscription.owner = self

    # --- the I/O thread --------------------------------------------------------------------------------

    def _deliver(self, deliveries: list[Delivery]) -> None:
        self._services.busy()
        self._dispatch(deliveries)

    def _dispatch(self, deliveries: list[Delivery]) -> None:
        """Hand these over to be handled: suspects apart."""
        suspects = {delivery for delivery in deliveries if delivery.redelivered and self._is_suspect(delivery)}
        if suspects:
            self._services.apart.submit([delivery for delivery in deliveries if delivery in suspects])
            deliveries = [delivery for delivery in deliveries if delivery not in suspects]
        if deliveries:
            self._hand_over(deliveries)

    def _is_suspect(self, delivery: Delivery) -> bool:
        isolation = self._services.isolation
        return isolation is not None and isolation.suspects(self.consumer.name, delivery)

    def limit(self, reason: str, most: int | None) -> None:
        """At most *most* unacked deliveries, for that reason; 0: none, and what has not begun is given back.

        None lifts it. The least of all reasons' holds.
        """
        if most is None:
            self._limits.pop(reason, None)
        else:
            self._limits[reason] = most
        self._hold()

    @property
    def _allowed(self) -> int:
        return min([self._wanted, *self._limits.values()])

    def _hold(self) -> None:
        prefetch = self._allowed
        self.subscription.hold(prefetch)
        if not prefetch:
            self.give_back(self.withdraw())

    def voided(self) -> None:
        """The channel is gone, and with it what was delivered on it."""

    def stop(self) -> None:
        """Take nothing more; give back what has not begun."""
        self.subscription.stop()
        self.give_back(self.withdraw())

    def close(self) -> None:
        """Send every answer."""
        self.subscription.flush_all()

    @property
    def has_stopped(self) -> bool:
        """Whether nothing more comes, and everything that came is answered."""
        return self.subscription.has_stopped

    def withdraw(self, wanted: Callable[[Delivery], bool] = lambda delivery: True) -> list[Delivery]:
        """Take back those of this consumer's deliveries that have not begun and that *wanted* says."""

        def mine(item: Item) -> bool:
            first = item[0] if isinstance(item, list) else item
            return first.source.owner is self and wanted(first)

        found: list[Delivery] = []
        for item in self._executor.withdraw(mine) + self._services.apart.withdraw(mine):
            found += _deliveries(item)
        if self._collector is not None:
            found += self._collector.withdraw(wanted)
        if self._throttle is not None:
            found += self._throttle.withdraw(wanted)
        return found

    @staticmethod
    def give_back(deliveries: Sequence[Delivery]) -> None:
        """Return these to their queues."""
        for delivery in deliveries:
            delivery.source.give_back(delivery)

    def adapt(self, long: int) -> None:
        """Hold as much as the handler's time asks for. long: how many have run for more than HELD_SECONDS.

        Those keep their threads; what is held besides is for the others. Call it a few times a second.
        """
        if self.seconds is None and not long:
            return
        size = self.consumer.batch.size if self.consumer.batch is not None else 1
        wanted = enough(self.seconds or HELD_SECONDS, concurrency=self._concurrency, long=long, size=size)
        wanted = max(self._least, min(wanted, self._most))
        if wanted >= self._wanted * _FACTOR or wanted * _FACTOR <= self._wanted or wanted == self._most != self._wanted:
            self._wanted = wanted
            self._hold()

    def give_back_the_old(self, now: float) -> None:
        """Give back what has waited here for too long."""
        latest = now - self._longest_wait
        old = self.withdraw(lambda delivery: delivery.arrived < latest)
        if old:
            log.warning(
                "%s: %d messages have waited here for %.0f s and are given back: handlers are slower than they were",
                self.consumer.name,
                len(old),
                self._longest_wait,
            )
            self.give_back(old)

    # --- handler threads, or the event loop ------------------------------------------------------------

    def _is_quiet(self) -> bool:
        return not self._executor.waiting

    def run(self, item: Item) -> None:
        """Handle what was delivered. On a handler thread."""
        since = time.monotonic()
        try:
            if isinstance(item, list):
                current, slots = self._note_all(item)
                self._answer_all(current, slots, handle_batch(self.way, current))
            elif item.is_current:  # else the connection was lost while it waited; the broker delivers it again
                slot = self._note(item)
                settlement = handle(self.way, item)
                self._journal.leave(slot)
                self._answer(item, settlement)
        except Exception:
            self._give_up(item)
        self._took(time.monotonic() - since)

    def run_apart(self, item: Item) -> None:
        """Handle a suspect. On the thread for suspects."""
        assert isinstance(item, Delivery)  # noqa: S101
        assert self._services.isolation is not None  # noqa: S101
        try:
            if item.is_current:
                self._answer(item, self._services.isolation.handle(self.way, item))
        except Exception:
            self._give_up(item)

    async def arun(self, item: Item) -> None:
        """Handle what was delivered. On the event loop."""
        since = time.monotonic()
        try:
            if isinstance(item, list):
                current, slots = self._note_all(item)
                self._answer_all(current, slots, await ahandle_batch(self.way, current))
            elif item.is_current:
                slot = self._note(item)
                settlement = await ahandle(self.way, item)
                self._journal.leave(slot)
                self._answer(item, settlement)
        except Exception:
            self._give_up(item)
        self._took(time.monotonic() - since)

    def _note(self, delivery: Delivery) -> int:
        """Note in the journal that the handler begins: a death of this process from now on makes it a suspect."""
        return self._journal.enter(key_of(self.consumer.name, delivery.properties, delivery.body))

    def _note_all(self, batch: list[Delivery]) -> tuple[list[Delivery], list[int]]:
        """Those that the broker still waits for, and where each is noted."""
        current = [delivery for delivery in batch if delivery.is_current]
        return current, [self._note(delivery) for delivery in current]

    def _answer_all(self, current: list[Delivery], slots: list[int], settlements: list[Settlement]) -> None:
        for slot in slots:
            self._journal.leave(slot)
        for delivery, settlement in zip(current, settlements, strict=True):
            self._answer(delivery, settlement)

    def _answer(self, delivery: Delivery, settlement: Settlement) -> None:
        if settlement is HANDLED:
            delivery.source.finish(delivery)
        elif settlement.report is not None and not settlement.outgoing:
            self._services.reports.add(settlement.report, delivery)
        else:
            services = self._services
            Settling(
                delivery, settlement, send=services.send, report=services.reports.add, later=services.later
            ).begin()

    def _give_up(self, item: Item) -> None:
        log.exception("%s: a delivery could not be settled; rejected, to review", self.consumer.name)
        for delivery in _deliveries(item):
            delivery.source.reject(delivery)

    def _took(self, seconds: float) -> None:
        # Two threads may race here, and one measurement is lost.
        known = self.seconds
        self.seconds = seconds if known is None else known + (seconds - known) * _WEIGHT

    # --- any thread ------------------------------------------------------------------------------------

    def _limit_by_circuit(self, most: int | None) -> None:
        self._services.link.call(lambda: self.limit("breaker", most))

    @property
    def is_slow(self) -> bool:
        """Whether handlers take long enough for several to run at once in threads."""
        return self.seconds is None or self.seconds > _SLOW_SECONDS

    def report_begun(self, item: Item, seconds: float) -> None:
        """Report that a handler has run for so many seconds, to whom it may concern."""
        for delivery in _deliveries(item):
            report: Report | None = started(self.way, delivery, wire.now() - timedelta(seconds=seconds))
            if report is not None:
                self._services.reports.add(report)


def _deliveries(item: Item) -> list[Delivery]:
    return item if isinstance(item, list) else [item]
