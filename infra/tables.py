"""All tables of Ackline's database, on one page. The migrations in `ackline.infra.migrations` lead to exactly this.

A dead letter's life, which `dead_letters.state` holds and every change guards (`UPDATE ... WHERE state = ...`):

```
in review -> redriving -> handled
    ^            '------> in review again (redrive_count + 1)
    |
    '--> discarded (-> restored: in review)
```

`redriving` by itself is the claim: a row has one redrive item under way at most, which two operators, two processes and
a crash in between cannot break, because a unique index holds it.

What no program may do to them, ours included, triggers forbid (migration 0006): any other change of a dead letter's
state; a change of its payload; deleting it before it is handled or discarded; changing an edit; changing or deleting an
action.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.schema import CreateIndex, CreateTable

#: PostgreSQL advisory lock of whoever creates the tables; any number that nobody else uses.
_TABLES_LOCK = 0x61636B6F7574

#: Every constraint has a name, so that a later migration can change it on both databases.
_NAMES = {
    "pk": "pk_%(table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
}
metadata = MetaData(naming_convention=_NAMES)
#: The tables of an outbox, which an upstream service has in its own database too, beside its own tables.
outbox_metadata = MetaData(naming_convention=_NAMES)
#: The table of an inbox, which is in the database that handlers write to, beside their own tables.
inbox_metadata = MetaData(naming_convention=_NAMES)


class DeadLetterState(StrEnum):
    """Where a dead letter is in its life."""

    IN_REVIEW = "in review"
    REDRIVING = "redriving"
    HANDLED = "handled"
    DISCARDED = "discarded"


class Source(StrEnum):
    """Who said that a delivery failed for good."""

    WORKER = "worker"
    BROKER = "broker"
    UNROUTED = "unrouted"


class RedriveState(StrEnum):
    """Where a redrive is. It is *planned* first: its set is frozen then, and nothing has been sent.

    *stopped* is paused by Ackline itself, which says why: a canary failed, or the failure returned.
    """

    PLANNING = "planning"
    PLANNED = "planned"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    DONE = "done"


class ItemState(StrEnum):
    """Where one message of a redrive is.

    Its dead letter is claimed from *waiting* to the end. *issued* is committed before the publish and *confirmed* after
    it: a crash between the two publishes again. *ineligible* it was when the redrive was planned; *skipped* when its
    turn came, because somebody had done something else with it meanwhile, or because the redrive was cancelled.
    """

    PLANNED = "planned"
    INELIGIBLE = "ineligible"
    SKIPPED = "skipped"
    WAITING = "waiting"
    ISSUED = "issued"
    CONFIRMED = "confirmed"
    HANDLED = "handled"
    FAILED = "failed"
    NOT_SENT = "not sent"
    SUPERSEDED = "superseded"


class GroupStatus(StrEnum):
    """What people say of a group of equal failures. It is open again by itself when a resolved one returns."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


class ApprovalState(StrEnum):
    """Where a request that waits for a second person is.

    *approved* is being carried out, and then *done* or *failed*; it stays so if the process that does it is killed.
    """

    WAITING = "waiting"
    APPROVED = "approved"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"
    EXPIRED = "expired"
    DONE = "done"
    FAILED = "failed"


class AlertState(StrEnum):
    """Whether those who asked to be told of a new or reopened failure have been."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    FAILED = "failed"


class OutboxState(StrEnum):
    """Where a message in an outbox is. `failed` is one that the broker will never take as it is."""

    WAITING = "waiting"
    PUBLISHED = "published"
    CANCELLED = "cancelled"
    FAILED = "failed"


class DeliveryState(StrEnum):
    """What is known of a tracked delivery. One of which nothing is known yet is waiting, and has no row."""

    BEING_HANDLED = "being handled"
    WAITING_FOR_RETRY = "waiting for a retry"
    HANDLED = "handled"
    IN_REVIEW = "in review"
    REDRIVING = "redriving"
    DISCARDED = "discarded"


class CallbackState(StrEnum):
    """Whether somebody who asked to be called when a message is final has been."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    FAILED = "failed"


