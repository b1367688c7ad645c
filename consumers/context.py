"""What a handler may know and do besides its message."""

from __future__ import annotations

import hashlib
import logging
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from ackline.infra.names import MESSAGES
from ackline.infra.properties import PERSISTENT, Properties
from ackline.infra.table import text
from ackline.infra.wire import uuid7
from ackline.producer.message import encode, type_of

log = logging.getLogger("ackline.handler")


class Context:
    """One delivery, as a handler sees it. Belongs to the handler's call; not thread-safe."""

    def __init__(
        self, *, consumer: str, message_id: str | None, message_type: str, attempt: int, properties: Properties
    ) -> None:
        #: Name of the consumer.
        self.consumer = consumer
        #: Id of the message; None when a foreign client gave it none.
        self.id = message_id
        #: Type of the message.
        self.type = message_type
        #: Number of this try of the handler, from 1.
        self.attempt = attempt
        self._properties = properties
        self._enlisted: list[tuple[str, Properties, bytes]] = []

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
        return _DeliveryLogger(log, {"delivery": f"{self.type} {self.id} for {self.consumer}, attempt {self.attempt}"})

    def publish(self, instance: BaseModel) -> str:
        """Enlist a message: it is sent, and confirmed, after the handler returns and before its message is acked.

        Returns its id, derived from (this message, this consumer, how many before it), so that a repeated delivery
        publishes the same ids and nothing multiplies downstream; a new one when this message has no id. Nothing is sent
        when the handler raises.
        Raises `InvalidMessage` for what is no message.
        """
        type_ = type_of(instance)
        # Derived from nothing, the ids of all messages without one would be the same, and pass for repetitions.
        id_ = uuid7() if self.id is None else child_id(self.id, self.consumer, len(self._enlisted))
        properties = Properties(
            content_type=b"application/json",
            delivery_mode=PERSISTENT,
            message_id=id_,
            type=type_,
            app_id=self.consumer.encode()[:255],
            correlation_id=self._properties.correlation_id,
            timestamp=self._properties.timestamp,
        )
        self._enlisted.append((type_, properties, encode(instance)))
        return id_

    def enlisted(self) -> list[tuple[str, str, Properties, bytes]]:
        """What `publish` collected, as (exchange, routing key, properties, body)."""
        return [(MESSAGES, type_, properties, body) for type_, properties, body in self._enlisted]


class _DeliveryLogger(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        return f"[{(self.extra or {})['delivery']}] {msg}", kwargs


def child_id(parent: str, consumer: str, index: int) -> str:
    """The id of the *index*-th message that *consumer* publishes for *parent*: UUIDv8 (RFC 9562) of their SHA-256."""
    digest = bytearray(hashlib.sha256(f"{parent}\x00{consumer}\x00{index}".encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return str(UUID(bytes=bytes(digest)))
