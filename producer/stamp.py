"""The properties of published messages, as the bytes of a header frame."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ackline.infra.frames import publish_method
from ackline.infra.names import MESSAGES, TRACKED
from ackline.infra.properties import PERSISTENT
from ackline.infra.table import Table
from ackline.infra.wire import TRACK
from ackline.producer.message import Contract, contract_of, key_headers

#: Bits of the property flags (AMQP 0-9-1, class `basic`); the values follow in this order.
_CONTENT_TYPE, _HEADERS, _DELIVERY_MODE, _CORRELATION_ID = 1 << 15, 1 << 13, 1 << 12, 1 << 10
_MESSAGE_ID, _TIMESTAMP, _TYPE, _APP_ID = 1 << 7, 1 << 6, 1 << 5, 1 << 3
#: The headers that most tracked messages have, encoded once.
_TRACK_ONLY = {TRACK: True}
_TRACKED = Table.of(_TRACK_ONLY).raw
_ALWAYS = _CONTENT_TYPE | _DELIVERY_MODE | _MESSAGE_ID | _TIMESTAMP | _TYPE | _APP_ID


class Stamp:
    """What all messages of one type share, encoded once. Thread-safe."""

    def __init__(self, contract: Contract, app_id: str) -> None:
        """app_id: the service that publishes. Raises ValueError when it is longer than the 255 bytes of AMQP."""
        self.contract = contract
        self.type = type_ = contract.type
        #: Whether its messages are tracked, where the publisher is not told otherwise.
        self.track = contract.track
        #: The field that has a message's key; None when they have none.
        self.key = contract.key
        #: The payload of its `basic.publish`: of one that is not tracked, and of one that is.
        self.method = publish_method(MESSAGES, type_)
        self.tracked_method = publish_method(TRACKED, type_)
        self._content_type = _text("content_type", "application/json")
        self._delivery_mode = bytes((PERSISTENT,))
        self._head = _ALWAYS.to_bytes(2) + self._content_type + self._delivery_mode
        self._tail = _text("type", type_) + _text("app_id", app_id)

    def key_headers(self, instance: BaseModel) -> dict[str, Any]:
        """The headers that bring *instance* to the shard of its key. Raises `InvalidMessage`."""
        return key_headers(self.contract, instance)

    def properties(
        self, message_id: str, correlation_id: str | None = None, headers: Mapping[str, Any] | None = None
    ) -> bytes:
        """The properties of one message, published now.

        Raises ValueError, TypeError or struct.error for what AMQP cannot hold.
        """
        rest = (_text("message_id", message_id), int(time.time()).to_bytes(8), self._tail)
        if not headers and correlation_id is None:
            return b"".join((self._head, *rest))
        flags = _ALWAYS
        pieces = [self._content_type]
        if headers:
            flags |= _HEADERS
            table = _TRACKED if headers == _TRACK_ONLY else Table.of(headers).raw
            pieces += (len(table).to_bytes(4), table)
        pieces.append(self._delivery_mode)
        if correlation_id is not None:
            flags |= _CORRELATION_ID
            pieces.append(_text("correlation_id", correlation_id))
        return b"".join((flags.to_bytes(2), *pieces, *rest))


class Stamps:
    """The stamp of each contract, made when it is first asked for. Thread-safe."""

    def __init__(self, app_id: str) -> None:
        """app_id: the service that publishes."""
        self._app_id = app_id
        self._made: dict[type[BaseModel], Stamp] = {}

    def of(self, instance: BaseModel) -> Stamp:
        """The stamp of what *instance* is. Raises `InvalidMessage` when that has no contract."""
        return self._made.get(instance.__class__) or self._make(instance)

    def _make(self, instance: BaseModel) -> Stamp:
        contract = contract_of(instance)
        stamp = self._made[instance.__class__] = Stamp(contract, self._app_id)
        return stamp


def _text(name: str, value: str) -> bytes:
    raw = value.encode("utf-8", "surrogateescape")
    if len(raw) > 255:
        raise ValueError(f"{name} has {len(raw)} bytes; AMQP allows 255")
    return bytes((len(raw),)) + raw
