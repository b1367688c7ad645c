"""The publisher: mandatory, persistent, with confirms in flight, and an answer for every message.

What a confirm is worth, and what can come instead of it, is told in `ackline.producer.pipeline`.
"""

from __future__ import annotations

import asyncio
import os
import struct
import threading
import time
from concurrent.futures import Future
from types import TracebackType
from typing import Any, NamedTuple, Self

from pydantic import BaseModel

from ackline.infra.errors import AcklineError
from ackline.infra.names import MESSAGES
from ackline.infra.properties import PERSISTENT, Properties
from ackline.infra.settings import Settings, process_name, settings
from ackline.infra.wire import uuid7
from ackline.producer.errors import ForkedError, MessageTooLarge, PublishTimeout
from ackline.producer.message import encode, type_of
from ackline.producer.pipeline import Pipeline, Sending

#: Seconds that a message may wait for its confirm.
TIMEOUT = 10.0
#: Confirms in flight; above it `submit` waits. The gain is from 20 to 200; above 1,000 only latency grows.
MAX_IN_FLIGHT = 1000


class Receipt(NamedTuple):
    """That a message is confirmed."""

    message_id: str
    type: str


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
        self._fork_lock = threading.Lock()
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
        self._notice_fork()
        sending = Sending(exchange, routing_key, properties, body, time.monotonic() + timeout, None)
        self._pipeline.put(sending)
        return sending.future

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
        sending = Sending(MESSAGES, receipt.type, properties, body, time.monotonic() + timeout, receipt)
        # Bound to this window: what a forked child inherits must not make room in the child's own.
        window = self._window
        sending.future.add_done_callback(lambda _: window.release())
        self._pipeline.put(sending)
        return sending.future

    def _acquire(self, timeout: float) -> None:
        if not self._window.acquire(timeout=timeout):
            raise PublishTimeout(
                f"{self._max_in_flight} messages have waited for their confirms for {timeout:g} s: "
                f"{self._pipeline.why_waiting} This message was not sent."
            )

    # --- life ------------------------------------------------------------------------------------------

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._pipeline = Pipeline(self._url, f"{self._name} {process_name()}")
        self._window = threading.Semaphore(self._max_in_flight)

    def _notice_fork(self) -> None:
        """Begin anew in a forked child: the connection and its thread are the parent's."""
        if self._pid == os.getpid():
            return
        with self._fork_lock:
            if self._pid == os.getpid():
                return
            orphans = self._pipeline.pending()
            self._reset()
        for sending in orphans:
            sending.fail(ForkedError("This process was forked while the message was under way in its parent."))

    def start(self) -> None:
        """Begin to connect, and return at once. Publishing does it too."""
        self._pipeline.start()

    def wait_until_connected(self, timeout: float = 10.0) -> None:
        """Connect, and wait until that is done, *timeout* seconds at most.

        Raises `BrokerRefused` or `BrokerUnreachable`.
        """
        self.start()
        self._pipeline.link.wait_up(timeout)

    @property
    def problem(self) -> str | None:
        """Why a message that is published now would have to wait, in a sentence; None when it would not."""
        return self._pipeline.problem

    def close(self, timeout: float = TIMEOUT) -> None:
        """Wait until everything submitted is confirmed or failed, *timeout* seconds at most, then disconnect.

        What is left then fails with `PublisherClosed`.
        """
        if self._pid == os.getpid():  # else they are the parent's
            self._pipeline.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