#: A redrive item in one of these has not been answered.
OPEN_ITEM_STATES = (ItemState.WAITING, ItemState.ISSUED, ItemState.CONFIRMED)
#: In one of these it is still to be published, for the first time or again.
UNSENT_ITEM_STATES = (ItemState.WAITING, ItemState.ISSUED)
#: A redrive in one of these has something to do.
UNFINISHED_REDRIVE_STATES = (RedriveState.PLANNING, RedriveState.RUNNING)


class UtcTime(TypeDecorator[datetime]):
    """A time in UTC, aware in Python. SQLite keeps no zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


#: SQLite counts rows by itself only in a column that is called INTEGER.
_Id = BigInteger().with_variant(Integer(), "sqlite")


def _one_of(column: str, states: Any) -> str:
    return f"{column} IN ({', '.join(repr(str(state)) for state in states)})"


_ITEM_OPEN = _one_of("state", OPEN_ITEM_STATES)
#: The condition of an index, word for word: SQLite uses that index for no other wording, bound parameters included.
IS_UNSENT = text(_one_of("state", UNSENT_ITEM_STATES))

#: As above, of an outbox.
IS_IN_OUTBOX = text(_one_of("state", [OutboxState.WAITING]))
#: As above, of a callback.
IS_UNDELIVERED = text(_one_of("state", [CallbackState.WAITING]))
#: As above, of a delivery whose message has a key.
HAS_KEY = text("ordering_key IS NOT NULL")
#: As above, of an alert.
IS_UNTOLD = text(_one_of("state", [AlertState.WAITING]))
#: As above, of a redrive.
IS_UNFINISHED = text(_one_of("state", UNFINISHED_REDRIVE_STATES))
#: As above, of a redrive's item that is not claimed yet.
IS_PLANNED = text(_one_of("state", [ItemState.PLANNED]))

#: As above, of a dead letter.
WAS_HANDLED = text("handled_at IS NOT NULL")
WAS_DISCARDED = text("discarded_at IS NOT NULL")

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", _Id, primary_key=True),
    # Which delivery it is. Texts show what is no UTF-8 as \xNN; the bytes themselves are in `properties`.
    Column("message_id", Text, nullable=False),
    Column("consumer", Text, nullable=False),  # empty when no consumer takes the type
    Column("body_sha256", LargeBinary(32), nullable=False),
    Column("state", Text, nullable=False),
    # Why it is here.
    Column("source", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("error_type", Text, nullable=False),
    Column("error_message", Text, nullable=False),
    Column("traceback", Text, nullable=False),
    Column("attempts", Integer, nullable=False),  # recorded tries of the handler, redrives included
    Column("history", JSON, nullable=False),  # list of {attempt, at, worker, error, message, redrive?}
    Column("first_failed_at", UtcTime, nullable=False),
    Column("received_at", UtcTime, nullable=False),  # when it was stored here: in the order of ids, but for moments
    Column("last_seen_at", UtcTime, nullable=False),
    # What it is.
    Column("type", Text, nullable=False),
    Column("app_id", Text),
    Column("correlation_id", Text),
    Column("published_at", UtcTime),
    Column("exchange", Text, nullable=False),  # that it was first published to, with its routing key
    Column("routing_key", Text, nullable=False),
    Column("properties", LargeBinary, nullable=False),  # as they came, for the redrive to send on
    Column("trusted", Boolean, nullable=False),  # whether the headers `ackline-*` in `properties` are Ackline's
    Column("payload", LargeBinary, nullable=False),
    Column("ordering_key", Text),  # of a message that has one: `ackline-key`
    # What people work with.
    Column(
        "fingerprint", Text, nullable=False, server_default=text("''")
    ),  # empty: not computed yet, or no longer valid
    Column("version", Integer, nullable=False, server_default="0"),  # the latest edit; 0 is the payload as it came
    # What became of it.
    Column("redrive_count", Integer, nullable=False),  # redrives that failed
    Column("redrive_item_id", Text),  # the item under way; no foreign key, for it would point in a circle
    Column("send_error", Text),  # why its last redrive could not be sent
    Column("duplicates", Integer, nullable=False),  # further arrivals that changed nothing
    Column("flags", JSON, nullable=False),  # list of sentences: what arrived out of turn
    Column("discarded_at", UtcTime),
    Column("discarded_by", Text),
    Column("discard_reason", Text),
    Column("handled_at", UtcTime),
    UniqueConstraint("message_id", "consumer", "body_sha256"),
    CheckConstraint(_one_of("state", DeadLetterState), name="state"),
    CheckConstraint(_one_of("source", Source), name="source"),
    CheckConstraint("(state = 'redriving') = (redrive_item_id IS NOT NULL)", name="redriving"),
    CheckConstraint("(state = 'handled') = (handled_at IS NOT NULL)", name="handled"),
    CheckConstraint(
        "(state = 'discarded') = "
        "(discarded_at IS NOT NULL AND discarded_by IS NOT NULL AND discard_reason IS NOT NULL)",
        name="discarded",
    ),
    Index(None, "state", "id"),
    Index(None, "consumer", "state", "id"),
    Index(None, "type", "state", "id"),
    Index(None, "fingerprint", "state", "id"),
    Index(None, "correlation_id"),
    Index(None, "received_at"),
    # What has been over for long: for the cleaning up.
    Index("ix_dead_letters_handled_at", "handled_at", sqlite_where=WAS_HANDLED, postgresql_where=WAS_HANDLED),
    Index("ix_dead_letters_discarded_at", "discarded_at", sqlite_where=WAS_DISCARDED, postgresql_where=WAS_DISCARDED),
    sqlite_autoincrement=True,  # the id of a row that was deleted names nothing else afterwards
)

# Words of error messages and reasons are searched by a full-text index (migration 0006; `ackline.dlq.selection`): the
# FTS5 table `dead_letter_text` on SQLite, which triggers keep; the index `ix_dead_letters_text` on PostgreSQL.

search_paths = Table(
    "search_paths",
    metadata,
    # What `search_values` holds: the paths, and the first dead letter from which on it has all.
    Column("path", Text, primary_key=True),  # as `ackline.dlq.condition` spells it
    Column("since", _Id, nullable=False),
)

search_values = Table(
    "search_values",
    metadata,
    # Of the current version of a payload: what is at those paths, so that it is found at once.
    Column("path", Text, primary_key=True),
    Column("value", Text, primary_key=True),  # the same for equal values: `ackline.dlq.search_values`
    Column("dead_letter_id", _Id, ForeignKey("dead_letters.id", ondelete="CASCADE"), primary_key=True, index=True),
)

edits = Table(
    "edits",
    metadata,
    Column("dead_letter_id", _Id, ForeignKey("dead_letters.id", ondelete="CASCADE"), primary_key=True),
    Column("version", Integer, primary_key=True),  # from 1
    Column("at", UtcTime, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("properties", LargeBinary, nullable=False),  # whole, as they would be sent on
    Column("diff", JSON, nullable=False),  # list of {path, before?, after?} against the version before
    Column("checked", Boolean, nullable=False),  # whether a contract was there to check it against
    CheckConstraint("version > 0", name="version"),
)

notes = Table(
    "notes",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("dead_letter_id", _Id, ForeignKey("dead_letters.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("at", UtcTime, nullable=False),
    Column("actor", Text, nullable=False),
    Column("text", Text, nullable=False),
    sqlite_autoincrement=True,
)

# --- groups of equal failures -----------------------------------------------------------------------------------------

fingerprints = Table(
    "fingerprints",
    metadata,
    Column("fingerprint", Text, primary_key=True),
    Column("consumer", Text, nullable=False),
    Column("type", Text, nullable=False),  # of its first message
    Column("error_type", Text, nullable=False),
    Column("frame", Text, nullable=False),  # first application frame of the traceback; empty: none
    Column("message", Text, nullable=False),  # without what differs from message to message
    Column("first_seen", UtcTime, nullable=False),
    Column("last_seen", UtcTime, nullable=False),
    Column("arrivals", BigInteger, nullable=False),  # failures in all, those that came back included
    Column("sample_id", _Id, nullable=False),  # the latest dead letter
    Column("status", Text, nullable=False),
    Column("status_at", UtcTime, nullable=False),
    Column("status_by", Text, nullable=False),
    Column("resolved_in", Text),  # version of the application
    Column("reopened", Integer, nullable=False),  # how often it returned after it was resolved
    Column("owner", Text),
    Column("note", Text),
    Column("runbook", Text),  # an http(s) URL
    CheckConstraint(_one_of("status", GroupStatus), name="status"),
    Index(None, "last_seen", "fingerprint"),
)

fingerprint_counts = Table(
    "fingerprint_counts",
    metadata,
    # How many dead letters of a fingerprint are in a state; `ackline.dlq.transition` keeps it.
    Column("fingerprint", Text, primary_key=True),
    Column("state", Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
    CheckConstraint(_one_of("state", DeadLetterState), name="state"),
)

fingerprint_rates = Table(
    "fingerprint_rates",
    metadata,
    Column("fingerprint", Text, primary_key=True),
    Column("bucket", UtcTime, primary_key=True),  # the beginning of ten minutes
    Column("count", Integer, nullable=False),  # arrivals in them
    Index(None, "bucket"),  # for the cleaning up
)

alerts = Table(
    "alerts",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", UtcTime, nullable=False),  # not before then
    Column("error", Text),
    Column("finished_at", UtcTime),
    CheckConstraint("kind IN ('new', 'reopened')", name="kind"),
    CheckConstraint(_one_of("state", AlertState), name="state"),
    Index("ix_alerts_untold", "next_at", sqlite_where=IS_UNTOLD, postgresql_where=IS_UNTOLD),
    sqlite_autoincrement=True,
)

# --- redrives ---------------------------------------------------------------------------------------------------------

redrives = Table(
    "redrives",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("created_at", UtcTime, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),  # empty: not said
    Column("state", Text, nullable=False),
    # What is to be sent: the dead letters of `selection` up to `newest_id`; `planned_to` is the last one looked at.
    Column("selection", JSON, nullable=False),
    Column("newest_id", _Id, nullable=False),
    Column("planned_to", _Id, nullable=False),
    Column("consumer", Text),  # to this one, whoever failed; None: to each one's own
    Column("patch", JSON(none_as_null=True)),  # RFC 6902, applied to each before it is sent
    Column("options", JSON, nullable=False),  # of the plan: what is eligible
    Column("planned_at", UtcTime),  # when the planning last got on: who was at it has died when that is long ago
    Column("plan", JSON(none_as_null=True)),  # what was planned, in counts; None before
    # How fast.
    Column("rate", Float),  # messages a second; None: as fast as it goes
    Column("canary", Boolean, nullable=False),
    # A run is from a start, or a resumption after it was stopped, to the next: each begins with a canary of its own.
    Column("run", Integer, nullable=False),  # 0: not started
    Column("run_from", BigInteger, nullable=False),  # how many had been sent when the run began
    Column("stage", Integer, nullable=False),  # of the run: how many may be sent until those have answered; 0: all
    Column("paced_at", UtcTime),  # when the rate was last set or the redrive went on, and what had been sent by then
    Column("paced_from", BigInteger, nullable=False),
    Column("sent", BigInteger, nullable=False),  # items that were claimed
    Column("started_at", UtcTime),
    Column("started_by", Text),
    Column("finished_at", UtcTime),
    Column("why", Text),  # it is stopped, or waits
    Column("counts", JSON(none_as_null=True)),  # its items by state, once none of them will change
    CheckConstraint(_one_of("state", RedriveState), name="state"),
    CheckConstraint("(state IN ('done', 'cancelled')) = (finished_at IS NOT NULL)", name="finished"),
    Index("ix_redrives_unfinished", "id", sqlite_where=IS_UNFINISHED, postgresql_where=IS_UNFINISHED),
    sqlite_autoincrement=True,
)

redrive_items = Table(
    "redrive_items",
    metadata,
    Column("id", Text, primary_key=True),  # UUIDv7; travels in the header `ackline-redrive`
    Column("redrive_id", _Id, ForeignKey("redrives.id"), nullable=False),
    Column("dead_letter_id", _Id, nullable=False, index=True),  # kept when the dead letter is forgotten
    Column("consumer", Text, nullable=False),  # empty: ineligible, for there is none
    Column("version", Integer, nullable=False),  # of the payload that is sent
    Column("fingerprint", Text, nullable=False),  # when it was planned: the failure that must not return
    Column("body_sha256", LargeBinary(32)),  # of what was sent; None before
    Column("state", Text, nullable=False),
    Column("run", Integer, nullable=False, server_default="0"),  # of the redrive, in which it was claimed; 0: not yet
    Column("error", Text),  # why it is ineligible, was skipped, could not be sent, or not yet
    Column("claimed_until", UtcTime),  # nobody else publishes it before then
    Column("issued_at", UtcTime),
    Column("confirmed_at", UtcTime),
    Column("finished_at", UtcTime),
    CheckConstraint(_one_of("state", ItemState), name="state"),
    CheckConstraint("consumer <> '' OR state = 'ineligible'", name="consumer"),
    UniqueConstraint("redrive_id", "dead_letter_id"),
    Index(
        "uq_redrive_items_open",
        "dead_letter_id",
        unique=True,
        sqlite_where=text(_ITEM_OPEN),
        postgresql_where=text(_ITEM_OPEN),
    ),
    Index("ix_redrive_items_unsent", "id", sqlite_where=IS_UNSENT, postgresql_where=IS_UNSENT),
    Index(
        "ix_redrive_items_planned",
        "redrive_id",
        "dead_letter_id",
        sqlite_where=IS_PLANNED,
        postgresql_where=IS_PLANNED,
    ),
    Index(None, "redrive_id", "state"),
)

# --- people, and what they did ----------------------------------------------------------------------------------------

actions = Table(
    "actions",
    metadata,
    # A chain: each row's hash covers the row and the hash of the one before, so that a change to any of them is found.
    Column("id", BigInteger, primary_key=True, autoincrement=False),  # 1, 2, 3: without gaps
    Column("at", UtcTime, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("details", JSON, nullable=False),  # what else is to be known: before and after, filters, approval
    Column("count", Integer, nullable=False),  # dead letters
    Column("hash", LargeBinary(32), nullable=False),  # SHA-256
)

action_items = Table(
    "action_items",
    metadata,
    Column("action_id", BigInteger, ForeignKey("actions.id"), primary_key=True),
    Column("dead_letter_id", _Id, primary_key=True, index=True),  # kept when the dead letter is forgotten
    Column("state_before", Text, nullable=False),
    Column("state_after", Text, nullable=False),
)

people = Table(
    "people",
    metadata,
    Column("name", Text, primary_key=True),
    Column("password_hash", Text, nullable=False),  # argon2id, PHC string
    Column("role", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("disabled_at", UtcTime),
    CheckConstraint("role IN ('viewer', 'operator', 'approver', 'admin')", name="role"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("token_sha256", LargeBinary(32), primary_key=True),
    Column("person", Text, ForeignKey("people.name"), nullable=False, index=True),
    Column("created_at", UtcTime, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False, index=True),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("name", Text, nullable=False),
    Column("person", Text, ForeignKey("people.name"), nullable=False, index=True),  # who acts
    Column("prefix", Text, nullable=False),
    Column("token_sha256", LargeBinary(32), nullable=False, unique=True),
    Column("role", Text, nullable=False),  # at most; the person's own if that is less
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),
    Column("revoked_at", UtcTime),
    CheckConstraint("role IN ('viewer', 'operator', 'approver', 'admin')", name="role"),
    UniqueConstraint("person", "name"),
    sqlite_autoincrement=True,
)

approvals = Table(
    "approvals",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("action", Text, nullable=False),
    Column("request", JSON, nullable=False),  # all that carrying it out needs
    Column("summary", Text, nullable=False),  # for who decides
    Column("diff", JSON, nullable=False),  # of an edit: list of {path, before?, after?}
    Column("rule", Text, nullable=False),  # why it waits
    Column("requested_at", UtcTime, nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("requested_role", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("state", Text, nullable=False),
    Column("decided_at", UtcTime),
    Column("decided_by", Text),
    Column("decision_reason", Text),
    Column("result", JSON(none_as_null=True)),
    CheckConstraint(_one_of("state", ApprovalState), name="state"),
    CheckConstraint(
        "state NOT IN ('approved', 'done', 'failed') "
        "OR (decided_by IS NOT NULL AND lower(decided_by) <> lower(requested_by))",
        name="four_eyes",
    ),
    CheckConstraint("(state = 'waiting') = (decided_at IS NULL)", name="decided"),
    Index(None, "state", "id"),
    sqlite_autoincrement=True,
)

# --- tracked messages -------------------------------------------------------------------------------------------------

deliveries = Table(
    "deliveries",
    metadata,
    Column("message_id", Text, primary_key=True),
    Column("consumer", Text, primary_key=True),
    Column("type", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("redrive", Text),  # the redrive item that it is about; None before the first
    Column("attempts", Integer, nullable=False),  # recorded tries of the handler since the last redrive
    Column("first_at", UtcTime, nullable=False),
    Column("changed_at", UtcTime, nullable=False),
    Column("due_at", UtcTime),  # its retry comes not before then
    Column("last_error", Text),
    Column("worker", Text, nullable=False),
    Column("progress", Float),  # from 0 to 1, while it is being handled and the handler has told
    Column("progress_text", Text),
    Column("ordering_key", Text),
    CheckConstraint(_one_of("state", DeliveryState), name="state"),
    Index(None, "changed_at"),  # for the cleaning up
    # Whether a later message of the same key was handled.
    Index(
        "ix_deliveries_ordering_key",
        "consumer",
        "ordering_key",
        "message_id",
        sqlite_where=HAS_KEY,
        postgresql_where=HAS_KEY,
    ),
)

accepted = Table(
    "accepted",
    metadata,
    # Tracked messages as the broker took them, from a queue that it fills itself: what the ledger starts from.
    Column("message_id", Text, primary_key=True),
    Column("type", Text, nullable=False),
    Column("at", UtcTime, nullable=False, index=True),
)

callbacks = Table(
    "callbacks",
    metadata,
    Column("message_id", Text, primary_key=True),
    Column("type", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),  # of a scheduled message: when it is due
    Column("body", Text),  # what is told, in every attempt, once the message is final
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", UtcTime, nullable=False),  # not before then
    Column("error", Text),  # of the last attempt
    Column("finished_at", UtcTime),
    CheckConstraint(_one_of("state", CallbackState), name="state"),
    Index(None, "finished_at"),  # for the cleaning up
    Index("ix_callbacks_undelivered", "next_at", sqlite_where=IS_UNDELIVERED, postgresql_where=IS_UNDELIVERED),
)

# --- consumers --------------------------------------------------------------------------------------------------------

pauses = Table(
    "pauses",
    metadata,
    Column("consumer", Text, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),  # empty: not said
)

# --- jobs -------------------------------------------------------------------------------------------------------------

job_chords = Table(
    "job_chords",
    metadata,
    Column("id", Text, primary_key=True),  # of the group of its parts
    Column("header", JSON, nullable=False),  # the ids of its parts in the order of their results; a list for each group
    Column("created_at", UtcTime, nullable=False),
    Column("failed_at", UtcTime),  # when its first part failed, and its error callbacks were called
    Column("expires_at", UtcTime, index=True),  # None until its callback is published
)

job_chord_parts = Table(
    "job_chord_parts",
    metadata,
    Column("task_id", Text, primary_key=True),
    Column("chord_id", Text, ForeignKey(job_chords.c.id, ondelete="CASCADE"), nullable=False, index=True),
    Column("result", Text),  # JSON; None until it has succeeded
)

job_results = Table(
    "job_results",
    metadata,
    # What became of the last try of a job, as Celery tells it.
    Column("id", Text, primary_key=True),
    Column("name", Text),
    Column("state", Text, nullable=False),  # Celery's, or one of the job's own that it gave to `update_state`
    Column("attempt", Integer, nullable=False),  # number of the try, from 1
    Column("result", Text),  # JSON: what it returned, {exc_type, exc_message, exc_module}, or what `update_state` got
    Column("traceback", Text),
    Column("children", Text),  # JSON: the results of the jobs that it published
    Column("group_id", Text),
    Column("parent_id", Text),
    Column("worker", Text),  # None: it never ran, for what it waited for failed
    Column("submitted_at", UtcTime),
    Column("started_at", UtcTime),
    Column("changed_at", UtcTime, nullable=False),
    Column("finished_at", UtcTime),
    Column("expires_at", UtcTime, nullable=False, index=True),
)

job_groups = Table(
    "job_groups",
    metadata,
    Column("id", Text, primary_key=True),
    Column("result", Text, nullable=False),  # JSON: the ids of its jobs, as Celery nests them
    Column("expires_at", UtcTime, nullable=False, index=True),
)

unique_jobs = Table(
    "unique_jobs",
    metadata,
    # Jobs of which an equal one is not submitted again: written in the transaction that puts the job into the outbox.
    Column("key", LargeBinary(32), primary_key=True),  # SHA-256 of its name and arguments
    Column("job_id", Text, nullable=False, index=True),
    Column("expires_at", UtcTime, nullable=False, index=True),
)

# --- schedules --------------------------------------------------------------------------------------------------------

schedules = Table(
    "schedules",
    metadata,
    Column("name", Text, primary_key=True),
    Column("origin", Text, nullable=False),  # where it is declared
    Column("declared", Boolean, nullable=False),  # whether it still is, as far as the active beat knows
    Column("definition", JSON, nullable=False),  # the schedule, as `ackline.toml` has it
    Column("covered_to", UtcTime, nullable=False),  # ticks up to then are over: run, or missed
    Column("last_run_at", UtcTime),
    Column("last_id", Text),  # of the message or job of that run
    Column("error", Text),  # why it cannot be run at present
    Column("paused_at", UtcTime),
    Column("paused_by", Text),
    Column("pause_reason", Text),  # empty: not said
    CheckConstraint("origin IN ('application', 'file', 'command line')", name="origin"),
    CheckConstraint("(paused_at IS NULL) = (paused_by IS NULL)", name="paused"),
)

schedule_runs = Table(
    "schedule_runs",
    metadata,
    # The fence: a tick has one row, which is inserted with the message's own in the outbox.
    Column("schedule", Text, primary_key=True),  # kept when the schedule is removed
    Column("planned_at", UtcTime, primary_key=True),  # the tick; of a run that a person asked for, when that was
    Column("at", UtcTime, nullable=False, index=True),
    Column("message_id", Text, nullable=False),
    Column("by", Text, nullable=False),  # the beat, or the person
)

# --- the gateway ------------------------------------------------------------------------------------------------------

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("owner", Text, primary_key=True),  # name of the API key; empty without keys
    Column("key", Text, primary_key=True),
    Column("request_sha256", LargeBinary(32), nullable=False),
    Column("message_id", Text, nullable=False),  # decided before the publish, so that every try has the same
    Column("created_at", UtcTime, nullable=False, index=True),
    Column("claimed_until", UtcTime, nullable=False),  # until then somebody works on it
    Column("answer", Text),  # JSON, once there is one
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("prefix", Text, nullable=False),  # the beginning of the key, to know it by
    Column("key_sha256", LargeBinary(32), nullable=False, unique=True),
    Column("types", JSON, nullable=False),  # list of message types, `*` at the end for any ending; empty: all
    Column("rate", Integer),  # requests a second
    Column("created_at", UtcTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("revoked_at", UtcTime),
    Column("revoked_by", Text),
    sqlite_autoincrement=True,
)

secrets = Table(
    "secrets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", LargeBinary, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

# --- outboxes ---------------------------------------------------------------------------------------------------------

outbox = Table(
    "ackline_outbox",
    outbox_metadata,
    Column("id", _Id, primary_key=True),  # the order of publishing
    Column("message_id", Text, nullable=False, index=True),
    Column("type", Text, nullable=False),
    Column("properties", LargeBinary, nullable=False),  # as they go over the wire
    Column("payload", LargeBinary, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("due_at", UtcTime),  # not before then; None: at once
    Column("state", Text, nullable=False),
    Column("error", Text),  # why it could not be published, or not yet
    Column("finished_at", UtcTime),
    CheckConstraint(_one_of("state", OutboxState), name="state"),
    CheckConstraint("(state = 'waiting') = (finished_at IS NULL)", name="finished"),
    Index("ix_ackline_outbox_waiting", "due_at", "id", sqlite_where=IS_IN_OUTBOX, postgresql_where=IS_IN_OUTBOX),
    Index(None, "finished_at"),  # for the cleaning up
    sqlite_autoincrement=True,
)

leases = Table(
    "ackline_leases",
    outbox_metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
)

# --- inboxes ----------------------------------------------------------------------------------------------------------

inbox = Table(
    "ackline_inbox",
    inbox_metadata,
    Column("consumer", Text, primary_key=True),
    Column("message_id", Text, primary_key=True),
    Column("body_sha256", LargeBinary(32), nullable=False),
    Column("claimed_until", UtcTime),  # until then somebody handles it; None: it is handled
    Column("changed_at", UtcTime, nullable=False),  # when it was claimed; once it is handled, when that was
    # list of {type, properties (base64), payload}: what the handler published, until the broker has confirmed all of it
    Column("unconfirmed", JSON(none_as_null=True)),
    Column("keep_until", UtcTime, nullable=False, index=True),
)


def create_missing(bind: Engine | Connection, tables: MetaData) -> None:
    """Create those of *tables* that are missing: in a transaction of its own, or in that of a connection.

    Safe when several do it at once.
    """
    if isinstance(bind, Engine):
        with bind.begin() as connection:
            create_missing(connection, tables)
        return
    if bind.dialect.name == "postgresql":
        bind.execute(select(func.pg_advisory_xact_lock(_TABLES_LOCK)))
    for table in tables.sorted_tables:
        bind.execute(CreateTable(table, if_not_exists=True))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            bind.execute(CreateIndex(index, if_not_exists=True))


def has_all(connection: Connection, tables: MetaData) -> bool:
    """Whether this database has all of *tables*."""
    return all(inspect(connection).has_table(name) for name in tables.tables)
