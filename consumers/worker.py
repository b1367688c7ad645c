"""The worker: takes deliveries of its consumers, runs their handlers, and answers each exactly once per delivery.

Threads, and what each may do:

- *the consuming I/O thread* (a `Link`): deliveries in, answers out, heartbeats. Never runs a handler.
- *the publishing I/O thread* (in the `Publisher`, on its own connection): retries, dead letters, enlisted messages.
- *handler threads* (`Pool`): one delivery each, from `handle` to a `Settlement`.
- *the main thread*: applies the topology after each connect, and waits for the signal to stop.

**The states of a delivery here.** Waiting for a thread -> handled by a thread -> settling (its publishes wait for
their confirms) -> answered. Until it is answered the broker holds it unacked, so a worker that dies at any point loses
nothing: the message is delivered again. If the connection is lost, tickets of it are void and their answers dropped.

**Stopping.** Cancel the subscriptions; give back what waits for a thread; let what runs finish and settle, for
`grace_seconds` at most; ack; close. What is still unacked then goes back to the queue by the close.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from queue import SimpleQueue
from typing import Any

import pika
from pydantic import BaseModel

from ackline.consumers.consumer import Consumer
from ackline.consumers.context import Context
from ackline.consumers.handling import Delivery, Outgoing, Settlement, handle
from ackline.consumers.pool import Pool
from ackline.consumers.running import Running
from ackline.consumers.subscription import Subscription, Ticket
from ackline.infra.errors import AcklineError
from ackline.infra.link import BrokerUnreachable, Link
from ackline.infra.ready import ready
from ackline.infra.settings import process_name
from ackline.infra.topology import TopologyNotPermitted, declare
from ackline.producer.errors import MessageTooLarge
from ackline.producer.publisher import Publisher

log = logging.getLogger(__name__)

#: Seconds between tries of a publish that a settlement needs, and of the topology.
_RETRY_FIRST, _RETRY_MOST = 0.5, 10.0
#: Seconds for one confirm of a settlement before it is tried again.
_CONFIRM_SECONDS = 15.0


class Worker:
    """Runs the handlers of *consumers* until `stop`."""

    def __init__(
        self,
        consumers: Iterable[Consumer],
        *,
        url: str,
        concurrency: int = 8,
        prefetch: int = 100,
        grace_seconds: float = 10.0,
    ) -> None:
        """url: the broker. concurrency: handlers at once. prefetch: unacked deliveries per consumer.

        grace_seconds: how long `stop` waits for running handlers.
        """
        self._consumers = list(consumers)
        self._url = url
        self._grace = grace_seconds
        self.name = process_name()
        self._publisher = Publisher(url, name="worker publishes")
        self._link = Link(
            url, f"worker consumes {self.name}", on_up=self._up, on_down=self._down, on_refused=self._refused
        )
        self._running = Running(self.send, self.later)
        self._pool: Pool[tuple[Subscription, Ticket, Delivery]] = Pool(concurrency, self._run, "handler")
        self._subscriptions = [
            Subscription(found, self._link, prefetch=prefetch, deliver=self._deliver, consuming=self._consuming)
            for found in self._consumers
        ]
        self._connection: pika.SelectConnection | None = None
        self._events: SimpleQueue[str | AcklineError] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._subscribed = 0
        self._idle = threading.Condition()
        self._busy = 0  # deliveries from their hand-over to a thread until they are answered

    # --- the main thread -------------------------------------------------------------------------------

    def run(self) -> None:
        """Connect, consume, and return after `stop`. The connection is kept up meanwhile.

        Raises `AcklineError` when the first connection is refused or the topology does not fit.
        """
        if any(found.is_async for found in self._consumers):
            self._start_loop()
        self._link.start()
        first = True
        try:
            while (event := self._events.get()) != "stop":
                if event == "up" and self._apply_topology(fatal=first):
                    first = False
                    self._link.call(self._subscribe)
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
        while self._link.is_up:
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

    def _shut_down(self) -> None:
        deadline = time.monotonic() + self._grace
        self._on_io(self._stop_subscriptions)  # nothing is handed to the pool after this
        for subscription, ticket, _ in self._pool.stop():
            subscription.give_back(ticket)
            self.answered()
        with self._idle:
            self._idle.wait_for(lambda: not self._busy, deadline - time.monotonic())
        if self._busy:
            log.warning("%d deliveries did not finish in %g s; they go back to their queues", self._busy, self._grace)
        self._publisher.close(max(deadline - time.monotonic(), 0.5))
        self._on_io(self._answer_everything)
        self._link.stop()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _on_io(self, function: Callable[[], None]) -> None:
        """Run *function* on the consuming I/O thread and wait for it, a second at most."""
        done = threading.Event()
        self._link.call(function)
        self._link.call(done.set)
        done.wait(1.0)

    # --- the consuming I/O thread ----------------------------------------------------------------------

    def _refused(self, reason: AcklineError) -> None:
        self._events.put(reason)

    def _up(self, connection: pika.SelectConnection) -> None:
        self._connection = connection
        self._events.put("up")

    def _down(self, reason: AcklineError) -> None:
        self._connection = None
        for subscription in self._subscriptions:
            subscription.lost()

    def _subscribe(self) -> None:
        if self._connection is not None:
            for subscription in self._subscriptions:
                subscription.open(self._connection)

    def _stop_subscriptions(self) -> None:
        for subscription in self._subscriptions:
            subscription.stop()

    def _answer_everything(self) -> None:
        for subscription in self._subscriptions:
            subscription.flush()

    def _consuming(self) -> None:
        self._subscribed += 1
        if self._subscribed == len(self._subscriptions):
            log.info("consuming %s", ", ".join(found.name for found in self._consumers))
            ready()

    def _deliver(self, subscription: Subscription, ticket: Ticket, delivery: Delivery) -> None:
        with self._idle:
            self._busy += 1
        self._pool.submit((subscription, ticket, delivery))

    # --- handler threads -------------------------------------------------------------------------------

    def _run(self, item: tuple[Subscription, Ticket, Delivery]) -> None:
        subscription, ticket, delivery = item
        if not subscription.is_current(ticket):
            self.answered()  # the connection was lost while it waited; the broker delivers it again
            return
        try:
            settlement = handle(
                subscription.consumer, delivery, worker=self.name, call=self._call, running=self._running
            )
        except Exception:
            log.exception("%s: a delivery could not be settled; rejected, to review", subscription.consumer.name)
            settlement = Settlement(reject=True)
        _Settling(self, subscription, ticket, settlement).begin()

    def _call(self, consumer: Consumer, message: BaseModel, context: Context) -> None:
        result = consumer.handler(message, context) if consumer.takes_context else consumer.handler(message)
        if consumer.is_async:
            assert self._loop is not None  # noqa: S101
            error = asyncio.run_coroutine_threadsafe(_error_of(result), self._loop).result()
            if error is not None:
                raise error
        elif inspect.iscoroutine(result):
            result.close()
            raise TypeError("the handler returned a coroutine that nobody awaits: declare it with `async def`")

    def _start_loop(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run_loop, args=(self._loop,), name="handler-asyncio", daemon=True).start()

    def _run_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_forever()
        loop.close()

    # --- any thread ------------------------------------------------------------------------------------

    def answered(self) -> None:
        """A delivery that was handed over is done with."""
        with self._idle:
            self._busy -= 1
            if not self._busy:
                self._idle.notify_all()

    def send(self, outgoing: Outgoing) -> Any:
        """The future of a confirm for a settlement's publish."""
        return self._publisher.send(*outgoing, timeout=_CONFIRM_SECONDS)

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Run *function* on the consuming I/O thread in *seconds*."""

        def on_io() -> None:
            self._link.later(seconds, function)

        self._link.call(on_io)


async def _error_of(handling: Awaitable[Any]) -> BaseException | None:
    """What *handling* raised. As a value: a SystemExit that leaves a task ends the event loop of all handlers."""
    try:
        await handling
    except BaseException as error:
        return error
    return None


class _Settling:
    """Publishes what a delivery needs, and answers it when everything is confirmed; never before.

    A publish that fails is tried again for as long as the ticket is good. When it is not, the broker delivers the
    message again, and this is dropped.
    """

    def __init__(self, worker: Worker, subscription: Subscription, ticket: Ticket, settlement: Settlement) -> None:
        self._worker = worker
        self._subscription = subscription
        self._ticket = ticket
        self._settlement = settlement
        self._left = len(settlement.outgoing)
        self._report = settlement.report
        self._over = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        if self._settlement.reject:
            self._answer(self._subscription.reject)
        elif not self._left:
            self._all_sent()
        else:
            for outgoing in self._settlement.outgoing:
                self._send(outgoing, _RETRY_FIRST)

    def _send(self, outgoing: Outgoing, wait: float) -> None:
        if not self._subscription.is_current(self._ticket):
            self._answer(None)
            return
        self._worker.send(outgoing).add_done_callback(partial(self._sent, outgoing, wait))

    def _sent(self, outgoing: Outgoing, wait: float, future: Any) -> None:
        error = future.exception()
        if error is None:
            with self._lock:
                self._left -= 1
                done = self._left == 0
            if done:
                self._all_sent()
        elif isinstance(error, MessageTooLarge):
            self._cannot_be_sent(error)
        else:
            log.warning(
                "%s: what follows from a delivery is not confirmed, so it stays unacked; trying again in %g s: %s",
                self._subscription.consumer.name,
                wait,
                error,
            )
            self._worker.later(wait, partial(self._send, outgoing, min(wait * 2, _RETRY_MOST)))

    def _all_sent(self) -> None:
        """What follows from the delivery is confirmed: report it, then ack."""
        report, self._report = self._report, None
        if report is None:
            self._answer(self._subscription.finish)
            return
        self._left = 1
        self._send(report, _RETRY_FIRST)

    def _cannot_be_sent(self, error: BaseException) -> None:
        fallback = self._settlement.fallback
        instead = fallback(error) if fallback is not None else Settlement(reject=True)
        if self._end():
            _Settling(self._worker, self._subscription, self._ticket, instead).begin()

    def _answer(self, how: Callable[[Ticket], None] | None) -> None:
        if self._end():
            if how is not None:
                how(self._ticket)
            self._worker.answered()

    def _end(self) -> bool:
        """Whether this call is the one that ends it: several publishes of one delivery may fail at once."""
        with self._lock:
            ended, self._over = not self._over, True
        return ended
