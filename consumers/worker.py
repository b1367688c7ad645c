"""The worker: takes deliveries of its consumers, runs their handlers, and answers each exactly once per delivery.

Threads, and what each may do:

- *the consuming I/O thread* (a `Link`): deliveries in, answers out, heartbeats. Never runs a handler.
- *the publishing I/O thread* (in the `Publisher`, on its own connection): retries, dead letters, enlisted messages.
- *handler threads* (`Pool`): one delivery, or one batch, each.
- *the event loop's thread* (`EventLoop`): async handlers.
- *the main thread*: applies the topology after each connect, and waits for the signal to stop.

**The states of a delivery here.** Waiting for its handler -> handled -> settling (its publishes wait for their
confirms) -> answered. Until it is answered the broker holds it unacked, so a worker that dies at any point loses
nothing: the message is delivered again. If the connection is lost, its deliveries are void and their answers dropped.

**What is done for many at once.** Deliveries are read, handed over and acked in batches. An ack goes out when
`FLUSH_AT` of them have come together or nothing more waits; for what lies between there is the *tick*, every
`TICK_SECONDS` while there is anything without an answer. It also wakes a thread where one is stuck, publishes reports,
and from time to time looks at how long handlers take.

**Stopping.** Cancel the subscriptions; give back what has not begun; let what runs finish and settle, for
`grace_seconds` at most; ack; close. What is still unacked then goes back to the queue by the close.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from ackline.consumers.consumer import Consumer
from ackline.consumers.control import Control, Pause
from ackline.consumers.event_loop import EventLoop
from ackline.consumers.handling import Outgoing
from ackline.consumers.isolation import Isolation
from ackline.consumers.journal import private_journal
from ackline.consumers.pool import Pool
from ackline.consumers.progress import Progress
from ackline.consumers.reporting import Reports
from ackline.consumers.runner import HELD_SECONDS, REPORT_SECONDS, Item, Runner
from ackline.consumers.shard import Shard
from ackline.consumers.stopping import Stopping
from ackline.infra.connection import Connection
from ackline.infra.errors import AcklineError
from ackline.infra.link import BrokerUnreachable, Link
from ackline.infra.ready import ready
from ackline.infra.settings import process_name
from ackline.infra.topology import TopologyNotPermitted, declare
from ackline.producer.publisher import Publisher

if TYPE_CHECKING:  # it brings SQLAlchemy
    from ackline.consumers.inbox import Inbox

log = logging.getLogger(__name__)

#: Seconds between tries to apply the topology.
_RETRY_FIRST, _RETRY_MOST = 0.5, 10.0
#: Seconds for one confirm of a settlement before it is tried again.
_CONFIRM_SECONDS = 15.0
#: Seconds between two looks at what has finished.
TICK_SECONDS = 0.01
#: Ticks between two looks at how long handlers take, and at what has waited for too long.
_TICKS_TO_ADAPT, _TICKS_TO_GIVE_BACK = 10, 500


class Worker:
    """Runs the handlers of *consumers* until `stop`."""

    def __init__(
        self,
        consumers: Iterable[Consumer],
        *,
        url: str,
        concurrency: int = 8,
        prefetch: int = 500,
        grace_seconds: float = 10.0,
        consumer_timeout: float = 1800.0,
        processes: int = 1,
        read_pauses: Callable[[], Mapping[str, Pause]] | None = None,
        isolation: Isolation | None = None,
    ) -> None:
        """url: the broker. concurrency: handlers at once, in threads; and as many on the event loop.

        prefetch: unacked deliveries per consumer at most. grace_seconds: how long `stop` waits for running handlers.
        consumer_timeout: the broker's, in seconds. processes: those that share a consumer's rate, this one included.
        read_pauses: which consumers are paused, by the database; None where there is none (see `Control`).
        isolation: tells suspects of poison, and handles them apart; without it no message is one.

        Raises `ConfigurationError` for a consumer that cannot be run.
        """
        self._consumers = list(consumers)
        self._url = url
        self._concurrency = concurrency
        self._grace = grace_seconds
        self.name = process_name()
        self._publisher = Publisher(url, name="worker publishes")
        self.link = Link(
            url, f"worker consumes {self.name}", on_up=self._up, on_down=self._down, on_refused=self._refused
        )
        self.reports = Reports(self.send, self.later)
        self.progress = Progress(self.reports.add)
        self.stopping = Stopping()
        self.pool: Pool[Item] = Pool(concurrency, self._run, "handler")
        self.apart: Pool[Item] = Pool(1, self._run_apart, "suspects")
        self.isolation = isolation
        self.journal = private_journal().own if isolation is None else isolation.journal.own
        self._event_loop: EventLoop[Item] | None = None
        self._inboxes: list[Inbox] = []
        self._runners = {
            queue: (Runner if found.order is None else Shard)(
                found,
                self,
                queue=queue,
                concurrency=concurrency,
                prefetch=prefetch,
                consumer_timeout=consumer_timeout,
                processes=processes,
            )
            for found in self._consumers
            for queue in found.queue.queues
        }
        self._subscriptions = [runner.subscription for runner in self._runners.values()]
        self._control = Control(
            self.link,
            [found.name for found in self._consumers],
            worker=self.name,
            limit=lambda name, most: self.limit(name, "pause", most),
            read=read_pauses,
        )
        self._connection: Connection | None = None
        self._events: SimpleQueue[str | AcklineError] = SimpleQueue()
        self._subscribed = 0
        self._ticking = False
        self._ticks = 0
        self._stopping = False
        self._stopped = threading.Event()
        #: Those whose start is reported: what runs (by its thread or task), and since when.
        self._reported: set[tuple[int, float]] = set()

    # --- the main thread -------------------------------------------------------------------------------

    def run(self) -> None:
        """Connect, consume, and return after `stop`. The connection is kept up meanwhile.

        Raises `AcklineError` when the first connection is refused, the topology does not fit, or an inbox has no table.
        """
        self.link.start()
        first = True
        try:
            self._open_inboxes()
            while (event := self._events.get()) != "stop":
                if event == "up" and self._apply_topology(fatal=first):
                    if first:
                        self._control.start()
                    first = False
                    self.link.call(self._subscribe)
                elif isinstance(event, AcklineError) and first:
                    raise event
        finally:
            self._shut_down()

    def stop(self) -> None:
        """End `run`. From any thread, or a signal handler."""
        self._events.put("stop")

    def _apply_topology(self, *, fatal: bool) -> bool:
        """Declare the topology, so that a broker that lost its data gets it back. Whether to go on."""
        wait = _RETRY_FIRST
        while self.link.is_up:
            try:
                declare(self._url, [found.queue for found in self._consumers])
                return True
            except BrokerUnreachable as error:
                log.warning("%s Trying again in %.1f s.", error, wait)
            except TopologyNotPermitted as error:
                log.warning("%s Going on with what exists.", error)
                return True
            except AcklineError as error:
                if fatal:
                    raise
                log.error("%s Going on with what exists.", error)
                return True
            time.sleep(wait)
            wait = min(wait * 2, _RETRY_MOST)
        return False  # the next connection brings another event

    def _open_inboxes(self) -> None:
        for found in self._consumers:
            if found.inbox is not None:
                found.inbox.open(self._concurrency)
                self._inboxes.append(found.inbox)

    def _shut_down(self) -> None:
        deadline = time.monotonic() + self._grace
        self.stopping.set()
        if self.isolation is not None:
            self.isolation.stop()
        self._control.stop()
        self.link.call(self._stop_taking)
        self._stopped.wait(max(deadline - time.monotonic(), 0.0))
        if not self._stopped.is_set():
            unanswered = sum(subscription.unsettled for subscription in self._subscriptions)
            log.warning("%d deliveries did not finish in %g s; they go back to their queues", unanswered, self._grace)
        self._publisher.close(max(deadline - time.monotonic(), 0.5))
        self._on_io(self._answer_everything)
        self.link.stop()
        self.pool.stop()
        if self.isolation is not None:
            self.isolation.close()
        self.apart.stop()
        for inbox in self._inboxes:
            inbox.close()
        if self._event_loop is not None:
            self._event_loop.stop()

    def _on_io(self, function: Callable[[], None]) -> None:
        """Run *function* on the consuming I/O thread and wait for it, a second at most."""
        done = threading.Event()
        self.link.call(function)
        self.link.call(done.set)
        done.wait(1.0)

    # --- the consuming I/O thread ----------------------------------------------------------------------

    def _refused(self, reason: AcklineError) -> None:
        self._events.put(reason)

    def _up(self, connection: Connection) -> None:
        self._connection = connection
        self._events.put("up")

    def _down(self, reason: AcklineError) -> None:
        self._connection = None
        self._control.lost()
        for subscription in self._subscriptions:
            subscription.lost()

    def _subscribe(self) -> None:
        if self._connection is not None:
            self._control.open(self._connection)
            for subscription in self._subscriptions:
                subscription.open(self._connection)

    def _stop_taking(self) -> None:
        self._stopping = True
        for runner in self._runners.values():
            runner.stop()
        self.busy()

    def _answer_everything(self) -> None:
        for runner in self._runners.values():
            runner.close()

    def consuming(self) -> None:
        """See `Services`."""
        self._subscribed += 1
        if self._subscribed == len(self._subscriptions):
            log.info("consuming %s", ", ".join(found.name for found in self._consumers))
            ready()

    def busy(self) -> None:
        """See `Services`."""
        if not self._ticking:
            self._ticking = True
            self.link.later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._ticks += 1
        self.progress.tick()
        self.reports.flush()
        self.pool.tick()
        for subscription in self._subscriptions:
            subscription.flush()
        if self._ticks % _TICKS_TO_ADAPT == 0:
            self._adapt()
        if self._stopping and all(runner.has_stopped for runner in self._runners.values()):
            self._stopped.set()
        if self._stopping or any(subscription.unsettled for subscription in self._subscriptions):
            self.link.later(TICK_SECONDS, self._tick)
        else:
            self._ticking = False

    def _adapt(self) -> None:
        """Look at what runs, and at how long it has done so."""
        now = time.monotonic()
        long: Counter[Runner] = Counter()
        reported: set[tuple[int, float]] = set()
        for number, item, since in self._running():
            runner = _runner_of(item)
            long[runner] += now - since > HELD_SECONDS
            if now - since >= REPORT_SECONDS:
                reported.add((number, since))
                if (number, since) not in self._reported:
                    runner.report_begun(item, now - since)
        self._reported = reported
        self.pool.slow = any(runner.is_slow for runner in self._runners.values() if not runner.consumer.is_async)
        for runner in self._runners.values():
            runner.adapt(long[runner])
            if self._ticks % _TICKS_TO_GIVE_BACK == 0:
                runner.give_back_the_old(now)

    def _running(self) -> list[tuple[int, Item, float]]:
        """What runs now: number of its thread or task, the item, since when."""
        found = [
            (number, item, since)
            for number, (item, since) in enumerate(
                zip(self.pool.running + self.apart.running, self.pool.since + self.apart.since, strict=True)
            )
            if item is not None
        ]
        if self._event_loop is not None:
            # Another thread may change it meanwhile: CPython copies it in one step.
            running = self._event_loop.running.copy()
            found += [(-number, item, since) for number, (item, since) in running.items()]
        return found

    # --- any thread ------------------------------------------------------------------------------------

    def limit(self, consumer: str, reason: str, most: int | None) -> None:
        """At most *most* unacked deliveries for *consumer*, for that *reason*; 0: none, and what has not begun is given
        back; None lifts it. The least of all reasons' holds."""
        for runner in self._runners.values():
            if runner.consumer.name == consumer:
                self.link.call(partial(runner.limit, reason, most))

    def send(self, outgoing: Outgoing) -> Any:
        """The future of a confirm for a settlement's publish."""
        return self._publisher.send(*outgoing, timeout=_CONFIRM_SECONDS)

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Run *function* on the consuming I/O thread in *seconds*."""

        def on_io() -> None:
            self.link.later(seconds, function)

        self.link.call(on_io)

    def event_loop(self) -> EventLoop[Item]:
        """See `Services`."""
        if self._event_loop is None:
            self._event_loop = EventLoop(self._concurrency, self._arun, "handler-asyncio")
        return self._event_loop

    # --- handler threads, and the event loop -----------------------------------------------------------

    @staticmethod
    def _run(item: Item, _thread: int) -> None:
        _runner_of(item).run(item)

    @staticmethod
    def _run_apart(item: Item, _thread: int) -> None:
        _runner_of(item).run_apart(item)

    @staticmethod
    async def _arun(item: Item) -> None:
        await _runner_of(item).arun(item)


def _runner_of(item: Item) -> Runner:
    runner: Runner = (item[0] if isinstance(item, list) else item).source.owner
    return runner
