"""One consumer's channel: consuming with manual acks, and coming back from whatever ends it.

Everything here runs on the link's I/O thread but `finish`, `reject` and `give_back`, which any thread may call.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import pika
from pika.channel import Channel

from ackline.consumers.answers import Answers
from ackline.consumers.consumer import Consumer
from ackline.consumers.handling import Delivery
from ackline.infra.link import Link
from ackline.infra.table import text

log = logging.getLogger(__name__)

#: Seconds before a queue that is gone is looked for again.
REOPEN_SECONDS = 2.0
#: Seconds that the broker gets to answer a subscription.
ANSWER_SECONDS = 20.0
_NOT_FOUND = 404


class Ticket(NamedTuple):
    """The broker's handle on one delivery. A tag belongs to its channel, so the channel's number goes with it."""

    generation: int
    tag: int


class Subscription:
    """Consumes the queue of *consumer* and hands each delivery with its ticket to *deliver*."""

    def __init__(
        self,
        consumer: Consumer,
        link: Link,
        *,
        prefetch: int,
        deliver: Callable[[Subscription, Ticket, Delivery], None],
        consuming: Callable[[], None],
    ) -> None:
        """prefetch: unacked deliveries at most. consuming: called each time that the broker has begun to deliver."""
        self.consumer = consumer
        self._link = link
        self._prefetch = prefetch
        self._deliver = deliver
        self._consuming = consuming
        self._channel: Channel | None = None
        self._tag: str | None = None
        self._answers: Answers | None = None
        self._generation = 0
        self._given: deque[tuple[Callable[[Answers, int], None], Ticket]] = deque()
        self._woken = False
        self._stopping = False
        self._missing = False
        self._unanswered: int | None = None

    # --- from any thread -------------------------------------------------------------------------------

    def finish(self, ticket: Ticket) -> None:
        """Ack this delivery."""
        self._answer(Answers.ack, ticket)

    def reject(self, ticket: Ticket) -> None:
        """Have the broker dead-letter this delivery."""
        self._answer(Answers.reject, ticket)

    def give_back(self, ticket: Ticket) -> None:
        """Return this delivery, which was not begun, to its queue. Counts as no attempt."""
        self._answer(Answers.give_back, ticket)

    def is_current(self, ticket: Ticket) -> bool:
        """Whether the broker still waits for an answer on this ticket; otherwise it delivers the message again."""
        return ticket.generation == self._generation

    def _answer(self, how: Callable[[Answers, int], None], ticket: Ticket) -> None:
        self._given.append((how, ticket))
        if not self._woken:
            self._woken = True
            self._link.call(self._flush)

    # --- on the I/O thread -----------------------------------------------------------------------------

    def open(self, connection: pika.SelectConnection) -> None:
        """Begin to consume on a new channel of *connection*."""
        if not self._stopping and connection.is_open and self._channel is None:
            # Known from now on, before it is open: a second one would count its tags from 1 as well.
            self._channel = connection.channel(on_open_callback=self._opened)
            self._channel.add_on_close_callback(self._closed)
            self._answers = Answers(self._link, self._channel)

    def lost(self) -> None:
        """The connection is gone: forget the tags."""
        self._forget()

    def stop(self) -> None:
        """Take no more deliveries; what is on its way is given back."""
        self._stopping = True
        if self._channel is not None and self._channel.is_open and self._tag is not None:
            self._channel.basic_cancel(self._tag)

    def _forget(self) -> None:
        self._generation += 1
        self._channel = None
        self._tag = None
        self._answers = None

    def _opened(self, channel: Channel) -> None:
        if self._stopping:
            channel.close()
            return
        channel.add_on_cancel_callback(self._cancelled)
        channel.basic_qos(prefetch_count=self._prefetch)
        self._tag = channel.basic_consume(self.consumer.name, self._on_message, callback=self._began)
        generation = self._generation
        self._unanswered = generation
        self._link.later(ANSWER_SECONDS, lambda: self._look_for_answer(generation))

    def _look_for_answer(self, generation: int) -> None:
        """Begin anew when the broker has not answered: a quorum queue that had no leader yet may never do it."""
        if generation == self._unanswered and generation == self._generation and not self._stopping:
            self._link.drop(f"no answer to the subscription of {self.consumer.name!r} in {ANSWER_SECONDS:g} s")

    def _began(self, _frame: Any) -> None:
        self._unanswered = None
        if self._missing:
            log.info("the queue %r is there again; consuming", self.consumer.name)
        self._missing = False
        self._consuming()

    def _cancelled(self, _frame: Any) -> None:
        """The broker ended the subscription: the queue was deleted, its leader moved, or a delivery timed out."""
        log.warning("RabbitMQ ended the subscription of %r; subscribing again", self.consumer.name)
        if self._channel is not None and self._channel.is_open:
            self._channel.close()

    def _closed(self, channel: Channel, reason: Any) -> None:
        if channel is not self._channel:
            return
        self._forget()
        if self._stopping or not channel.connection.is_open:
            return
        if reason.reply_code == _NOT_FOUND:
            # Whoever deleted it may have meant it, so it is not created again behind their back.
            if not self._missing:
                log.error(
                    "the queue %r is gone; waiting until it is there again (`ackline topology apply`, or a restart, "
                    "creates it)",
                    self.consumer.name,
                )
            self._missing = True
        elif reason.reply_code not in (0, 200):
            log.error("the channel of %r was closed: %s", self.consumer.name, reason.reply_text)
        connection = channel.connection
        self._link.later(REOPEN_SECONDS if self._missing else 0.1, lambda: self.open(connection))

    def _on_message(self, channel: Channel, method: Any, properties: Any, body: bytes) -> None:
        if self._answers is not None:
            self._answers.delivered(method.delivery_tag)
        ticket = Ticket(self._generation, method.delivery_tag)
        if self._stopping:
            self.give_back(ticket)
            return
        self._deliver(self, ticket, Delivery(_name(method.exchange), _name(method.routing_key), properties, body))

    def flush(self) -> None:
        """Send every answer now, without waiting for a run."""
        self._flush()
        if self._answers is not None:
            self._answers.send_all()

    def _flush(self) -> None:
        """Send the answers that have come together."""
        self._woken = False
        answers = self._answers
        while self._given:
            how, ticket = self._given.popleft()
            if answers is not None and self.is_current(ticket):  # else the broker has taken it back already
                how(answers, ticket.tag)
        if answers is not None:
            answers.send()


def _name(value: Any) -> str:
    """A name from pika, which gives bytes for what is not UTF-8."""
    return text(value) if isinstance(value, bytes) else str(value)
