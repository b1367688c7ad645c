"""Which dead letters somebody means: as a value that is parsed, stored and shown, and as pages of ids.

Every filter is a bound parameter, whatever it holds. Pages are by key: the newest first, and each begins below the id
that the one before ended with, so that no page gets slower than the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    column,
    exists,
    func,
    literal_column,
    null,
    select,
    table,
    union_all,
)

from ackline.dlq import search_values
from ackline.dlq.condition import Condition, Operator, Path, parsed, spelled
from ackline.dlq.errors import Fault, Invalid
from ackline.dlq.filters import READERS, WORD
from ackline.infra.tables import DeadLetterState, Source, dead_letters, edits
from ackline.infra.tables import search_values as found_at

#: What one search reads at most where no index serves a condition: dead letters, bytes of payloads, seconds.
SCAN_ROWS, SCAN_BYTES, SCAN_SECONDS = 20_000, 64 * 1024 * 1024, 1.0
#: Payloads that are in memory at once; see `search_values.MAX_PAYLOAD`.
_CHUNK = 100

#: By how much times may be in another order than ids.
_DISORDER = timedelta(hours=1)
_EARLIEST, _LATEST = (bound.replace(tzinfo=UTC) for bound in (datetime.min + _DISORDER, datetime.max - _DISORDER))

Hidden = Callable[[str, Path], bool]
"""Whether the contract of a type masks what is at a path: nobody finds out by searching what he is not shown."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Those dead letters of which all of this is true; what is None, or empty, says nothing. No ids at all are `()`.

    received_since is included, received_until is not. text: words that begin words of the error message or the reason,
    all of them. where: conditions on the payload as it is now, edits included; a payload of more than a megabyte
    fulfils none.
    """

    ids: tuple[int, ...] | None = None
    states: tuple[DeadLetterState, ...] = ()
    consumer: str | None = None  # empty: those that no consumer takes
    type: str | None = None
    fingerprint: str | None = None
    source: Source | None = None
    error_type: str | None = None
    message_id: str | None = None
    correlation_id: str | None = None
    attempts_min: int | None = None
    attempts_max: int | None = None
    received_since: datetime | None = None
    received_until: datetime | None = None
    text: str | None = None
    where: tuple[Condition, ...] = ()

    @classmethod
    def parse(cls, **raw: Any) -> Selection:
        """A selection of what people, URLs and files say: each filter in its own type, or as text.

        ids, states and where take one or several; times are ISO 8601, in UTC where they name no zone. None says
        nothing. Raises `Invalid` with a fault for each filter that cannot be used, unknown ones included.
        """
        chosen: dict[str, Any] = {}
        faults: list[Fault] = []
        for name, value in raw.items():
            if name not in READERS:
                faults.append(Fault(name, f"there is no such filter; there are {', '.join(READERS)}"))
            elif value is not None:
                try:
                    chosen[name] = READERS[name](value)
                except (Invalid, ValueError, TypeError, OverflowError) as error:
                    faults.append(Fault(name, str(error)))
        if faults:
            raise Invalid("; ".join(f"{fault.path}: {fault.message}" for fault in faults), faults)
        return cls(**chosen)

    def as_json(self) -> dict[str, Any]:
        """What it says, in what JSON knows; `from_json` reads it back."""
        return {
            field.name: _plain(value) for field in fields(self) if (value := getattr(self, field.name)) != field.default
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Selection:
        """What `as_json` wrote. Raises `Invalid`."""
        return cls.parse(**document)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Condition) else value


class Found(NamedTuple):
    """Dead letters of a selection, newest first."""

    ids: list[int]
    #: `after` of what follows; None when there is no more. What is found may be less than was asked for, even nothing,
    #: and still have a `next`: then one search has read as much as it may.
    next: int | None
    #: Payloads that were read one by one, since no index serves a condition.
    scanned: int


def rows(
    connection: Connection,
    selection: Selection,
    *,
    after: int | None = None,
    limit: int,
    hidden: Hidden | None = None,
) -> Found:
    """Up to *limit* dead letters of *selection* with ids below *after*, newest first."""
    if selection.where:
        return _searched(connection, selection, after, limit, hidden)
    ids = [row.id for row in _candidates(connection, selection, _Span(after), limit + 1)]
    return Found(ids[:limit], ids[limit - 1] if len(ids) > limit else None, 0)


def every(connection: Connection, selection: Selection, *, hidden: Hidden | None = None) -> Iterator[int]:
    """All dead letters of *selection*, newest first, however long that takes."""
    found = rows(connection, selection, limit=1000, hidden=hidden)
    yield from found.ids
    while found.next is not None:
        found = rows(connection, selection, after=found.next, limit=1000, hidden=hidden)
        yield from found.ids


def counts(connection: Connection, selection: Selection) -> dict[str, int]:
    """How many dead letters of *selection*, which has no `where`, are in each state that it has any in."""
    columns = dead_letters.c
    query = select(columns.state, func.count()).where(*_criteria(selection), *_has_words(connection, selection))
    if selection.states:
        query = query.where(columns.state.in_(selection.states))
    return {row[0]: row[1] for row in connection.execute(query.group_by(columns.state))}


# --- conditions on payloads -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Span:
    """Ids below one and from another on; None bounds nothing."""

    below: int | None
    floor: int | None = None

    def of(self, column: ColumnElement[int]) -> list[ColumnElement[bool]]:
        found = []
        if self.below is not None:
            found.append(column < self.below)
        if self.floor is not None:
            found.append(column >= self.floor)
        return found

    def within(self, other: _Span) -> _Span:
        """What is in both."""
        below = [bound for bound in (self.below, other.below) if bound is not None]
        floor = [bound for bound in (self.floor, other.floor) if bound is not None]
        return _Span(min(below, default=None), max(floor, default=None))


def _received(connection: Connection, selection: Selection) -> _Span:
    """Where those of a time are among the others, and some more: so that nobody reads from the newest back to then.

    Who stores a dead letter says when (`ackline.dlq.intake`), so times follow ids but for the length of a transaction
    and what the clocks of reviewers differ by: less than `_DISORDER`.
    """
    at, ids = dead_letters.c.received_at, dead_letters.c.id
    below = floor = None
    if (until := selection.received_until) is not None and until < _LATEST:
        below = connection.scalar(select(ids).where(at >= until + _DISORDER).order_by(at).limit(1))
    if (since := selection.received_since) is not None and since > _EARLIEST:
        floor = connection.scalar(select(ids).where(at < since - _DISORDER).order_by(at.desc()).limit(1))
    return _Span(below, floor)


def _searched(
    connection: Connection, selection: Selection, after: int | None, limit: int, hidden: Hidden | None
) -> Found:
    """By the index from where on it holds all; below that, payload by payload."""
    since = search_values.indexed(connection)
    served = [found for found in selection.where if found.operator is Operator.EQUAL and found.path in since]
    complete_from = max((since[found.path] for found in served), default=None)
    spans: list[tuple[Sequence[Condition], _Span]] = [([], _Span(after))]
    if complete_from is not None:
        spans = [(served, _Span(after, complete_from))]
        if complete_from > 1:
            spans.append(([], _Span(complete_from if after is None else min(after, complete_from))))
    search = _Search(connection, selection, limit, hidden)
    for by_index, span in spans:
        if search.goes_on(by_index, span):
            return Found(search.ids, search.last, search.scanned)
    return Found(search.ids, None, search.scanned)


class _Search:
    """A search that reads payloads, within its bounds."""

    def __init__(self, connection: Connection, selection: Selection, limit: int, hidden: Hidden | None) -> None:
        self.ids: list[int] = []
        self.last: int | None = None
        self.scanned = 0
        self._bytes = 0
        self._deadline = time.monotonic() + SCAN_SECONDS
        self._connection, self._selection, self._limit, self._hidden = connection, selection, limit, hidden

    def goes_on(self, by_index: Sequence[Condition], span: _Span) -> bool:
        """Search *span*. Returns whether that ended before its end, at `last`."""
        rest = [found for found in self._selection.where if found not in by_index]
        size = _CHUNK if rest else self._limit
        while True:
            chunk = _candidates(self._connection, self._selection, span, size, by_index, reads=bool(rest))
            for row in chunk:
                self.last = row.id
                if self._is_right(row, rest):
                    self.ids.append(row.id)
                if len(self.ids) == self._limit or self._is_spent():
                    return True
            if len(chunk) < size:
                return False
            span = _Span(self.last, span.floor)

    def _is_right(self, row: Any, rest: Sequence[Condition]) -> bool:
        if self._hidden and any(self._hidden(row.type, found.path) for found in self._selection.where):
            return False
        if not rest:
            return True
        payload = bytes(row.payload or b"")
        self.scanned += 1
        self._bytes += len(payload)
        document = parsed(payload)
        return all(found.holds(document) for found in rest)

    def _is_spent(self) -> bool:
        return self.scanned >= SCAN_ROWS or self._bytes >= SCAN_BYTES or time.monotonic() >= self._deadline


# --- SQL --------------------------------------------------------------------------------------------------------------

#: SQLite's index of words; its `rowid` is a dead letter's id.
_WORDS = table("dead_letter_text", column("rowid"))
#: What PostgreSQL's index of words holds (migration 0006), with its columns named in full.
_VECTOR: ColumnElement[Any] = literal_column(
    r"to_tsvector('simple', regexp_replace(dead_letters.error_message || ' ' || dead_letters.reason, "
    r"'[\x01-/:-@[-`{-\x7f\u0080-\u00bf\u2000-\u206f]+', ' ', 'g'))"
)


def _candidates(
    connection: Connection,
    selection: Selection,
    span: _Span,
    limit: int,
    by_index: Sequence[Condition] = (),
    *,
    reads: bool = False,
) -> Sequence[Any]:
    """(id, type, payload) of the newest *limit* dead letters in *span* that fulfil all but the other conditions.

    The table that the search begins with is the one whose index has them in the order of their ids.
    """
    words = _words(connection, selection)
    what = [dead_letters.c.id, dead_letters.c.type, (search_values.SEARCHED if reads else null()).label("payload")]
    states = _states(selection, by_index or words)
    criteria = _criteria(selection)
    if selection.states and not states:
        criteria.append(dead_letters.c.state.in_(selection.states))
    if not _is_named(selection):
        span = span.within(_received(connection, selection))
    query = select(*what).where(*criteria)
    begins: ColumnElement[int] = dead_letters.c.id
    if by_index:
        first, *others = by_index
        begins = found_at.c.dead_letter_id
        query = query.join_from(found_at, dead_letters, dead_letters.c.id == begins).where(*_is_at(found_at, first))
        for other in others:
            also = found_at.alias()
            query = query.where(exists().where(also.c.dead_letter_id == dead_letters.c.id, *_is_at(also, other)))
        query = query.where(*_has_words(connection, selection))
    elif words and connection.dialect.name == "sqlite":
        begins = _WORDS.c.rowid
        query = query.join_from(_WORDS, dead_letters, dead_letters.c.id == begins)
        query = query.where(literal_column("dead_letter_text").op("MATCH")(words))
    else:
        query = query.where(*_has_words(connection, selection))
    if reads:
        query = query.outerjoin(edits, search_values.LATEST_EDIT)
    query = query.where(*span.of(begins))
    return connection.execute(_newest(query, begins, states, limit)).all()


def _newest(query: Select[Any], begins: ColumnElement[int], states: Sequence[DeadLetterState], limit: int) -> Any:
    """The first *limit* of *query*. In several states they are sought state by state: so indexes keep their order."""
    if not states:
        return query.order_by(begins.desc()).limit(limit)
    each = [
        select(query.where(dead_letters.c.state == state).order_by(begins.desc()).limit(limit).subquery())
        for state in states
    ]
    every_state = union_all(*each).subquery()
    return select(every_state).order_by(every_state.c.id.desc()).limit(limit)


def _states(selection: Selection, has_order: Any) -> Sequence[DeadLetterState]:
    """The states to seek one by one; none where another index gives the order, or few rows come of another one."""
    if has_order or _is_named(selection):
        return ()
    is_narrow = selection.consumer is not None or selection.type is not None or selection.fingerprint is not None
    return selection.states or (tuple(DeadLetterState) if is_narrow else ())


def _is_named(selection: Selection) -> bool:
    """Whether it can only be a few."""
    return selection.ids is not None or selection.message_id is not None or selection.correlation_id is not None


def _criteria(selection: Selection) -> list[ColumnElement[bool]]:
    """What `dead_letters` must fulfil: all but `states`, `text` and `where`."""
    columns = dead_letters.c
    named = ("consumer", "type", "fingerprint", "source", "error_type", "message_id", "correlation_id")
    found = [columns[name] == value for name in named if (value := getattr(selection, name)) is not None]
    if selection.ids is not None:
        found.append(columns.id.in_(selection.ids))
    if selection.attempts_min is not None:
        found.append(columns.attempts >= selection.attempts_min)
    if selection.attempts_max is not None:
        found.append(columns.attempts <= selection.attempts_max)
    return found + _times(selection)


def _times(selection: Selection) -> list[ColumnElement[bool]]:
    found = []
    if selection.received_since is not None:
        found.append(dead_letters.c.received_at >= selection.received_since)
    if selection.received_until is not None:
        found.append(dead_letters.c.received_at < selection.received_until)
    return found


def _is_at(where: Any, condition: Condition) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return where.c.path == spelled(condition.path), where.c.value == search_values.key(condition.value)


def _words(connection: Connection, selection: Selection) -> str:
    """The words of `text` in the language of the database's index: all of them, each as a beginning."""
    words = WORD.findall(selection.text or "")
    if connection.dialect.name == "sqlite":
        return " AND ".join(f'"{word}"*' for word in words)
    return " & ".join(f"'{word}':*" for word in words)


def _has_words(connection: Connection, selection: Selection) -> list[ColumnElement[bool]]:
    words = _words(connection, selection)
    if not words:
        return []
    if connection.dialect.name == "sqlite":
        matching = select(_WORDS.c.rowid).where(literal_column("dead_letter_text").op("MATCH")(words))
        return [dead_letters.c.id.in_(matching)]
    return [_VECTOR.op("@@")(func.to_tsquery("simple", words))]
