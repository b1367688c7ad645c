"""Dead letters as JSON lines: out of one database and into another, payloads and properties byte by byte.

A payload that is UTF-8 is a text, `payload`; any other is `payload_base64`. What a person would read in the properties
is beside what an import takes, `properties_base64`. Ids, states and actions are told, and are not imported: they are
the other database's.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)
from sqlalchemy import Connection, Engine, select, tuple_, update
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ackline.dlq import document, intake, search_values
from ackline.dlq.contracts import Contracts
from ackline.dlq.deadletter import DeadLetter, clean, name
from ackline.dlq.errors import Fault
from ackline.dlq.intake import Key
from ackline.dlq.rights import Actor
from ackline.dlq.transition import transitions
from ackline.infra.database import is_outage, writing
from ackline.infra.properties import Properties
from ackline.infra.tables import Source, action_items, actions, dead_letters, edits, notes
from ackline.infra.terminal import plain

#: What a line says first: the version of its form.
FORMAT = 1
#: Lines in one transaction, and faults that are told of, at most.
_BATCH, MAX_FAULTS = 500, 100
#: Characters of a line at most: a message of 128 MB, which is RabbitMQ's bound, twice in base64.
_MAX_LINE = 512 * 1024 * 1024
#: Columns that a line has as they are.
_SAME = (
    *("id", "state", "message_id", "consumer", "type", "source", "reason", "error_type", "error_message", "traceback"),
    *("attempts", "history", "first_failed_at", "received_at", "last_seen_at", "app_id", "correlation_id"),
    *(
        "published_at",
        "exchange",
        "routing_key",
        "trusted",
        "ordering_key",
        "fingerprint",
        "redrive_count",
        "send_error",
    ),
    *("duplicates", "flags", "discarded_at", "discarded_by", "discard_reason", "handled_at"),
)
_KEY = (dead_letters.c.message_id, dead_letters.c.consumer, dead_letters.c.body_sha256)


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of lines: so many are in review now, so many were here already. faults: the first `MAX_FAULTS` lines
    that cannot be used, as `Fault("line 7", why)`, of so many."""

    stored: int = 0
    duplicates: int = 0
    faulty: int = 0
    faults: list[Fault] = field(default_factory=list)


# --- out --------------------------------------------------------------------------------------------------------------


def written(connection: Connection, ids: Sequence[int], masked: Contracts | None) -> list[dict[str, Any]]:
    """The lines of these dead letters, in this order. masked: what is hidden; None hides nothing."""
    query = select(*[dead_letters.c[column] for column in (*_SAME, "payload", "properties", "body_sha256")])
    found = {row.id: row for row in connection.execute(query.where(dead_letters.c.id.in_(ids)))}
    versions, said, done = _below(connection, edits, ids), _below(connection, notes, ids), _done(connection, ids)
    lines = []
    for row_id in ids:
        row = found[row_id]
        hides = masked is not None and masked.shape(row.type) is not None
        line = {"ackline_dead_letter": FORMAT, **{column: plain(getattr(row, column)) for column in _SAME}}
        line |= {"masked": hides, "body_sha256": bytes(row.body_sha256).hex()}
        line |= _message(row.payload, row.properties, row.type, masked if hides else None)
        line["edits"] = [
            {
                **{
                    column: plain(getattr(edit, column))
                    for column in ("version", "at", "actor", "reason", "diff", "checked")
                },
                **_message(edit.payload, edit.properties, row.type, masked if hides else None),
            }
            for edit in versions.get(row_id, ())
        ]
        line["notes"] = [
            {"at": plain(note.at), "actor": note.actor, "text": note.text} for note in said.get(row_id, ())
        ]
        line["actions"] = done.get(row_id, [])
        lines.append(line)
    return lines


def _message(payload: bytes, properties: bytes, type_: str, masked: Contracts | None) -> dict[str, Any]:
    payload = bytes(payload)
    if masked is not None:
        payload = document.write(masked.mask(type_, payload))
    found: dict[str, Any] = {"payload": None, "payload_base64": None}
    try:
        found["payload"] = payload.decode()
    except UnicodeDecodeError:
        found["payload_base64"] = b64encode(payload).decode()
    found["properties"] = plain(Properties.from_wire(bytes(properties)).decoded())
    found["properties_base64"] = b64encode(bytes(properties)).decode()
    return found


def _below(connection: Connection, table: Any, ids: Sequence[int]) -> dict[int, list[Any]]:
    """The rows of *table* that belong to each of these dead letters, in their order."""
    found: dict[int, list[Any]] = {}
    for row in connection.execute(select(table).where(table.c.dead_letter_id.in_(ids)).order_by(*table.primary_key)):
        found.setdefault(row.dead_letter_id, []).append(row)
    return found


