"""For the tests of services that publish: a publisher that checks everything and needs no broker.

```python
def test_an_order_is_announced(ackline_publisher: FakePublisher) -> None:
    place_order(publisher=ackline_publisher)
    assert ackline_publisher.of(OrderPlaced) == [OrderPlaced(order_id="A-1", total=9.5)]
```

The fixture `ackline_publisher` comes with the package: pytest finds it by its entry point.
"""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar, overload

from pydantic import BaseModel, ValidationError

from ackline.infra.properties import PERSISTENT, Properties
from ackline.infra.settings import Settings
from ackline.infra.wire import TRACK, fits_into_a_frame, uuid7
from ackline.producer.errors import InvalidMessage, MessageTooLarge, PublisherClosed, PublishError, PublishTimeout
from ackline.producer.message import Contract, contract_of, contracts, encode, key_headers, unknown
from ackline.producer.publisher import MAX_IN_FLIGHT, TIMEOUT, Publisher, Receipt

M = TypeVar("M", bound=BaseModel)

#: Bytes of a body that RabbitMQ 4 takes, unless it is configured otherwise (`max_message_size`).
MAX_BODY = 16 * 1024 * 1024


class Published(NamedTuple):
    """A confirmed message. message: as a consumer reads it from *body*."""

    message: BaseModel
    message_id: str
    type: str
    body: bytes
    correlation_id: str | None
    headers: Mapping[str, Any]
    track: bool


class Sent(NamedTuple):
    """Something ready-made that was confirmed: what `send` and `asend` were given."""

    exchange: str
    routing_key: str
    properties: Properties
    body: bytes


