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

**Where it runs.** On an I/O thread, for any number of threads; or on an asyncio loop, for the tasks of that loop. Who
calls `put` appends to a queue and wakes the loop once per batch; the loop alone touches the channel and the table of
what is in flight. The frames of a batch are written as one piece of bytes, and the acks that arrive together answered
together (`ackline.infra.frames`): that, not the broker, is what decides how fast it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, InvalidStateError, wait
from typing import Any, Protocol

import pika
from pika.channel import Channel

from ackline.infra.connection import Connection
from ackline.infra.errors import AcklineError
from ackline.infra.frames import add_message
from ackline.infra.link import Link
from ackline.infra.properties import Properties
from ackline.infra.table import text
from ackline.infra.wire import FRAME_MAX, HEADER_FRAME_OVERHEAD
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
#: Bytes that are given to the socket at once: more than its buffer takes would be copied again for what is left.
_WRITE_SIZE = 64 * 1024
#: AMQP reply codes that close a channel for the fault of one message.
_ACCESS_REFUSED, _NOT_FOUND, _PRECONDITION_FAILED = 403, 404, 406

#: Its task was cancelled, its deadline passed, or the publisher was closed meanwhile.
_SETTLED = (InvalidStateError, asyncio.InvalidStateError)


class Places(Protocol):
    """A window, as a pipeline sees it."""

    def give(self, places: int) -> None:
        """Give places back."""


class Sending:
    """A message on its way: queued, or in flight and waiting for its confirm."""

    __slots__ = (
        "body",
        "deadline",
        "exchange",
        "future",
        "method",
        "placed",
        "properties",
        "result",
        "returned",
        "routing_key",
        "sent",
    )

    def __init__(
        self,
        exchange: str,
        routing_key: str,
        method: bytes,
        properties: bytes,
        body: bytes,
        deadline: float,
        future: Future[Any] | asyncio.Future[Any],
        result: Any = None,
        placed: bool = False,
    ) -> None:
        """method, properties: as frames carry them. placed: it has a place in the window. deadline: monotonic time."""
        self.exchange = exchange
        self.routing_key = routing_key
        self.method = method
        self.properties = properties
        self.body = body
        self.deadline = deadline
        self.future = future
        self.result = result
        self.placed = placed
        self.returned: str | None = None
        self.sent = False

    @property
    def message_id(self) -> bytes | None:
        return Properties.from_wire(self.properties).message_id

    def fail(self, error: PublishError) -> None:
        message_id = self.message_id
        error.message_id = text(message_id) if message_id else None
        with contextlib.suppress(*_SETTLED):
            self.future.set_exception(error)

    def confirm(self) -> None:
        try:  # noqa: SIM105 - the hot path
            self.future.set_result(self.result)
        except _SETTLED:
            pass


