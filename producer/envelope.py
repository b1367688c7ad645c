"""Messages made ready to be published later: by the relay, from a row of an outbox. Brings no SQLAlchemy."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from pydantic import BaseModel

from ackline.infra.errors import AcklineError
from ackline.infra.properties import Properties
from ackline.infra.settings import settings
from ackline.infra.wire import TRACK, fits_into_a_frame, now, uuid7
from ackline.producer.errors import MessageTooLarge
from ackline.producer.message import contract_of, encode, key_headers
from ackline.producer.stamp import Stamp
from ackline.producer.tracing import trace_headers


class InvalidDueTime(AcklineError):
    """It does not say when a message is due."""


class Entry(NamedTuple):
    """A message ready to be published under its type, to the exchange that `ackline.infra.wire.entrance` names.

    properties: as they go over the wire, `message_id` and `type` among them. due_at: aware; None: at once.
    """

    message_id: str
    type: str
    properties: Properties
    payload: bytes
    due_at: datetime | None = None


def enclose(
    instance: BaseModel,
    *,
    message_id: str | None = None,
    correlation_id: str | None = None,
    headers: Mapping[str, Any] | None = None,
    track: bool | None = None,
    delay: timedelta | float | None = None,
    deliver_at: datetime | None = None,
    app_id: str | None = None,
) -> Entry:
    """An instance of a contract as an entry of an outbox; the trace that it belongs to is the one of now.

    message_id: a new UUIDv7 when not given. track: as its contract says when not given. delay, deliver_at: see
    `due_time`. app_id: the service, `ACKLINE_SERVICE` when not given. Raises `InvalidMessage`, `MessageTooLarge`,
    `InvalidDueTime`.
    """
    contract = contract_of(instance)
    chosen_id = message_id or uuid7()
    keyed = key_headers(contract, instance)
    ours: dict[str, Any] = {**trace_headers()}
    if contract.track if track is None else track:
        ours[TRACK] = True
    try:
        stamp = Stamp(contract, app_id or settings().service)
        raw = stamp.properties(chosen_id, correlation_id, {**ours, **(headers or {}), **keyed})
    except (ValueError, TypeError, struct.error) as error:
        raise MessageTooLarge(f"The message cannot be sent: {error}.", chosen_id) from None
    properties = Properties.from_wire(raw)
    if not fits_into_a_frame(properties):
        raise MessageTooLarge("The message cannot be sent: its headers do not fit into an AMQP frame.", chosen_id)
    return Entry(chosen_id, contract.type, properties, encode(instance), due_time(delay, deliver_at))


def due_time(delay: timedelta | float | None, deliver_at: datetime | None) -> datetime | None:
    """When a message is due, in UTC; None: at once, which a time in the past is too.

    delay: from now, in seconds when it is a number. deliver_at: an aware time. Raises `InvalidDueTime` when both are
    given, for a time without a zone, and for one beyond the year 9999.
    """
    if delay is not None and deliver_at is not None:
        raise InvalidDueTime("A message is due after a delay or at a time: give `delay` or `deliver_at`, not both.")
    present = now()
    try:
        if delay is not None:
            due = present + (delay if isinstance(delay, timedelta) else timedelta(seconds=delay))
        elif deliver_at is None:
            return None
        elif deliver_at.utcoffset() is None:
            raise InvalidDueTime(
                f"deliver_at={deliver_at.isoformat()} has no time zone, so it names no moment: "
                "use an aware datetime, such as datetime(2030, 1, 1, tzinfo=UTC)."
            )
        else:
            due = deliver_at.astimezone(UTC)
    except (OverflowError, ValueError):
        given = deliver_at.isoformat() if deliver_at is not None else delay
        raise InvalidDueTime(f"{given} is no time of the calendar: the latest is in the year 9999.") from None
    return due if due > present else None