def _done(connection: Connection, ids: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    query = (
        select(action_items, actions.c.at, actions.c.actor, actions.c.action, actions.c.reason)
        .join_from(action_items, actions)
        .where(action_items.c.dead_letter_id.in_(ids))
        .order_by(action_items.c.action_id)
    )
    found: dict[int, list[dict[str, Any]]] = {}
    for row in connection.execute(query):
        columns = ("at", "actor", "action", "reason", "state_before", "state_after")
        found.setdefault(row.dead_letter_id, []).append({column: plain(getattr(row, column)) for column in columns})
    return found


# --- in ---------------------------------------------------------------------------------------------------------------

_Count = Annotated[int, Field(ge=0, lt=2**31)]


def _decoded(written: Any) -> bytes:
    if not isinstance(written, str):
        raise ValueError("must be a text in base64")
    return b64decode(written, validate=True)


_Base64 = Annotated[bytes, BeforeValidator(_decoded)]


class _Entry(BaseModel):
    """One entry of a history."""

    attempt: _Count | None
    at: str
    worker: str
    error: str
    message: str
    redrive: _Count | None = None


class _Message(BaseModel):
    """A payload and its properties."""

    payload: str | None = None
    payload_base64: _Base64 | None = None
    properties_base64: _Base64

    @model_validator(mode="after")
    def _has_one_payload(self) -> Self:
        if (self.payload is None) == (self.payload_base64 is None):
            raise ValueError("must have payload or payload_base64, and not both")
        return self

    @property
    def body(self) -> bytes:
        return self.payload.encode() if self.payload is not None else self.payload_base64 or b""


class _Edit(_Message):
    version: Annotated[int, Field(ge=1, lt=2**31)]
    at: AwareDatetime
    actor: str
    reason: str
    diff: list[dict[str, JsonValue]]
    checked: bool


class _Note(BaseModel):
    at: AwareDatetime
    actor: str
    text: str


class _Line(_Message):
    """What of a line is imported."""

    model_config = ConfigDict(extra="ignore")

    ackline_dead_letter: int
    masked: bool = False
    message_id: Annotated[str, Field(min_length=1)]
    consumer: str
    body_sha256: str
    type: str
    source: Source
    reason: str
    error_type: str
    error_message: str
    traceback: str
    attempts: _Count
    history: list[_Entry]
    first_failed_at: AwareDatetime
    received_at: AwareDatetime
    last_seen_at: AwareDatetime
    app_id: str | None = None
    correlation_id: str | None = None
    published_at: AwareDatetime | None = None
    exchange: str
    routing_key: str
    trusted: bool
    ordering_key: str | None = None
    redrive_count: _Count = 0
    send_error: str | None = None
    duplicates: _Count = 0
    flags: list[str] = []
    edits: list[_Edit] = []
    notes: list[_Note] = []

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.ackline_dead_letter != FORMAT:
            raise ValueError(f"is of form {self.ackline_dead_letter}; this Ackline reads form {FORMAT}")
        if self.masked:
            raise ValueError("was exported with its secrets masked: export it with the right to unmask, and a reason")
        if hashlib.sha256(self.body).hexdigest() != self.body_sha256:
            raise ValueError("has a payload that is not the one its body_sha256 is of")
        if [edit.version for edit in self.edits] != list(range(1, len(self.edits) + 1)):
            raise ValueError("has edits whose versions are not 1, 2, 3 and so on")
        return self

    def letter(self) -> DeadLetter:
        """The dead letter, as it would arrive."""
        entries = [entry.model_dump(exclude_none=True) | {"attempt": entry.attempt} for entry in self.history]
        return DeadLetter(
            message_id=clean(self.message_id),
            consumer=name(self.consumer),
            body_sha256=hashlib.sha256(self.body).digest(),
            source=self.source,
            reason=clean(self.reason),
            error_type=clean(self.error_type),
            error_message=clean(self.error_message),
            traceback=clean(self.traceback),
            attempts=self.attempts,
            history=[{key: clean(v) if isinstance(v, str) else v for key, v in entry.items()} for entry in entries],
            first_failed_at=self.first_failed_at,
            received_at=self.received_at,
            type=clean(self.type),
            app_id=_clean(self.app_id),
            correlation_id=_clean(self.correlation_id),
            published_at=self.published_at,
            exchange=clean(self.exchange),
            routing_key=clean(self.routing_key),
            properties=self.properties_base64,
            trusted=self.trusted,
            payload=self.body,
            sent_by=None,
            ordering_key=_clean(self.ordering_key),
        )


def _clean(value: str | None) -> str | None:
    return None if value is None else clean(value)


def take(engine: Engine, who: Actor, lines: Iterable[bytes | str]) -> Imported:
    """Take in *lines*, some hundred at a time. Raises `DatabaseUnavailable`: what was taken in before then is kept."""
    stored = duplicates = faulty = 0
    faults: list[Fault] = []
    numbered = enumerate(lines, start=1)
    while batch := list(islice(numbered, _BATCH)):
        read: dict[int, _Line] = {}
        wrong: list[Fault] = []
        for number, raw in batch:
            try:
                if raw.strip():
                    read[number] = _read(raw)
            except ValueError as error:
                wrong.append(Fault(f"line {number}", _why(error)))
        taken, refused = _take(engine, who, read)
        stored, duplicates = stored + taken, duplicates + len(read) - taken - len(refused)
        faulty += len(wrong) + len(refused)
        faults = (faults + wrong + refused)[:MAX_FAULTS]
    return Imported(stored, duplicates, faulty, faults)


def _read(raw: bytes | str) -> _Line:
    if len(raw) > _MAX_LINE:
        raise ValueError(f"it is longer than {_MAX_LINE:,} characters")
    return _Line.model_validate_json(raw)


def _why(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return clean(str(error))
    told = [f"{'.'.join(map(str, fault['loc']))} {fault['msg']}".strip() for fault in error.errors(include_input=False)]
    return clean("; ".join(told[:5]))


def _take(engine: Engine, who: Actor, lines: dict[int, _Line]) -> tuple[int, list[Fault]]:
    """How many were stored, and those that the database does not take."""
    if not lines:
        return 0, []
    try:
        with writing(engine) as connection:
            return _store(connection, who, list(lines.values())), []
    except (SQLAlchemyError, ValueError):
        if len(lines) > 1:
            return _take_one_by_one(engine, who, lines)
        raise


def _take_one_by_one(engine: Engine, who: Actor, lines: dict[int, _Line]) -> tuple[int, list[Fault]]:
    stored, refused = 0, []
    for number, line in lines.items():
        try:
            with writing(engine) as connection:
                stored += _store(connection, who, [line])
        except (SQLAlchemyError, ValueError) as error:
            if isinstance(error, DBAPIError) and is_outage(error):
                raise
            # The first line: the others of PostgreSQL's hold the row itself.
            said = str(getattr(error, "orig", error)).splitlines() or [type(error).__name__]
            refused.append(Fault(f"line {number}", f"the database does not take it: {said[0][:300]}"))
    return stored, refused


def _store(connection: Connection, who: Actor, lines: Sequence[_Line]) -> int:
    """Store those of *lines* that are not here yet. Returns how many."""
    letters: dict[Key, tuple[_Line, DeadLetter]] = {}
    for line in lines:
        letter = line.letter()
        letters.setdefault((letter.message_id, letter.consumer, letter.body_sha256), (line, letter))
    known = _ids(connection, letters)
    fresh = {key: found for key, found in letters.items() if key not in known}
    if not fresh:
        return 0
    intake.take(connection, [intake.incoming(letter) for _, letter in fresh.values()])
    with transitions(connection) as moves:
        new = _ids(connection, fresh)
        for key, (line, _) in fresh.items():
            _complete(connection, new[key], line)
        moves.record(who, "import", "", new.values())
    return len(fresh)


def _ids(connection: Connection, keys: Iterable[Key]) -> dict[Key, int]:
    found: dict[Key, int] = {}
    query = select(dead_letters.c.id, *_KEY).where(tuple_(*_KEY).in_(list(keys)))
    for row in connection.execute(query):
        found[row.message_id, row.consumer, bytes(row.body_sha256)] = row.id
    return found


def _complete(connection: Connection, row_id: int, line: _Line) -> None:
    """What a dead letter that arrives does not have."""
    columns = {
        "redrive_count": line.redrive_count,
        "send_error": _clean(line.send_error),
        "duplicates": line.duplicates,
        "flags": [clean(flag) for flag in line.flags],
        "last_seen_at": line.last_seen_at,
        "version": len(line.edits),
    }
    connection.execute(update(dead_letters).where(dead_letters.c.id == row_id).values(columns))
    for edit in line.edits:
        row = edit.model_dump(include={"version", "at", "diff", "checked"}) | {"dead_letter_id": row_id}
        row |= {"actor": clean(edit.actor), "reason": clean(edit.reason)}
        connection.execute(edits.insert().values(row | {"payload": edit.body, "properties": edit.properties_base64}))
    if line.edits:
        search_values.replace(connection, row_id, line.edits[-1].body)
    for note in line.notes:
        row = {"dead_letter_id": row_id, "at": note.at, "actor": clean(note.actor), "text": clean(note.text)}
        connection.execute(notes.insert().values(row))