class Pipeline:
    """Publishes what it is given on a connection of its own, and answers each message by its future.

    Unbounded: who puts messages in bounds how many are under way, by *window* if they say that they have a place there.
    """

    def __init__(self, url: str, name: str, window: Places, *, on_asyncio: bool = False) -> None:
        """url: the broker. name: of the connection, as the management UI shows it.

        on_asyncio: runs on the asyncio loop that runs now, instead of an I/O thread.
        """
        self.link = Link(url, name, on_up=self._open_channel, on_down=self._down, on_asyncio=on_asyncio)
        self._window = window
        self._start_lock = threading.Lock()
        self._queue: deque[Sending] = deque()
        self._in_flight: dict[int, Sending] = {}
        #: Confirmed, and about to be told so.
        self._settling: list[Sending] = []
        self._channel: Channel | None = None
        self._next_tag = 1
        #: No tag below it is in flight.
        self._lowest_tag = 1
        self._ready = False
        self._alone = 0
        self._returns: list[tuple[bytes | None, str, str, str]] = []
        self._woken = False
        self.started = False
        self._closed = False

    # --- from any thread -------------------------------------------------------------------------------

    def put(self, sending: Sending) -> None:
        """Publish *sending*; returns at once. Its future has the answer, by its deadline or soon after."""
        if len(sending.properties) + HEADER_FRAME_OVERHEAD > self.link.frame_max:
            self._fail(sending, _too_large(self.link.frame_max))
            return
        if self._closed:
            self._fail(sending, PublisherClosed("The publisher is closed; the message was not sent."))
            return
        if not self.started:
            self.start()
        self._queue.append(sending)
        # One wake-up per batch. Racing threads may wake twice, which costs little; never zero times, because the
        # flag is lowered before the queue is read.
        if not self._woken:
            self._woken = True
            self.link.call(self._drain)
        if self._closed:  # by another thread meanwhile, which may have looked at the queue before this
            self._fail(sending, PublisherClosed("The publisher was closed meanwhile; the message was not sent."))

    def start(self) -> None:
        """Begin to connect, and return at once."""
        with self._start_lock:
            if not self.started:
                self.started = True
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
        """What has no answer yet. Nothing is ever in none of the three: a fork may come between any two steps."""
        # Another thread may append meanwhile: CPython unpacks each in one step.
        everything = [*self._queue, *self._in_flight.values(), *self._settling]
        return [sending for sending in everything if not sending.future.done()]

    def close(self, timeout: float) -> None:
        """Wait until everything has its answer, *timeout* seconds at most, then disconnect; the rest fails.

        For one that runs on an asyncio loop see `aclose`; this closes it at once, on its loop.
        """
        if self._closed:
            return
        deadline = time.monotonic() + timeout
        while (pending := self._awaited_by_threads()) and (left := deadline - time.monotonic()) > 0:
            wait(pending, left)
        self._closed = True
        self.link.stop()
        self._fail_the_rest()

    async def aclose(self, timeout: float) -> None:
        """`close`, on the asyncio loop that it runs on."""
        if self._closed:
            return
        deadline = time.monotonic() + timeout
        while (pending := self.pending()) and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait([sending.future for sending in pending], timeout=left)  # type: ignore[type-var]
        self._closed = True
        if self.started:
            await self.link.astop()
        self._fail_the_rest()

    def _awaited_by_threads(self) -> list[Future[Any]]:
        return [sending.future for sending in self.pending() if isinstance(sending.future, Future)]

    def _fail_the_rest(self) -> None:
        for sending in self.pending():
            self._fail(
                sending, PublisherClosed("The publisher was closed before the confirm came: it may have arrived.")
            )

    def _fail(self, sending: Sending, error: PublishError) -> None:
        sending.fail(error)
        self._let_go([sending])

    def _let_go(self, sendings: Iterable[Sending]) -> None:
        """Give back the places of *sendings*."""
        places = 0
        for sending in sendings:
            if sending.placed:
                sending.placed = False
                places += 1
        if places:
            self._window.give(places)

    # --- on the loop -----------------------------------------------------------------------------------

    def _open_channel(self, connection: Connection) -> None:
        self._channel = None
        self._ready = False
        connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Channel) -> None:
        self._channel = channel
        self._next_tag = self._lowest_tag = 1
        self._returns.clear()
        connection: Any = channel.connection  # pika knows it as its own
        connection.watch_acks(channel.channel_number, self._answer)
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
        in_flight = list(self._in_flight.values())
        self._queue.extendleft(sending for sending in reversed(in_flight) if not sending.future.done())
        self._in_flight = {}
        self._let_go(sending for sending in in_flight if sending.future.done())

    def _channel_closed(self, channel: Channel, reason: Any) -> None:
        if channel is not self._channel:
            return
        suspects = [sending for sending in self._in_flight.values() if not sending.future.done()]
        self._requeue()
        connection: Any = channel.connection
        if not connection.is_open:
            return
        if len(suspects) == 1:
            self._fail(self._queue.popleft(), _fault(reason.reply_code, reason.reply_text, suspects[0]))
        # Until that many have been answered, one at a time: see "a closed channel" above.
        self._alone = max(self._alone - 1, 0) if len(suspects) == 1 else len(suspects)
        self._open_channel(connection)

    def _drain(self) -> None:
        self._woken = False
        channel = self._channel
        if not self._ready or channel is None or not channel.is_open or self.link.blocked or self._closed:
            return
        connection: Any = channel.connection
        queue, in_flight, frame_max = self._queue, self._in_flight, self.link.frame_max
        number, tag = channel.channel_number, self._next_tag
        pieces: list[bytes] = []
        size = frames = 0
        while queue and not (self._alone and in_flight):
            sending = queue[0]
            if sending.future.done():
                self._let_go([queue.popleft()])
                continue
            # Queued before the broker said that it takes smaller frames than usual.
            if frame_max < FRAME_MAX and len(sending.properties) + HEADER_FRAME_OVERHEAD > frame_max:
                self._fail(queue.popleft(), _too_large(frame_max))
                continue
            in_flight[tag] = sending
            queue.popleft()
            tag += 1
            sending.sent = True
            frames += add_message(pieces, number, frame_max, sending.method, sending.properties, sending.body)
            size += len(sending.properties) + len(sending.body)
            if size >= _WRITE_SIZE:
                connection.write(b"".join(pieces), frames)
                pieces = []
                size = frames = 0
        self._next_tag = tag
        if pieces:
            connection.write(b"".join(pieces), frames)

    def _on_return(self, channel: Channel, method: Any, properties: Any, body: bytes) -> None:
        reason = f"{method.reply_code} {method.reply_text}"
        self._returns.append((properties.message_id, method.exchange, method.routing_key, reason))

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        self._answer([(method.delivery_tag, method.multiple)], nacked=isinstance(method, pika.spec.Basic.Nack))

    def _answer(self, acks: list[tuple[int, int]], nacked: bool = False) -> None:
        """Settle what *acks* (tag, multiple) are for."""
        in_flight = self._in_flight
        settled = self._settling = []
        for tag, multiple in acks:
            for known in range(self._lowest_tag, tag + 1) if multiple else (tag,):
                sending = in_flight.get(known)
                if sending is not None:
                    settled.append(sending)
                    del in_flight[known]
            if multiple and tag >= self._lowest_tag:
                self._lowest_tag = tag + 1
        if self._returns:
            self._match_returns(settled)
        for sending in settled:
            if sending.returned:
                sending.fail(_unroutable(sending))
            elif nacked:
                sending.fail(_nacked(sending))
            else:
                sending.confirm()
        self._settling = []
        self._let_go(settled)
        if self._alone:
            self._alone = max(self._alone - len(settled), 0)
            self._drain()
        elif self._queue and not self._woken:
            self._drain()

    def _match_returns(self, settled: list[Sending]) -> None:
        """Mark those of *settled* that were returned: the broker sends a return before the confirm, without its tag."""
        for sending in settled:
            key = (sending.message_id, sending.exchange, sending.routing_key)
            for index, (message_id, exchange, routing_key, reason) in enumerate(self._returns):
                if (message_id, exchange, routing_key) == key:
                    sending.returned = reason
                    del self._returns[index]
                    break

    def _sweep(self) -> None:
        """Fail what is past its deadline, and look again soon."""
        if self._closed:
            return
        self.link.later(_SWEEP, self._sweep)
        now = time.monotonic()
        for sending in [*self._queue, *self._in_flight.values()]:
            if sending.deadline <= now and not sending.future.done():
                self._fail(sending, self._timed_out(sending))
        while self._queue and self._queue[0].future.done():  # else they pile up while the broker is away
            self._let_go([self._queue.popleft()])
        if self._queue:
            self._drain()  # an alarm that ended does not wake us otherwise

    def _timed_out(self, sending: Sending) -> PublishTimeout:
        known = "It may have arrived: publish again under the same id." if sending.sent else "It was not sent."
        kind = PublishBlocked if self.link.blocked else PublishTimeout
        return kind(f"No confirm in time: {self.why_waiting} {known}")


def _too_large(frame_max: int) -> MessageTooLarge:
    return MessageTooLarge(f"Its headers do not fit into an AMQP frame ({frame_max:,} bytes); it was not sent.")


def _nacked(sending: Sending) -> Nacked:
    return Nacked(
        f"RabbitMQ refused the message for {sending.routing_key!r} (nack): a queue it goes to is full or not available."
    )


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
