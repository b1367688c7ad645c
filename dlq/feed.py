"""What the reviewer consumes: several queues over one channel, handed over in batches, acked by their tickets.

Everything below "on the I/O thread" runs there; the rest may be called from one other thread, the reviewer's. After
each connect, and after each channel that ended, the topology is declared again before consuming begins: a broker that
lost its data, or a queue that was deleted, is put right. That takes a thread of its own, for it waits for the broker.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import pika
from pika.channel import Channel

from ackline.consumers.answers import Answers
from ackline.consumers.subscription import LINGER
from ackline.infra.errors import AcklineError
from ackline.infra.link import BrokerUnreachable, Link
from ackline.infra.properties import Properties
from ackline.infra.settings import process_name

log = logging.getLogger(__name__)

#: Seconds between tries to declare the topology and to consume.
_AGAIN_FIRST, _AGAIN_MOST = 0.5, 10.0


class Arrival(NamedTuple):
    """A delivery, and the broker's handle on it: a tag belongs to its channel, so the channel's number goes with it."""

    generation: int
    tag: int
    queue: str
    exchange: str | bytes
    routing_key: str | bytes
    properties: Properties
    body: bytes


class Feed:
    """Consumes *queues* until it is stopped, whatever becomes of the connection."""

    def __init__(self, url: str, queues: Mapping[str, int], *, declare: Callable[[], object]) -> None:
        """queues: how many unacked deliveries of each to hold in memory at most.

        declare: puts the topology right; raises `BrokerUnreachable` when it should be tried again.
        """
        self._queues = queues
        self._declare = declare
        self._link = Link(
            url, f"reviewer {process_name()}", on_up=self._up, on_down=self._down, on_refused=self._refused
        )
        self._changed = threading.Condition()
        self._arrived: deque[Arrival] = deque()
        self._begun = False
        self._fatal: AcklineError | None = None
        self._stopping = threading.Event()
        #: Seconds that the broker took to end the subscriptions.
        self._latency = 0.0
        # The I/O thread's own:
        self._generation = 0
        self._channel: Channel | None = None
        self._answers: Answers | None = None
        self._consuming = 0
        self._again_in = _AGAIN_FIRST

    # --- from the reviewer's thread --------------------------------------------------------------------

    def start(self, timeout: float) -> None:
        """Connect and wait until consuming has begun.

        Raises what stands in the way: at once if the broker refuses, after *timeout* seconds if it does not answer.
        """
        self._link.start()
        with self._changed:
            self._changed.wait_for(lambda: self._begun or self._fatal is not None, timeout)
            if self._fatal is not None:
                raise self._fatal
            if not self._begun:
                raise self._link.error or BrokerUnreachable("RabbitMQ answers, but does not let the reviewer consume.")

    def take(self, limit: int, max_bytes: int, linger: float, timeout: float) -> list[Arrival]:
        """What has arrived, in order: up to *limit* deliveries of up to *max_bytes* bytes together, at least one.

        Waits *timeout* seconds for the first and *linger* seconds for more. Empty when none came.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._arrived, timeout)
            if not self._arrived:
                return []
        until = time.monotonic() + linger
        while len(self._arrived) < limit and (left := until - time.monotonic()) > 0 and not self._stopping.is_set():
            time.sleep(min(left, 0.005))
        batch: list[Arrival] = []
        size = 0
        while self._arrived and len(batch) < limit and (not batch or size < max_bytes):
            batch.append(self._arrived.popleft())
            size += len(batch[-1].body)
        return [arrival for arrival in batch if self.is_current(arrival)]

    def is_current(self, arrival: Arrival) -> bool:
        """Whether the broker still waits for an answer; otherwise it delivers the message again."""
        return arrival.generation == self._generation

    def ack(self, arrivals: Iterable[Arrival]) -> None:
        """These are done with."""
        self._link.call(partial(self._ack, [(arrival.generation, arrival.tag) for arrival in arrivals]))

    def give_back(self, arrivals: Iterable[Arrival], seconds: float) -> None:
        """Return these to their queues in *seconds*, to be delivered again."""
        tickets = [(arrival.generation, arrival.tag) for arrival in arrivals]

        def on_io() -> None:
            self._link.later(seconds, partial(self._nack, tickets))

        self._link.call(on_io)

    def pause(self, timeout: float) -> None:
        """Take no more deliveries; those that have arrived can still be taken and acked."""
        self._stopping.set()
        done = threading.Event()
        since = time.monotonic()
        self._link.call(partial(self._cancel, done.set))
        done.wait(timeout)
        self._latency = time.monotonic() - since

    def stop(self, timeout: float) -> None:
        """Give back what is unacked, and disconnect."""
        self._stopping.set()
        self._link.call(self._give_back_everything)
        time.sleep(min(LINGER * self._latency, timeout))
        self._link.stop(timeout)

    # --- on the thread that declares -------------------------------------------------------------------

    def _prepare(self, connection: pika.SelectConnection, generation: int, wait: float) -> None:
        """Declare the topology, then have the I/O thread open a channel, if the connection is still the one."""
        self._stopping.wait(wait)
        while not self._stopping.is_set() and generation == self._generation:
            try:
                self._declare()
            except BrokerUnreachable as error:
                log.warning("%s Trying again in %g s.", error, _AGAIN_MOST)
                self._stopping.wait(_AGAIN_MOST if self._begun else _AGAIN_FIRST)
                continue
            except AcklineError as error:
                if not self._begun:
                    self._refused(error)
                    return
                log.error("%s Going on with what exists.", error)
            except Exception:
                log.exception("the topology could not be declared; going on with what exists")
            self._link.call(partial(self._open, connection, generation))
            return

    # --- on the I/O thread -----------------------------------------------------------------------------

    def _refused(self, reason: AcklineError) -> None:
        with self._changed:
            if not self._begun:
                self._fatal = reason
                self._changed.notify_all()

    def _up(self, connection: pika.SelectConnection) -> None:
        self._begin_again(connection, 0.0)

    def _down(self, reason: AcklineError) -> None:
        self._forget()

    def _forget(self) -> None:
        """The channel is gone: its tags mean nothing any more."""
        self._generation += 1
        self._channel = None
        self._answers = None
        self._consuming = 0

    def _begin_again(self, connection: pika.SelectConnection, wait: float) -> None:
        self._forget()
        arguments = (connection, self._generation, wait)
        threading.Thread(target=self._prepare, args=arguments, name="reviewer-topology", daemon=True).start()

    def _open(self, connection: pika.SelectConnection, generation: int) -> None:
        if connection.is_open and generation == self._generation and not self._stopping.is_set():
            connection.channel(on_open_callback=self._opened)

    def _opened(self, channel: Channel) -> None:
        self._channel = channel
        self._answers = Answers(self._link, channel)
        channel.add_on_close_callback(self._closed)
        channel.add_on_cancel_callback(self._cancelled)
        for queue, prefetch in self._queues.items():
            channel.basic_qos(prefetch_count=prefetch)  # it holds for the consumer that is begun next
            channel.basic_consume(queue, partial(self._on_message, queue), callback=self._consumes)

    def _consumes(self, _frame: Any) -> None:
        self._consuming += 1
        if self._consuming == len(self._queues):
            self._again_in = _AGAIN_FIRST
            log.info("consuming %s", ", ".join(self._queues))
            with self._changed:
                self._begun = True
                self._changed.notify_all()

    def _cancelled(self, frame: Any) -> None:
        log.warning("RabbitMQ ended a subscription (a queue was deleted, or its leader moved); beginning again")
        if self._channel is not None and self._channel.is_open:
            self._channel.close()

    def _closed(self, channel: Channel, reason: Any) -> None:
        if channel is not self._channel:
            return
        connection = channel.connection
        if self._stopping.is_set() or not connection.is_open:
            self._forget()
            return
        if reason.reply_code not in (0, 200):
            log.error("the reviewer's channel was closed: %s; beginning again", reason.reply_text)
        self._begin_again(connection, self._again_in)
        self._again_in = min(self._again_in * 2, _AGAIN_MOST)

    def _on_message(self, queue: str, channel: Channel, method: Any, properties: Any, body: bytes) -> None:
        if channel is not self._channel or self._answers is None:
            return
        self._answers.delivered(method.delivery_tag)
        arrival = Arrival(
            self._generation, method.delivery_tag, queue, method.exchange, method.routing_key, properties, body
        )
        self._arrived.append(arrival)
        if len(self._arrived) == 1:
            with self._changed:
                self._changed.notify_all()

    def _ack(self, tickets: list[tuple[int, int]]) -> None:
        if self._answers is not None:
            for generation, tag in tickets:
                if generation == self._generation:
                    self._answers.ack(tag)
            self._answers.send()

    def _nack(self, tickets: list[tuple[int, int]]) -> None:
        for generation, tag in tickets:
            if self._answers is not None and generation == self._generation:
                self._answers.give_back(tag)

    def _cancel(self, done: Callable[[], None]) -> None:
        """End all subscriptions; *done* is called when the broker has."""
        tags = set(self._channel.consumer_tags) if self._channel is not None and self._channel.is_open else set()
        if self._channel is None or not tags:
            done()
            return

        def ended(tag: str, _frame: Any) -> None:
            tags.discard(tag)
            if not tags:
                done()

        for tag in list(tags):
            self._channel.basic_cancel(tag, partial(ended, tag))

    def _give_back_everything(self) -> None:
        if self._channel is not None and self._channel.is_open and self._answers is not None:
            self._answers.send_all()
            # A close would count as a delivery for each that is unacked; on 4.3 a nack does not.
            self._channel.basic_nack(0, multiple=True, requeue=True)
