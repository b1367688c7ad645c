"""Publishing: mandatory, persistent, with confirms in flight, and an answer for every message.

**What a confirm is worth.** A message is *confirmed* when RabbitMQ has it on the disks of a quorum, in every queue that
it was routed to. Until then it may be anywhere. Four things can come instead of the confirm:

- *a return*, directly before the confirm of the same message: it was routed nowhere. `ackline.messages` has an
  alternate exchange that takes what nobody consumes, so a return means a broken topology: `Unroutable`.
- *a nack*: the broker refuses responsibility (a queue is full): `Nacked`.
- *a lost connection*: whether the message arrived is unknown. It is sent again under the same id as soon as the broker
  answers, in the order of publishing, until its deadline: `PublishTimeout`. This can duplicate, never lose.
- *a closed channel*: the broker found fault with one of the messages in flight and does not say with which. They are
  sent again one at a time until it closes again; the one that was alone is the one, and gets the reason.

**Threads.** Any number of threads call `submit`. They append to a queue and wake the I/O thread once per batch; the
I/O thread alone touches the channel and the table of what is in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, wait
from types import TracebackType
from typing import Any, NamedTuple, Self

import pika
from pika.channel import Channel
from pydantic import BaseModel

from ackline.infra.errors import AcklineError
from ackline.infra.link import Link
from ackline.infra.names import MESSAGES
from ackline.infra.properties import PERSISTENT, Properties
from ackline.infra.settings import Settings, process_name, settings
from ackline.infra.table import text
from ackline.infra.wire import FRAME_MAX, fits_into_a_frame, uuid7
from ackline.producer.errors import (
    ForkedError,
    MessageTooLarge,
    Nacked,
    NotPermitted,
    PublishBlocked,
    PublisherClosed,
    PublishError,
    PublishTimeout,
    Unroutable,
)
from ackline.producer.message import encode, type_of

#: Seconds that a message may wait for its confirm.
TIMEOUT = 10.0
#: Confirms in flight; above it `submit` waits. The gain is from 20 to 200; above 1,000 only latency grows.
MAX_IN_FLIGHT = 1000
#: Seconds between looks for messages past their deadline.
_SWEEP = 0.1
#: AMQP reply codes that close a channel for the fault of one message.
_ACCESS_REFUSED, _NOT_FOUND, _PRECONDITION_FAILED = 403, 404, 406


class Receipt(NamedTuple):
    """That a message is confirmed."""

    message_id: str
    type: str


class _Sending:
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


class Publisher:
    """Publishes messages with confirms. Thread-safe; one per process is enough.

    Guarantees: when `publish` returns, RabbitMQ has the message. When it raises, the error says what is known.
    """

    def __init__(
        self, url: str, *, name: str = "publisher", app_id: str = "ackline", max_in_flight: int = MAX_IN_FLIGHT
    ) -> None:
        """A publisher to the broker at *url* that connects when it is first used.

        name: shown in the management UI. app_id: the service, a property of each message. max_in_flight: messages
        without a confirm at most; above it `submit` waits.
        """
        self._url = url
        self._name = name
        self._app_id = app_id
        self._max_in_flight = max_in_flight
        self._start_lock = threading.Lock()
        self._reset()

    @classmethod
    def connect(cls, with_settings: Settings | None = None, *, name: str = "publisher", timeout: float = 10.0) -> Self:
        """A publisher to the configured broker, connected.

        timeout: seconds to wait for the connection. Raises `ConfigurationError` when no broker is configured,
        `BrokerRefused` or `BrokerUnreachable` when it cannot be had.
        """
        chosen = with_settings or settings()
        publisher = cls(chosen.broker, name=name, app_id=chosen.service)
        try:
            publisher.wait_until_connected(timeout)
        except AcklineError:
            publisher.close(0)
            raise
        return publisher

    # --- publishing ------------------------------------------------------------------------------------

    def publish(
        self,
        instance: BaseModel,
        *,
        message_id: str | None = None,
        correlation_id: str | None = None,
        headers: dict[str, Any] | None = None,
        timeout: float = TIMEOUT,
    ) -> Receipt:
        """Publish a message and wait for its confirm, *timeout* seconds at most.

        message_id: the id of an earlier try, to try again; a new UUIDv7 otherwise. Raises `PublishError`.
        """
        future = self.submit(
            instance, message_id=message_id, correlation_id=correlation_id, headers=headers, timeout=timeout
        )
        # The I/O thread fails the future at its deadline; the second is for an I/O thread that is itself held up.
        return future.result(timeout + 1.0)

    def submit(
        self,
        instance: BaseModel,
        *,
        message_id: str | None = None,
        correlation_id: str | None = None,
        headers: dict[str, Any] | None = None,
        timeout: float = TIMEOUT,
    ) -> Future[Receipt]:
        """Publish a message and return at once with a future of its receipt; it fails with a `PublishError`.

        Waits, within *timeout* seconds, while `max_in_flight` messages have no confirm.
        Raises `InvalidMessage` at once for what is no message, `PublishTimeout` when it had to wait too long.
        """
        return self._submit(self._message(instance, message_id, correlation_id, headers), timeout)

    async def apublish(
        self,
        instance: BaseModel,
        *,
        message_id: str | None = None,
        correlation_id: str | None = None,
        headers: dict[str, Any] | None = None,
        timeout: float = TIMEOUT,
    ) -> Receipt:
        """`publish` for asyncio: awaits the confirm without holding up the event loop."""
        made = self._message(instance, message_id, correlation_id, headers)
        if self._window.acquire(blocking=False):
            future = self._send_message(made, timeout)
        else:  # all of it in the thread: a task that is cancelled while it waits must not keep the place it then gets
            future = await asyncio.to_thread(self._submit, made, timeout)
        return await asyncio.wrap_future(future)

    def send(
        self, exchange: str, routing_key: str, properties: Properties, body: bytes, *, timeout: float = TIMEOUT
    ) -> Future[None]:
        """Publish something ready-made (a retry, a dead letter, a redrive); a future that fails with `PublishError`.

        Never waits, so that it can be called on any thread: the caller bounds what it has in flight.
        """
        return self._enqueue(exchange, routing_key, properties, body, timeout, None, release=False)

    def _message(
        self, instance: BaseModel, message_id: str | None, correlation_id: str | None, headers: dict[str, Any] | None
    ) -> tuple[Properties, bytes, Receipt]:
        self._notice_fork()  # before a place is taken in the parent's window
        type_ = type_of(instance)
        receipt = Receipt(message_id or uuid7(), type_)
        try:
            properties = Properties(
                content_type=b"application/json",
                delivery_mode=PERSISTENT,
                message_id=receipt.message_id,
                timestamp=int(time.time()),
                type=type_,
                app_id=self._app_id,
                correlation_id=correlation_id,
                headers=headers,
            )
        except (ValueError, TypeError, struct.error) as error:
            raise MessageTooLarge(f"The message cannot be sent: {error}.", receipt.message_id) from None
        return properties, encode(instance), receipt

    def _submit(self, made: tuple[Properties, bytes, Receipt], timeout: float) -> Future[Receipt]:
        self._acquire(timeout)
        return self._send_message(made, timeout)

    def _send_message(self, made: tuple[Properties, bytes, Receipt], timeout: float) -> Future[Receipt]:
        properties, body, receipt = made
        return self._enqueue(MESSAGES, receipt.type, properties, body, timeout, receipt, release=True)

    def _acquire(self, timeout: float) -> None:
        if not self._window.acquire(timeout=timeout):
            raise PublishTimeout(
                f"{self._max_in_flight} messages have waited for their confirms for {timeout:g} s: "
                f"{self._why_waiting()} This message was not sent."
            )

    def _enqueue(
        self,
        exchange: str,
        routing_key: str,
        properties: Properties,
        body: bytes,
        timeout: float,
        result: Any,
        release: bool,
    ) -> Future[Any]:
        self._notice_fork()
        sending = _Sending(exchange, routing_key, properties, body, time.monotonic() + timeout, result)
        if release:
            sending.future.add_done_callback(self._release)
        if not fits_into_a_frame(properties, self._link.frame_max):
            sending.fail(_too_large(self._link.frame_max))
        elif self._closed:
            sending.fail(PublisherClosed("The publisher is closed; the message was not sent."))
        else:
            self.start()
            self._queue.append(sending)
            self._wake()
            if self._closed:  # by another thread meanwhile, which may have looked at the queue before this
                sending.fail(PublisherClosed("The publisher was closed meanwhile; the message was not sent."))
        return sending.future

    # --- life ------------------------------------------------------------------------------------------

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._link = Link(self._url, f"{self._name} {process_name()}", on_up=self._up, on_down=self._down)
        window = self._window = threading.Semaphore(self._max_in_flight)
        # Bound to this window: what a forked child inherits must not make room in the child's own.
        self._release: Callable[[Future[Any]], None] = lambda _: window.release()
        self._queue: deque[_Sending] = deque()
        self._in_flight: dict[int, _Sending] = {}
        self._channel: Channel | None = None
        self._next_tag = 1
        self._ready = False
        self._alone = 0
        self._returns: list[tuple[bytes | None, str, str, str]] = []
        self._woken = False
        self._started = False
        self._closed = False

    def _notice_fork(self) -> None:
        """Begin anew in a forked child: the connection and its thread are the parent's."""
        if self._pid == os.getpid():
            return
        with self._start_lock:
            if self._pid == os.getpid():
                return
            orphans = [*self._queue, *self._in_flight.values()]
            self._reset()
        for sending in orphans:
            sending.fail(ForkedError("This process was forked while the message was under way in its parent."))

    def start(self) -> None:
        """Begin to connect, and return at once. Publishing does it too."""
        if not self._started:
            with self._start_lock:
                if not self._started:
                    self._started = True
                    self._link.start()
                    self._link.call(self._sweep)

    def wait_until_connected(self, timeout: float = 10.0) -> None:
        """Connect, and wait until that is done, *timeout* seconds at most.

        Raises `BrokerRefused` or `BrokerUnreachable`.
        """
        self.start()
        self._link.wait_up(timeout)

    @property
    def problem(self) -> str | None:
        """Why a message that is published now would have to wait, in a sentence; None when it would not."""
        if self._link.error is not None:
            return str(self._link.error)
        if self._link.blocked:
            return f"RabbitMQ blocks publishing: {self._link.blocked}."
        return None

    def close(self, timeout: float = TIMEOUT) -> None:
        """Wait until everything submitted is confirmed or failed, *timeout* seconds at most, then disconnect.

        What is left then fails with `PublisherClosed`.
        """
        if self._closed or self._pid != os.getpid():
            return
        deadline = time.monotonic() + timeout
        while (pending := self._pending()) and (left := deadline - time.monotonic()) > 0:
            wait([sending.future for sending in pending], left)
        self._closed = True
        self._link.stop()
        for sending in self._pending():
            sending.fail(PublisherClosed("The publisher was closed before the confirm came: it may have arrived."))

    def _pending(self) -> list[_Sending]:
        # Another thread may append meanwhile: CPython unpacks both in one step each.
        return [sending for sending in [*self._queue, *self._in_flight.values()] if not sending.future.done()]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- on the I/O thread -----------------------------------------------------------------------------

    def _wake(self) -> None:
        # One wake-up per batch. Racing threads may wake twice, which costs little; never zero times, because the
        # flag is lowered before the queue is read.
        if not self._woken:
            self._woken = True
            self._link.call(self._drain)

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
        if not self._ready or channel is None or self._link.blocked:
            return
        queue = self._queue
        frame_max = self._link.frame_max
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

    def _match_returns(self, settled: list[_Sending]) -> None:
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
        for sending in self._pending():
            if sending.deadline <= now:
                sending.fail(self._timed_out(sending))
        if self._queue:
            self._drain()  # an alarm that ended does not wake us otherwise
        self._link.later(_SWEEP, self._sweep)

    def _timed_out(self, sending: _Sending) -> PublishTimeout:
        known = "It may have arrived: publish again under the same id." if sending.sent else "It was not sent."
        kind = PublishBlocked if self._link.blocked else PublishTimeout
        return kind(f"No confirm in time: {self._why_waiting()} {known}")

    def _why_waiting(self) -> str:
        return self.problem or "RabbitMQ is connected but has not answered."


def _too_large(frame_max: int) -> MessageTooLarge:
    return MessageTooLarge(f"Its headers do not fit into an AMQP frame ({frame_max:,} bytes); it was not sent.")


def _unroutable(sending: _Sending) -> Unroutable:
    return Unroutable(
        f"RabbitMQ returned the message ({sending.returned}): exchange {sending.exchange!r} routes "
        f"{sending.routing_key!r} nowhere. `ackline topology diff` says what is missing."
    )


def _fault(code: int, words: str, sending: _Sending) -> PublishError:
    """Why the broker closed the channel on this message, which was alone in flight."""
    if code == _NOT_FOUND:
        return Unroutable(f"RabbitMQ has no exchange {sending.exchange!r}: `ackline topology apply` creates it.")
    if code == _ACCESS_REFUSED:
        return NotPermitted(f"RabbitMQ does not permit this user to publish to {sending.exchange!r}: {words}.")
    if code == _PRECONDITION_FAILED and "larger than" in words:
        return MessageTooLarge(f"RabbitMQ does not take a message of {len(sending.body):,} bytes: {words}.")
    return NotPermitted(f"RabbitMQ refused the message: {code} {words}.")
