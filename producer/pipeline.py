"""Messages on their way to the broker, and an answer for each of them.

**What a confirm is worth.** A message is *confirmed* when RabbitMQ has it on the disks of a quorum, in every queue that
it was routed to. Until then it may be anywhere. Four things can come instead of the confirm:

- *a return*, directly before the confirm of the same message: it was routed nowhere. `ackline.messages` has an
  alternate exchange that takes what nobody consumes, so a return means a broken topology: `Unroutable`.
- *a nack*: the broker refuses responsibility (a queue is full): `Nacked`.
- *a lost connection*: whether the message arrived is unknown. It is sent again under the same id as soon as the broker
  answers, in the order of publishing, until its deadline: `PublishTimeout`. This can duplicate, never lose.
- *a closed channel*: the broker found fault with one of the messages in flight and does not say with which. They are
  sent again one at a time until it closes again; the one that was alone is the one, and gets the reason.

**Threads.** Any number of threads call `put`. They append to a queue and wake the I/O thread once per batch; the I/O
thread alone touches the channel and the table of what is in flight.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError, wait
from typing import Any

import pika
from pika.channel import Channel

from ackline.infra.errors import AcklineError
from ackline.infra.link import Link
from ackline.infra.properties import Properties
from ackline.infra.table import text
from ackline.infra.wire import FRAME_MAX, fits_into_a_frame
from ackline.producer.errors import (
    MessageTooLarge,
    Nacked,
    NotPermitted,
    PublishBlocked,
    PublisherClosed,
    PublishError,
    PublishTimeout,
    Unroutable,
)

#: Seconds between looks for messages past their deadline.
_SWEEP = 0.1
#: AMQP reply codes that close a channel for the fault of one message.
_ACCESS_REFUSED, _NOT_FOUND, _PRECONDITION_FAILED = 403, 404, 406


class Sending:
    """A message on its way: queued, or in flight and waiting for its confirm."""

    __slots__ = ("body", "deadline", "exchange", "future", "properties", "result", "returned", "routing_key", "sent")

    def __init__(
        self, exchange: str, routing_key: str, properties: Properties, body: bytes, deadline: float, result: Any
    ) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.properties = properties
        self.body = body
        self.deadline = deadline
        self.result = result
        self.future: Future[Any] = Future()
        self.returned: str | None = None
        self.sent = False

    @property
    def message_id(self) -> str | None:
        return text(self.properties.message_id) if self.properties.message_id else None

    def fail(self, error: PublishError) -> None:
        if not self.future.done():
            error.message_id = self.message_id
            with contextlib.suppress(InvalidStateError):  # cancelled by its owner meanwhile
                self.future.set_exception(error)

    def confirm(self) -> None:
        if not self.future.done():
            try:  # noqa: SIM105 - the hot path
                self.future.set_result(self.result)
            except InvalidStateError:  # cancelled by its owner meanwhile
                pass


class Pipeline:
    """Publishes what it is given on a connection of its own, and answers each message by its future.

    Unbounded: who puts messages in bounds how many are under way.
    """

    def __init__(self, url: str, name: str) -> None:
        """url: the broker. name: of the connection, as the management UI shows it."""
        self.link = Link(url, name, on_up=self._up, on_down=self._down)
        self._start_lock = threading.Lock()
        self._queue: deque[Sending] = deque()
        self._in_flight: dict[int, Sending] = {}
        self._channel: Channel | None = None
        self._next_tag = 1
        self._ready = False
        self._alone = 0
        self._returns: list[tuple[bytes | None, str, str, str]] = []
        self._woken = False
        self._started = False
        self._closed = False

    # --- from any thread -------------------------------------------------------------------------------

    def put(self, sending: Sending) -> None:
        """Publish *sending*; returns at once. Its future has the answer, by its deadline or soon after."""
        if not fits_into_a_frame(sending.properties, self.link.frame_max):
            sending.fail(_too_large(self.link.frame_max))
        elif self._closed:
            sending.fail(PublisherClosed("The publisher is closed; the message was not sent."))
        else:
            self.start()
            self._queue.append(sending)
            self._wake()
            if self._closed:  # by another thread meanwhile, which may have looked at the queue before this
                sending.fail(PublisherClosed("The publisher was closed meanwhile; the message was not sent."))

    def start(self) -> None:
        """Begin to connect, and return at once."""
        if not self._started:
            with self._start_lock:
                if not self._started:
                    self._started = True
                    self.link.start()
                    self.link.call(self._sweep)

    @property
    def problem(self) -> str | None:
        """Why a message that is put in now would have to wait, in a sentence; None when it would not."""
        if self.link.error is not None:
            return str(self.link.error)
        if self.link.blocked:
            return f"RabbitMQ blocks publishing: {self.link.blocked}."
        return None

    @property
    def why_waiting(self) -> str:
        """Why a confirm has not come yet, in a sentence."""
        return self.problem or "RabbitMQ is connected but has not answered."

    def pending(self) -> list[Sending]:
        """What has no answer yet."""
        # Another thread may append meanwhile: CPython unpacks both in one step each.
        return [sending for sending in [*self._queue, *self._in_flight.values()] if not sending.future.done()]

    def close(self, timeout: float) -> None:
        """Wait until everything has its answer, *timeout* seconds at most, then disconnect; the rest fails."""
        if self._closed:
            return
        deadline = time.monotonic() + timeout
        while (pending := self.pending()) and (left := deadline - time.monotonic()) > 0:
            wait([sending.future for sending in pending], left)
        self._closed = True
        self.link.stop()
        for sending in self.pending():
            sending.fail(PublisherClosed("The publisher was closed before the confirm came: it may have arrived."))

    def _wake(self) -> None:
        # One wake-up per batch. Racing threads may wake twice, which costs little; never zero times, because the
        # flag is lowered before the queue is read.
        if not self._woken:
            self._woken = True
            self.link.call(self._drain)

    # --- on the I/O thread -----------------------------------------------------------------------------

    def _up(self, connection: pika.SelectConnection) -> None:
        self._open_channel(connection)

    def _open_channel(self, connection: pika.SelectConnection) -> None:
        self._channel = None
        self._ready = False
        connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Channel) -> None:
        self._channel = channel
        self._next_tag = 1
        self._returns.clear()
        channel.add_on_close_callback(self._channel_closed)
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, callback=self._channel_ready)

    def _channel_ready(self, _frame: Any) -> None:
        self._ready = True
        self._drain()

    def _down(self, reason: AcklineError) -> None:
        self._requeue()

    def _requeue(self) -> None:
        """The channel is gone: what has no confirm goes back to the head of the queue, in the order of publishing."""
        self._channel = None
        self._ready = False
        waiting = [sending for sending in self._in_flight.values() if not sending.future.done()]
        self._in_flight = {}
        self._queue.extendleft(reversed(waiting))

    def _channel_closed(self, channel: Channel, reason: Any) -> None:
        if channel is not self._channel:
            return
        suspects = [sending for sending in self._in_flight.values() if not sending.future.done()]
        self._requeue()
        if not channel.connection.is_open:
            return
        if len(suspects) == 1:
            self._queue.popleft().fail(_fault(reason.reply_code, reason.reply_text, suspects[0]))
        # Until that many have been answered, one at a time: see "a closed channel" above.
        self._alone = max(self._alone - 1, 0) if len(suspects) == 1 else len(suspects)
        self._open_channel(channel.connection)

    def _drain(self) -> None:
        self._woken = False
        channel = self._channel
        if not self._ready or channel is None or self.link.blocked:
            return
        queue = self._queue
        frame_max = self.link.frame_max
        while queue and not (self._alone and self._in_flight):
            sending = queue.popleft()
            if sending.future.done():
                continue
            # Queued before the broker said that it takes smaller frames than usual.
            if frame_max < FRAME_MAX and not fits_into_a_frame(sending.properties, frame_max):
                sending.fail(_too_large(frame_max))
                continue
            self._in_flight[self._next_tag] = sending
            self._next_tag += 1
            sending.sent = True
            # `Properties` stands where pika has its own; see `ackline.infra.properties`.
            properties: Any = sending.properties
            channel.basic_publish(sending.exchange, sending.routing_key, sending.body, properties, mandatory=True)

    def _on_return(self, channel: Channel, method: Any, properties: Any, body: bytes) -> None:
        reason = f"{method.reply_code} {method.reply_text}"
        self._returns.append((properties.message_id, method.exchange, method.routing_key, reason))

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        tag: int = method.delivery_tag
        if method.multiple:
            tags = []
            for known in self._in_flight:
                if known > tag:
                    break
                tags.append(known)
        else:
            tags = [tag]
        settled = [sending for known in tags if (sending := self._in_flight.pop(known, None)) is not None]
        if self._returns:
            self._match_returns(settled)
        nacked = isinstance(method, pika.spec.Basic.Nack)
        for sending in settled:
            if sending.returned:
                sending.fail(_unroutable(sending))
            elif nacked:
                sending.fail(
                    Nacked(
                        f"RabbitMQ refused the message for {sending.routing_key!r} (nack): a queue it goes to is full "
                        "or not available."
                    )
                )
            else:
                sending.confirm()
        if self._alone:
            self._alone = max(self._alone - len(settled), 0)
            self._drain()
        elif self._queue and not self._woken:
            self._drain()

    def _match_returns(self, settled: list[Sending]) -> None:
        """Mark those of *settled* that were returned: the broker sends a return before the confirm, without its tag."""
        for sending in settled:
            key = (sending.properties.message_id, sending.exchange, sending.routing_key)
            for index, (message_id, exchange, routing_key, reason) in enumerate(self._returns):
                if (message_id, exchange, routing_key) == key:
                    sending.returned = reason
                    del self._returns[index]
                    break

    def _sweep(self) -> None:
        """Fail what is past its deadline, and look again soon."""
        if self._closed:
            return
        now = time.monotonic()
        for sending in self.pending():
            if sending.deadline <= now:
                sending.fail(self._timed_out(sending))
        if self._queue:
            self._drain()  # an alarm that ended does not wake us otherwise
        self.link.later(_SWEEP, self._sweep)

    def _timed_out(self, sending: Sending) -> PublishTimeout:
        known = "It may have arrived: publish again under the same id." if sending.sent else "It was not sent."
        kind = PublishBlocked if self.link.blocked else PublishTimeout
        return kind(f"No confirm in time: {self.why_waiting} {known}")


def _too_large(frame_max: int) -> MessageTooLarge:
    return MessageTooLarge(f"Its headers do not fit into an AMQP frame ({frame_max:,} bytes); it was not sent.")


def _unroutable(sending: Sending) -> Unroutable:
    return Unroutable(
        f"RabbitMQ returned the message ({sending.returned}): exchange {sending.exchange!r} routes "
        f"{sending.routing_key!r} nowhere. `ackline topology diff` says what is missing."
    )


def _fault(code: int, words: str, sending: Sending) -> PublishError:
    """Why the broker closed the channel on this message, which was alone in flight."""
    if code == _NOT_FOUND:
        return Unroutable(f"RabbitMQ has no exchange {sending.exchange!r}: `ackline topology apply` creates it.")
    if code == _ACCESS_REFUSED:
        return NotPermitted(f"RabbitMQ does not permit this user to publish to {sending.exchange!r}: {words}.")
    if code == _PRECONDITION_FAILED and "larger than" in words:
        return MessageTooLarge(f"RabbitMQ does not take a message of {len(sending.body):,} bytes: {words}.")
    return NotPermitted(f"RabbitMQ refused the message: {code} {words}.")
