"""What a handler may know and do besides its message."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from ackline.consumers.stopping import NEVER, Stopping
from ackline.infra.errors import ConfigurationError
from ackline.infra.properties import PERSISTENT, Properties
from ackline.infra.table import text
from ackline.infra.wire import entrance, uuid7, uuid8
from ackline.producer.message import contract_of, encode, key_headers

log = logging.getLogger("ackline.handler")


class Context:
    """One delivery, as a handler sees it. Belongs to the handler's call; not thread-safe."""

    __slots__ = (
        *("_enlisted", "_properties", "_session", "_stopping", "_tell"),
        *("attempt", "consumer", "id", "on_confirmed", "raw", "type"),
    )

    def __init__(
        self,
        *,
        consumer: str,
        message_id: str | None,
        message_type: str,
        attempt: int,
        properties: Properties,
        raw: bytes = b"",
        stopping: Stopping = NEVER,
        tell: Callable[[float, str], None] | None = None,
    ) -> None:
        """tell: takes what `progress` is told; None when nobody asks."""
        #: Name of the consumer.
        self.consumer = consumer
        #: Id of the message; None when a foreign client gave it none.
        self.id = message_id
        #: Type of the message.
        self.type = message_type
        #: Number of this try of the handler, from 1.
        self.attempt = attempt
        #: The body as it came.
        self.raw = raw
        self._properties = properties
        self._stopping = stopping
        self._tell = tell
        #: Called, on whichever thread learns it, when the broker has confirmed all that was enlisted.
        self.on_confirmed: Callable[[], None] | None = None
        self._session: Any = None
        self._enlisted: list[tuple[str, Properties, bytes]] | None = None

    def __str__(self) -> str:
        return f"{self.type} {self.id} for {self.consumer}, attempt {self.attempt}"

    @property
    def headers(self) -> dict[str, Any]:
        """The message's headers, decoded; foreign ones may hold anything."""
        return self._properties.headers.decoded()

    @property
    def correlation_id(self) -> str | None:
        """The caller's correlation id."""
        return text(self._properties.correlation_id) if self._properties.correlation_id else None

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines name the message."""
        return _DeliveryLogger(log, {"delivery": str(self)})

    @property
    def stopping(self) -> bool:
        """Whether the worker stops: what takes longer than the grace period should ask, and end soon.

        Raise `Park("1s")` to break off: another worker begins it anew, and no attempt is counted.
        """
        return self._stopping.is_set

    def wait(self, seconds: float) -> bool:
        """Wait for *seconds*, or until the worker stops: returns whether it does. For plain handlers."""
        return self._stopping.wait(seconds)

    async def sleep(self, seconds: float) -> bool:
        """Wait for *seconds*, or until the worker stops: returns whether it does. For async handlers."""
        return await self._stopping.sleep(seconds)

    def progress(self, done: float, text: str = "") -> None:
        """Tell whoever watches a tracked message how far its handler is: *done* from 0 to 1, and *text* for a person.

        Call it as often as you like: it costs next to nothing, and one a second is told, the last one in any case. Of
        a message that is not tracked nobody is told.
        """
        if self._tell is not None:
            self._tell(max(0.0, min(done, 1.0)), text)

    @property
    def session(self) -> Any:
        """The SQLAlchemy `Session`, an async handler's `AsyncSession`, of a consumer with an `inbox`.

        What is written on it commits when the handler returns, together with the note that the message is handled.
        Raises `ConfigurationError` where there is none.
        """
        if self._session is None:
            raise ConfigurationError(
                f"{self.consumer} has no session: add inbox=inbox() to its @consumer (ackline.consumers.inbox)."
            )
        return self._session

    def lend(self, session: Any) -> None:
        """Let the handler use *session* as its own."""
        self._session = session

    def publish(self, instance: BaseModel) -> str:
        """Enlist a message: it is sent, and confirmed, after the handler returns and before its message is acked.

        Returns its id, derived from (this message, this consumer, how many before it), so that a repeated delivery
        publishes the same ids and nothing multiplies downstream; a new one when this message has no id. Nothing is sent
        when the handler raises.
        Raises `InvalidMessage` for what is no message.
        """
        contract = contract_of(instance)
        if self._enlisted is None:
            self._enlisted = []
        # Derived from nothing, the ids of all messages without one would be the same, and pass for repetitions.
        id_ = uuid7() if self.id is None else child_id(self.id, self.consumer, len(self._enlisted))
        properties = Properties(
            content_type=b"application/json",
            delivery_mode=PERSISTENT,
            message_id=id_,
            type=contract.type,
            app_id=self.consumer.encode()[:255],
            correlation_id=self._properties.correlation_id,
            timestamp=self._properties.timestamp,
            headers=key_headers(contract, instance),
        )
        self._enlisted.append((contract.type, properties, encode(instance)))
        return id_

    @property
    def has_enlisted(self) -> bool:
        """Whether `publish` was called."""
        return bool(self._enlisted)

    def enlisted(self) -> list[tuple[str, str, Properties, bytes]]:
        """What `publish` collected, as (exchange, routing key, properties, body)."""
        return [(entrance(properties), type_, properties, body) for type_, properties, body in self._enlisted or ()]

    def forget_enlisted(self) -> None:
        """Drop what `publish` collected: the handler is run again."""
        self._enlisted = None

    def enlist_again(self, messages: list[tuple[str, Properties, bytes]]) -> None:
        """Have sent what an earlier delivery of this message enlisted, as (type, properties, body)."""
        self._enlisted = messages


class _DeliveryLogger(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        return f"[{(self.extra or {})['delivery']}] {msg}", kwargs


def child_id(parent: str, consumer: str, index: int) -> str:
    """The id of the *index*-th message that *consumer* publishes for *parent*: the same for ever."""
    return uuid8(f"{parent}\x00{consumer}\x00{index}")
