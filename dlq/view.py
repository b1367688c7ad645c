"""What is read of the store: dead letters as people see them, and what became of what they asked for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from ackline.dlq.deadletter import Entry
from ackline.dlq.edits import Version
from ackline.dlq.readable import Shown


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
    fingerprint: str
    version: int


class Page(NamedTuple):
    """Some dead letters, latest first."""

    items: list[Summary]
    #: `after` of the page that follows; None when there is none. A page may be short, or empty, and still have one.
    next: int | None
    #: Payloads that were read for it, one by one, as no index helped.
    scanned: int


@dataclass(frozen=True, slots=True)
class Action:
    """What somebody did to a dead letter. id: of the action, which may have been about others too."""

    id: int
    at: datetime
    actor: str
    action: str
    reason: str
    details: dict[str, Any]
    state_before: str
    state_after: str


@dataclass(frozen=True, slots=True)
class Note:
    """What somebody wrote about a dead letter."""

    at: datetime
    actor: str
    text: str


@dataclass(frozen=True, slots=True)
class Sent:
    """A redrive that a dead letter is or was part of. version: of the payload."""

    id: str
    redrive_id: int
    state: str
    consumer: str
    version: int
    error: str | None
    issued_at: datetime | None
    confirmed_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class GroupOf:
    """What is known of all dead letters of the same fingerprint."""

    fingerprint: str
    error_type: str
    frame: str
    message: str
    first_seen: datetime
    last_seen: datetime
    arrivals: int
    status: str
    resolved_in: str | None
    owner: str | None
    note: str | None
    runbook: str | None


@dataclass(frozen=True, slots=True)
class Related:
    """Another dead letter of the same message (for another consumer, or with another body), or correlation id."""

    id: int
    state: str
    consumer: str
    type: str
    message_id: str
    received_at: datetime


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
    ordering_key: str | None
    redrive_item_id: str | None
    discarded_at: datetime | None
    discarded_by: str | None
    discard_reason: str | None
    handled_at: datetime | None
    #: Of the body as it came, in hexadecimal.
    body_sha256: str
    #: As they came, decoded; and the headers that an edit may set, as they are now.
    properties: dict[str, Any]
    headers: dict[str, Any]
    #: The payload as it is now, the latest edit included.
    payload: Shown
    #: Whether something of the payload is hidden.
    masked: bool
    group: GroupOf | None
    actions: list[Action]
    edits: list[Version]
    notes: list[Note]
    redrives: list[Sent]
    related: list[Related]


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
