"""The publisher: mandatory, persistent, with confirms in flight, and an answer for every message.

What a confirm is worth, and what can come instead of it, is told in `ackline.producer.pipeline`. There is one pipeline
for all threads, and one for each asyncio loop that publishes, on that loop itself.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, NamedTuple, Self

from pydantic import BaseModel

from ackline.infra.errors import AcklineError
from ackline.infra.frames import publish_method
from ackline.infra.names import MESSAGES, TRACKED
from ackline.infra.properties import Properties
from ackline.infra.settings import Settings, process_name, settings
from ackline.infra.wire import TRACK, cut, uuid7
from ackline.producer.confirmation import Confirmation
from ackline.producer.errors import ForkedError, MessageTooLarge, PublishTimeout
from ackline.producer.message import encode
from ackline.producer.pipeline import Pipeline, Sending
from ackline.producer.stamp import Stamps
from ackline.producer.tracing import trace_headers
from ackline.producer.window import TaskWindow, Window

#: Seconds that a message may wait for its confirm.
TIMEOUT = 10.0
#: Confirms in flight; above it `submit` waits. The gain is from 20 to 200; above 1,000 only latency grows.
MAX_IN_FLIGHT = 1000


class Receipt(NamedTuple):
    """That a message is confirmed."""

    message_id: str
    type: str


class _OnLoop(NamedTuple):
    """What serves one asyncio loop."""

    loop: asyncio.AbstractEventLoop
    window: TaskWindow
    pipeline: Pipeline


class Publisher:
    """Publishes messages with confirms. Thread-safe; one per process is enough, for its threads and its asyncio loop.

    Guarantees: when `publish` returns, RabbitMQ has the message. When it raises, the error says what is known.
    """

    _window: Window
    _pipeline: Pipeline
    _on_loops: dict[asyncio.AbstractEventLoop, _OnLoop]
    _closed: bool

    def __init__(
        self, url: str, *, name: str = "publisher", app_id: str = "ackline", max_in_flight: int = MAX_IN_FLIGHT
    ) -> None:
        """A publisher to the broker at *url* that connects when it is first used.

        name: shown in the management UI. app_id: the service, a property of each message. max_in_flight: messages
        without a confirm at most; above it `submit` waits.
        """
        self._url = url
        self._name = name
        self._max_in_flight = max_in_flight
        self._stamps = Stamps(app_id)
        self._reset()
        _publishers.add(self)

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

    # --- publishing, from threads ----------------------------------------------------------------------

    def publish(
        self,
        instance: BaseModel,
        *,
        message_id: str | None = None,
        correlation_id: str | None = None,
        headers: Mapping[str, Any] | None = None,
        track: bool | None = None,
        timeout: float = TIMEOUT,
    ) -> Receipt:
        """Publish a message and wait for its confirm, *timeout* seconds at most.

        message_id: the id of an earlier try, to try again; a new UUIDv7 otherwise. headers: further ones; without a
        `traceparent` among them, that of the current OpenTelemetry span is sent. track: whether its deliveries are
        accounted for by id; what the contract says otherwise. Raises `PublishError`.
        """
        chosen_id = message_id or uuid7()
        future = self.submit(
            instance, message_id=chosen_id, correlation_id=correlation_id, headers=headers, track=track, timeout=timeout
        )
        try:
            # The I/O thread fails the future at its deadline; the second is for an I/O thread that is itself held up.
            return future.result(timeout + 1.0)
        except TimeoutError:
            raise PublishTimeout(
                "No confirm in time: this process did not get to look for it. It may have arrived: publish again under "
                "the same id.",
                chosen_id,
            ) from None

    def submit(
        self,
        instance: BaseModel,
        *,
        message_id: str | None = None,
        correlation_id: str | None = None,
        headers: Mapping[str, Any] | None = None,
        track: bool | None = None,
        timeout: float = TIMEOUT,
    ) -> Future[Receipt]:
        """Publish a message and return at once with a future of its receipt; it fails with a `PublishError`.

        Waits, within *timeout* seconds, while `max_in_flight` messages have no confirm. The future cannot be cancelled.
        Raises `InvalidMessage` at once for what is no message, `PublishTimeout` when it had to wait too long.
        """
        deadline = time.monotonic() + timeout
        future: Confirmation[Receipt] = Confirmation()
        sending = self._sending(instance, message_id, correlation_id, headers, track, deadline, future)
        pipeline, window = self._pipeline, self._window
        if not window.take(deadline):
            raise self._no_room(pipeline, sending, timeout)
        sending.placed = True
        pipeline.put(sending)
        return future

    def send(
        self, exchange: str, routing_key: str, properties: Properties, body: bytes, *, timeout: float = TIMEOUT
    ) -> Future[None]:
        """Publish something ready-made (a retry, a dead letter, a redrive); a future that fails with `PublishError`.

        Never waits, so that it can be called on any thread: the caller bounds what it has in flight. Raises
        `MessageTooLarge` at once for a routing key that AMQP cannot hold.
        """
        future: Confirmation[None] = Confirmation()
        self._pipeline.put(_ready_made(exchange, routing_key, properties, body, timeout, future))
        return future

    # --- publishing, in asyncio ------------------------------------------------------------------------

    async def apublish(
        self,
        instance: BaseModel,
        *,
        message_id: str | None = None,
        correlation_id: str | None = None,
        headers: Mapping[str, Any] | None = None,
        track: bool | None = None,
        timeout: float = TIMEOUT,
    ) -> Receipt:
        """`publish` for asyncio: awaits the confirm, on a connection that runs on this loop.

        While `max_in_flight` messages of this loop have no confirm it waits before it sends. A task that is cancelled
        leaves its message on its way, if it was sent already.
        """
        deadline = time.monotonic() + timeout
        here = self._here()
        future: asyncio.Future[Receipt] = here.loop.create_future()
        sending = self._sending(instance, message_id, correlation_id, headers, track, deadline, future)
        if not await here.window.take(deadline):
            raise self._no_room(here.pipeline, sending, timeout)
        sending.placed = True
        here.pipeline.put(sending)
        return await future

    def asend(
        self, exchange: str, routing_key: str, properties: Properties, body: bytes, *, timeout: float = TIMEOUT
    ) -> asyncio.Future[None]:
        """`send` for asyncio: a future to await, of something ready-made, on a connection that runs on this loop.

        It is in the queue when this returns. Never waits for room: the caller bounds what it has in flight. The future
        fails with a `PublishError`. Raises `MessageTooLarge` at once for a routing key that AMQP cannot hold.
        """
        here = self._here()
        future: asyncio.Future[None] = here.loop.create_future()
        here.pipeline.put(_ready_made(exchange, routing_key, properties, body, timeout, future))
        return future

    def _here(self) -> _OnLoop:
        """The pipeline of the running asyncio loop."""
        loop = asyncio.get_running_loop()
        found = self._on_loops.get(loop)
        if found is None:
            self._on_loops = {other: on for other, on in self._on_loops.items() if not other.is_closed()}
            window = TaskWindow(self._max_in_flight)
            pipeline = Pipeline(self._url, self._connection_name, window, on_asyncio=True)
            found = self._on_loops[loop] = _OnLoop(loop, window, pipeline)
            if self._closed:
                pipeline.close(0)
        return found

    # --- messages --------------------------------------------------------------------------------------

    def _sending(
        self,
        instance: BaseModel,
        message_id: str | None,
        correlation_id: str | None,
        headers: Mapping[str, Any] | None,
        track: bool | None,
        deadline: float,
        future: Future[Receipt] | asyncio.Future[Receipt],
    ) -> Sending:
        stamp = self._stamps.of(instance)
        receipt = Receipt(message_id or uuid7(), stamp.type)
        exchange, method = MESSAGES, stamp.method
        if stamp.track if track is None else track:
            exchange, method = TRACKED, stamp.tracked_method
            headers = {**(headers or {}), TRACK: True}
        if stamp.key is not None:
            headers = {**(headers or {}), **stamp.key_headers(instance)}
        trace = trace_headers()
        if trace and not (headers and "traceparent" in headers):
            headers = {**(headers or {}), **trace}
        try:
            properties = stamp.properties(receipt.message_id, correlation_id, headers)
        except (ValueError, TypeError, struct.error) as error:
            raise MessageTooLarge(f"The message cannot be sent: {error}.", receipt.message_id) from None
        body = encode(instance)
        return Sending(exchange, stamp.type, method, properties, body, deadline, future, receipt)

    def _no_room(self, pipeline: Pipeline, sending: Sending, timeout: float) -> PublishTimeout:
        return PublishTimeout(
            f"{self._max_in_flight} messages have waited for their confirms for {timeout:g} s: "
            f"{pipeline.why_waiting} This message was not sent.",
            sending.result.message_id,
        )

    # --- life ------------------------------------------------------------------------------------------

    def _reset(self) -> None:
        self._connection_name = f"{self._name} {process_name()}"
        self._window = Window(self._max_in_flight)
        self._pipeline = Pipeline(self._url, self._connection_name, self._window)
        self._on_loops = {}
        self._closed = False

    def _forked(self) -> None:
        """Begin anew in a forked child: the connections, and the threads that wait, are the parent's."""
        orphans = [sending for pipeline in self._pipelines() for sending in pipeline.pending()]
        self._reset()
        for sending in orphans:
            if isinstance(
                sending.future, Confirmation
            ):  # the others belong to an asyncio loop, which does not run here
                sending.future.forget_threads()
                sending.fail(ForkedError("This process was forked while the message was under way in its parent."))

    def _pipelines(self) -> list[Pipeline]:
        # Loops that are closed took their connections with them.
        return [self._pipeline, *(on.pipeline for on in list(self._on_loops.values()) if not on.loop.is_closed())]

    def start(self) -> None:
        """Begin to connect, and return at once. Publishing does it too.

        On an asyncio loop it is that loop's own connection, else the one for threads.
        """
        (self._pipeline if _running_loop() is None else self._here().pipeline).start()

    def wait_until_connected(self, timeout: float = 10.0) -> None:
        """Connect, for threads, and wait until that is done, *timeout* seconds at most.

        Raises `BrokerRefused` or `BrokerUnreachable`.
        """
        self._pipeline.start()
        self._pipeline.link.wait_up(timeout)

    @property
    def problem(self) -> str | None:
        """Why a message that is published now would have to wait, in a sentence; None when it would not.

        Of its connections that have been started; of the one for threads when none has.
        """
        started = [pipeline for pipeline in self._pipelines() if pipeline.started] or [self._pipeline]
        return next((problem for pipeline in started if (problem := pipeline.problem)), None)

    def close(self, timeout: float = TIMEOUT) -> None:
        """Wait until everything submitted is confirmed or failed, *timeout* seconds at most, then disconnect.

        What is left then fails with `PublisherClosed`. On an asyncio loop use `aclose`: this fails at once what the
        tasks of that loop still await.
        """
        self._closed = True
        for on in list(self._on_loops.values()):
            if on.loop.is_running() and on.loop is not _running_loop():
                asyncio.run_coroutine_threadsafe(on.pipeline.aclose(timeout), on.loop).result()
            elif not on.loop.is_closed():
                on.pipeline.close(0)
        self._pipeline.close(timeout)

    async def aclose(self, timeout: float = TIMEOUT) -> None:
        """`close` for asyncio: awaits the confirms, those of this loop and those of threads."""
        deadline = time.monotonic() + timeout
        self._closed = True
        here = self._on_loops.get(asyncio.get_running_loop())
        if here is not None:
            await here.pipeline.aclose(timeout)
        await asyncio.to_thread(self.close, max(deadline - time.monotonic(), 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _ready_made(
    exchange: str, routing_key: str, properties: Properties, body: bytes, timeout: float, future: Any
) -> Sending:
    try:
        method = publish_method(exchange, routing_key)
    except ValueError:
        raise MessageTooLarge(
            f"AMQP allows 255 bytes for an exchange's name and for a routing key: {cut(routing_key, 80)!r} is longer."
        ) from None
    return Sending(exchange, routing_key, method, properties.wire, body, time.monotonic() + timeout, future)


#: Those of this process, to be told of a fork.
_publishers: weakref.WeakSet[Publisher] = weakref.WeakSet()


def _forked() -> None:
    for publisher in list(_publishers):
        publisher._forked()


os.register_at_fork(after_in_child=_forked)