class FakePublisher(Publisher):
    """A `Publisher` for tests: every message is checked as on its real way, and confirmed at once, by nobody.

    It raises what the real one would for what is no message, does not fit its own contract once it is JSON, or is too
    large. It never connects, sends no trace context, and bounds nothing in flight. Thread-safe.
    """

    def __init__(
        self,
        url: str = "amqp://nowhere",
        *,
        name: str = "publisher",
        app_id: str = "ackline",
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        """Takes what a `Publisher` takes, and connects to nothing."""
        self._app_id = app_id
        self._lock = threading.Lock()
        self._published: list[Published] = []
        self._sent: list[Sent] = []
        self._held: deque[tuple[Published | Sent, Future[Any]]] = deque()
        self._holding = False
        self._errors: deque[PublishError] = deque()
        self._closed = False

    @classmethod
    def connect(cls, with_settings: Settings | None = None, *, name: str = "publisher", timeout: float = 10.0) -> Self:
        """A fake, whatever is configured."""
        return cls(name=name, app_id=with_settings.service if with_settings else "ackline")

    # --- what was published ----------------------------------------------------------------------------

    @property
    def published(self) -> list[Published]:
        """The confirmed messages, in the order of their confirms."""
        return list(self._published)

    @property
    def sent(self) -> list[Sent]:
        """What was confirmed of what `send` and `asend` were given, in the order of the confirms."""
        return list(self._sent)

    @overload
    def of(self, what: type[M]) -> list[M]: ...
    @overload
    def of(self, what: str) -> list[BaseModel]: ...

    def of(self, what: type[M] | str) -> list[M] | list[BaseModel]:
        """The confirmed messages of a model or of a type, as consumers read them, in the order of their confirms.

        Raises `InvalidMessage` when there is no such contract, so that a misspelt type is not an empty list.
        """
        type_ = what if isinstance(what, str) else contract_of(what).type
        if type_ not in contracts():
            raise InvalidMessage(unknown(type_))
        return [published.message for published in self._published if published.type == type_]

    # --- what a test may make happen -------------------------------------------------------------------

    def fail_next(self, error: PublishError, times: int = 1) -> None:
        """Let the next *times* messages fail with *error*, each with its own `message_id`. They are not published."""
        with self._lock:
            self._errors.extend([error] * times)

    def hold(self) -> None:
        """Confirm nothing from now on.

        `publish` then waits for its timeout, in real time, and raises `PublishTimeout`; `fail_next(PublishTimeout(…))`
        is a quick way to the same.
        """
        self._holding = True

    def confirm(self, count: int | None = None) -> None:
        """Confirm the oldest *count* of what is held and go on holding; without *count* all of it, and hold no more."""
        with self._lock:
            if count is None:
                self._holding = False
            most = len(self._held)
            confirmed = [self._held.popleft() for _ in range(most if count is None else min(count, most))]
            for record, _ in confirmed:
                self._keep(record)
        for record, future in confirmed:
            future.set_result(_result(record))

    def expire(self) -> None:
        """Let the deadline pass for all that is held: it fails with `PublishTimeout`, and was not published."""
        self._drop(PublishTimeout("No confirm in time: the test let the deadline pass."))

    @property
    def held(self) -> list[Published | Sent]:
        """What waits for its confirm, oldest first."""
        return [record for record, _ in list(self._held)]

    # --- what a Publisher does -------------------------------------------------------------------------

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
        """See `Publisher.publish`."""
        future = self._put(self._checked(instance, message_id, correlation_id, headers, track))
        try:
            receipt: Receipt = future.result(timeout)
        except TimeoutError:
            receipt = self._give_up(future)
        return receipt

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
        """See `Publisher.submit`. A future that is held fails when the test says so, not by its timeout: `expire`."""
        return self._put(self._checked(instance, message_id, correlation_id, headers, track))

    def send(
        self, exchange: str, routing_key: str, properties: Properties, body: bytes, *, timeout: float = TIMEOUT
    ) -> Future[None]:
        """See `Publisher.send`, and `sent`."""
        return self._put(Sent(exchange, routing_key, properties, body))

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
        """See `Publisher.apublish`."""
        receipt: Receipt = await self._await(
            self._put(self._checked(instance, message_id, correlation_id, headers, track)), timeout
        )
        return receipt

    def asend(
        self, exchange: str, routing_key: str, properties: Properties, body: bytes, *, timeout: float = TIMEOUT
    ) -> asyncio.Future[None]:
        """See `Publisher.asend`, and `sent`."""
        return asyncio.ensure_future(self._await(self._put(Sent(exchange, routing_key, properties, body)), timeout))

    def start(self) -> None:
        """Nothing: there is nothing to connect to."""

    def wait_until_connected(self, timeout: float = 10.0) -> None:
        """Nothing: there is nothing to connect to."""

    @property
    def problem(self) -> str | None:
        """That the test holds confirms; None when it does not."""
        return "The test holds the confirms." if self._holding else None

    @property
    def closed(self) -> bool:
        """Whether it was closed: what is published afterwards fails with `PublisherClosed`."""
        return self._closed

    def close(self, timeout: float = TIMEOUT) -> None:
        """Close. What is held fails with `PublisherClosed` at once."""
        self._closed = True
        self._drop(PublisherClosed("The publisher was closed before the confirm came: it may have arrived."))

    async def aclose(self, timeout: float = TIMEOUT) -> None:
        """`close`."""
        self.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- inside ----------------------------------------------------------------------------------------

    def _checked(
        self,
        instance: BaseModel,
        message_id: str | None,
        correlation_id: str | None,
        headers: Mapping[str, Any] | None,
        track: bool | None,
    ) -> Published:
        contract = contract_of(instance)
        tracked = contract.track if track is None else track
        given = {**(headers or {}), **({TRACK: True} if tracked else {}), **key_headers(contract, instance)}
        chosen_id = message_id or uuid7()
        try:
            properties = Properties(
                content_type=b"application/json",
                delivery_mode=PERSISTENT,
                message_id=chosen_id,
                timestamp=int(time.time()),
                type=contract.type,
                app_id=self._app_id,
                correlation_id=correlation_id,
                headers=given,
            )
        except (ValueError, TypeError, struct.error) as error:
            raise MessageTooLarge(f"The message cannot be sent: {error}.", chosen_id) from None
        if not fits_into_a_frame(properties):
            raise MessageTooLarge("Its headers do not fit into an AMQP frame; it was not sent.", chosen_id)
        body = encode(instance)
        if len(body) > MAX_BODY:
            raise MessageTooLarge(f"RabbitMQ does not take a message of {len(body):,} bytes.", chosen_id)
        read = as_read(contract, body, chosen_id)
        return Published(read, chosen_id, contract.type, body, correlation_id, dict(headers or {}), tracked)

    def _put(self, record: Published | Sent) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # as the real one: it cannot be cancelled
        error: PublishError | None = None
        with self._lock:
            if self._closed:
                error = PublisherClosed("The publisher is closed; the message was not sent.")
            elif self._errors:
                error = self._errors.popleft()
            elif self._holding:
                self._held.append((record, future))
                return future
            else:
                self._keep(record)
        if error is None:
            future.set_result(_result(record))
        else:
            future.set_exception(_for(record, error))
        return future

    def _keep(self, record: Published | Sent) -> None:
        if isinstance(record, Published):
            self._published.append(record)
        else:
            self._sent.append(record)

    def _drop(self, error: PublishError, only: Future[Any] | None = None) -> None:
        """Fail what is held."""
        with self._lock:
            dropped = [(record, future) for record, future in self._held if only in (None, future)]
            self._held = deque((record, future) for record, future in self._held if only not in (None, future))
        for record, future in dropped:
            future.set_exception(_for(record, error))

    def _give_up(self, future: Future[Any]) -> Any:
        """The outcome of a future whose deadline has passed."""
        self._drop(PublishTimeout("No confirm in time: the test holds the confirms."), future)
        return future.result()

    async def _await(self, future: Future[Any], timeout: float) -> Any:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), timeout)
        except TimeoutError:
            return self._give_up(future)


def as_read(contract: Contract, body: bytes, message_id: str | None = None) -> BaseModel:
    """The message as a consumer reads it from *body*. Raises `InvalidMessage` when none could."""
    try:
        return contract.model.model_validate_json(body)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise InvalidMessage(
            f"No consumer could read this {contract.type}: its own contract does not accept its JSON ({faults}).",
            message_id,
        ) from None


def _result(record: Published | Sent) -> Receipt | None:
    return Receipt(record.message_id, record.type) if isinstance(record, Published) else None


def _for(record: Published | Sent, error: PublishError) -> PublishError:
    """*error* as that of this message; one that was given for several must not be shared by them."""
    return type(error)(str(error), record.message_id if isinstance(record, Published) else None)
