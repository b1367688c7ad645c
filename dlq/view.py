"""What is read of the store: dead letters as people see them, and what became of what they asked for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from ackline.dlq.deadletter import Entry

#: Bytes of a payload that `get` brings; `payload` brings all of it.
PREVIEW = 64 * 1024


@dataclass(frozen=True, slots=True)
class Summary:
    """A dead letter as a list shows it."""

    id: int
    state: str
    source: str
    type: str
    consumer: str
    message_id: str
    attempts: int
    reason: str
    error_type: str
    error_message: str
    send_error: str | None
    first_failed_at: datetime
    received_at: datetime
    last_seen_at: datetime
    redrive_count: int
    duplicates: int


class Page(NamedTuple):
    """Some dead letters, latest first."""

    items: list[Summary]
    #: `after` of the page that follows; None when there is none. A page may be short, or empty, and still have one.
    next: int | None
    #: Payloads that were read for it, one by one, as no index helped.
    scanned: int


@dataclass(frozen=True, slots=True)
class Action:
    """What somebody did to a dead letter."""

    at: datetime
    actor: str
    action: str
    reason: str
    state_before: str
    state_after: str


@dataclass(frozen=True, slots=True)
class Detail(Summary):
    """All of a dead letter but for the rest of a large payload."""

    traceback: str
    history: list[Entry]
    flags: list[str]
    app_id: str | None
    correlation_id: str | None
    published_at: datetime | None
    exchange: str
    routing_key: str
    properties: bytes
    body_sha256: bytes
    redrive_item_id: str | None
    discarded_at: datetime | None
    discarded_by: str | None
    discard_reason: str | None
    handled_at: datetime | None
    #: The first `PREVIEW` bytes of the payload, and how many bytes it has.
    payload: bytes
    payload_size: int
    actions: list[Action]


@dataclass(frozen=True, slots=True)
class Item:
    """What has become of one message of a redrive."""

    id: str
    dead_letter_id: int
    state: str
    consumer: str
    error: str | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Unstored:
    """A dead letter that the database does not take, by its place in the batch, and why."""

    index: int
    reason: str
