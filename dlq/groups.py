"""Groups: all dead letters of one fingerprint, which is what a person works with on a bad night.

A page is made of counters that are kept as dead letters arrive and move (`ackline.dlq.arrivals`,
`ackline.dlq.transition`), so it costs the same for a thousand dead letters and for a million.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, Connection, Engine, and_, func, literal, or_, select, tuple_, update

from ackline.dlq.deadletter import clean
from ackline.dlq.errors import Fault, Invalid, NotFound
from ackline.dlq.rights import Actor, Right
from ackline.dlq.transition import transitions
from ackline.infra.database import reading, writing
from ackline.infra.tables import (
    DeadLetterState,
    GroupStatus,
    dead_letters,
    fingerprint_counts,
    fingerprint_rates,
    fingerprints,
)
from ackline.infra.wire import now

#: Hours of the rate that is shown.
HOURS = 24
#: Groups in one page, and words that a text filter looks for, at most.
MAX_PAGE, MAX_WORDS = 1000, 20
#: Characters of a name (owner, version), an address, and a note at most.
MAX_NAME, MAX_URL, MAX_NOTE = 255, 2048, 10_000

#: In which state a sample is looked for first.
_SAMPLED = (DeadLetterState.IN_REVIEW, DeadLetterState.REDRIVING, DeadLetterState.DISCARDED, DeadLetterState.HANDLED)


class Order(StrEnum):
    """Which groups come first: those that failed last, or those with the most dead letters in review."""

    LAST_SEEN = "last_seen"
    COUNT = "count"


@dataclass(frozen=True, slots=True)
class GroupFilter:
    """Those groups of which all of this is true; what is None says nothing.

    state: with dead letters in it. text: words that are all in the error's type, place or message.
    """

    status: GroupStatus | None = None
    consumer: str | None = None  # empty: of what no consumer takes
    owner: str | None = None  # empty: without one
    state: DeadLetterState | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One dead letter of a group, the latest if it is still there."""

    id: int
    state: str
    type: str
    message_id: str
    reason: str
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Group:
    """A kind of failure: what it is, how often, and what people say of it.

    message: with placeholders for what differs. arrivals: failures in all, also of what was redriven since.
    counts: dead letters in each state; every state is there. rate: arrivals in each of the last 24 hours, the oldest
    first; the last is the hour that is not over. resolved_in: the version of the application. reopened: how often it
    returned after it was resolved.
    """

    fingerprint: str
    consumer: str
    type: str
    error_type: str
    frame: str
    message: str
    first_seen: datetime
    last_seen: datetime
    arrivals: int
    status: str
    status_at: datetime
    status_by: str
    resolved_in: str | None
    reopened: int
    owner: str | None
    note: str | None
    runbook: str | None
    counts: dict[str, int]
    rate: list[int]
    sample: Sample | None


class GroupPage(NamedTuple):
    """Some groups, and `after` of the page that follows; None when there is none."""

    items: list[Group]
    next: str | None


class Difference(NamedTuple):
    """A counter that is wrong."""

    fingerprint: str
    state: str
    kept: int
    counted: int


_COLUMNS = tuple(fingerprints.c[name] for name in Group.__dataclass_fields__ if name in fingerprints.c)
_SAMPLE = tuple(dead_letters.c[name] for name in Sample.__dataclass_fields__)
_TRIAGED = ("status", "resolved_in", "owner", "note", "runbook")


class Groups:
    """Groups in the database behind *engine*, whose tables are up to date.

    Every method is one transaction, is safe on any thread, and raises `DatabaseUnavailable`, and `Forbidden` when the
    role of *who* does not allow it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(
        self,
        who: Actor,
        filter: GroupFilter | None = None,  # noqa: A002
        after: str | None = None,
        limit: int = 50,
        order: Order = Order.LAST_SEEN,
    ) -> GroupPage:
        """Up to *limit* groups. after: `next` of the page before this one, in the same order.

        A group that fails meanwhile may be on two pages of one walk, or on none. Raises `Invalid` for an *after* that
        is none.
        """
        who.must(Right.VIEW)
        key = fingerprints.c.last_seen if order is Order.LAST_SEEN else _count(DeadLetterState.IN_REVIEW)
        query = select(*_COLUMNS, key.label("key")).where(*_conditions(filter or GroupFilter()))
        if after is not None:
            position, name = _position(after, order)
            query = query.where(tuple_(key, fingerprints.c.fingerprint) < tuple_(literal(position, key.type), name))
        query = query.order_by(key.desc(), fingerprints.c.fingerprint.desc())
        limit = min(max(limit, 1), MAX_PAGE)
        with reading(self._engine) as connection:
            rows = connection.execute(query.limit(limit + 1)).all()
            items = _groups(connection, rows[:limit])
        return GroupPage(items, _cursor(rows[limit - 1]) if len(rows) > limit else None)

    def get(self, who: Actor, fingerprint: str) -> Group:
        """One group. Raises `NotFound`."""
        who.must(Right.VIEW)
        with reading(self._engine) as connection:
            return _get(connection, clean(fingerprint))

    def triage(
        self,
        who: Actor,
        fingerprint: str,
        *,
        status: GroupStatus | None = None,
        owner: str | None = None,
        note: str | None = None,
        runbook: str | None = None,
        resolved_in: str | None = None,
    ) -> Group:
        """Say something of a group, and return it. What is None stays; an empty text takes away what was there.

        runbook: an http(s) URL. resolved_in: the version of the application, of a group that is resolved. A resolved
        group is open again with its next failure. Raises `NotFound`, `Invalid`.
        """
        who.must(Right.TRIAGE)
        fingerprint = clean(fingerprint)
        said = {"status": status, "resolved_in": resolved_in, "owner": owner, "note": note, "runbook": runbook}
        wanted = {name: _cleaned(name, value) for name, value in said.items() if value is not None}
        with writing(self._engine) as connection:
            query = select(*(fingerprints.c[name] for name in _TRIAGED)).where(
                fingerprints.c.fingerprint == fingerprint
            )
            row = connection.execute(query.with_for_update()).one_or_none()
            if row is None:
                raise _no_such(fingerprint)
            before = dict(row._mapping)
            after = before | wanted
            if after["status"] != GroupStatus.RESOLVED:
                if resolved_in:
                    raise Invalid("Only a group that is resolved is resolved in a version: set its status, too.")
                after["resolved_in"] = None
            changed = {name: after[name] for name in _TRIAGED if after[name] != before[name]}
            if changed:
                stamp = {"status_at": now(), "status_by": who.name} if "status" in changed else {}
                group = update(fingerprints).where(fingerprints.c.fingerprint == fingerprint)
                connection.execute(group.values(changed | stamp))
                told = {"before": {name: before[name] for name in changed}, "after": changed}
                with transitions(connection) as moves:
                    moves.record(who, "triage", "", details={"fingerprint": fingerprint} | told)
            return _get(connection, fingerprint)


def recount(connection: Connection) -> list[Difference]:
    """Compare the counters of groups with the dead letters themselves: those that differ; none, when all is well.

    Reads an index of all dead letters: a second for some millions. Both sides are of one moment if the transaction
    reads a snapshot (SQLite always does, PostgreSQL from REPEATABLE READ on).
    """
    letters = dead_letters.c
    counting = select(letters.fingerprint, letters.state, func.count()).where(letters.fingerprint != "")
    counted = {(row[0], row[1]): row[2] for row in connection.execute(counting.group_by("fingerprint", "state"))}
    kept = {
        (row.fingerprint, row.state): row.count for row in connection.execute(select(fingerprint_counts)).mappings()
    }
    return [
        Difference(*key, kept.get(key, 0), counted.get(key, 0))
        for key in sorted(kept.keys() | counted.keys())
        if kept.get(key, 0) != counted.get(key, 0)
    ]


# --- reading ----------------------------------------------------------------------------------------------------------


def _get(connection: Connection, fingerprint: str) -> Group:
    query = select(*_COLUMNS, literal(0).label("key")).where(fingerprints.c.fingerprint == fingerprint)
    rows = connection.execute(query).all()
    if not rows:
        raise _no_such(fingerprint)
    return _groups(connection, rows)[0]


def _no_such(fingerprint: str) -> NotFound:
    return NotFound(f"There is no group {fingerprint!r}; `ackline dlq groups` shows what there is.")


def _groups(connection: Connection, rows: Sequence[Any]) -> list[Group]:
    names = [row.fingerprint for row in rows]
    counts, rates = _counts(connection, names), _rates(connection, names)
    samples = _samples(connection, names, counts)
    return [
        Group(
            **{column.name: getattr(row, column.name) for column in _COLUMNS},
            counts=counts[row.fingerprint],
            rate=rates[row.fingerprint],
            sample=samples.get(row.fingerprint),
        )
        for row in rows
    ]


def _counts(connection: Connection, names: Sequence[str]) -> dict[str, dict[str, int]]:
    found = {name: dict.fromkeys(map(str, DeadLetterState), 0) for name in names}
    columns = fingerprint_counts.c
    query = select(columns.fingerprint, columns.state, columns["count"]).where(columns.fingerprint.in_(names))
    for name, state, count in connection.execute(query):
        found[name][state] = count
    return found


def _rates(connection: Connection, names: Sequence[str]) -> dict[str, list[int]]:
    found = {name: [0] * HOURS for name in names}
    this_hour = now().replace(minute=0, second=0, microsecond=0)
    first = this_hour - timedelta(hours=HOURS - 1)
    columns = fingerprint_rates.c
    query = select(columns.fingerprint, columns.bucket, columns["count"])
    query = query.where(columns.fingerprint.in_(names), columns.bucket >= first)
    for name, bucket, count in connection.execute(query):
        # What a clock that is ahead noted counts as of now.
        found[name][min(int((bucket - first) / timedelta(hours=1)), HOURS - 1)] += count
    return found


def _samples(connection: Connection, names: Sequence[str], counts: dict[str, dict[str, int]]) -> dict[str, Sample]:
    letters = dead_letters.c
    latest = select(fingerprints.c.sample_id).where(fingerprints.c.fingerprint.in_(names))
    query = select(letters.fingerprint, *_SAMPLE).where(letters.id.in_(latest))
    found = {row.fingerprint: Sample(*row[1:]) for row in connection.execute(query)}
    for name in names:
        if name not in found:  # the latest was forgotten, or has failed otherwise since
            state = next((state for state in _SAMPLED if counts[name][state]), None)
            of_group = select(func.max(letters.id)).where(letters.fingerprint == name, letters.state == state)
            row = state and connection.execute(select(*_SAMPLE).where(letters.id.in_(of_group))).one_or_none()
            if row:
                found[name] = Sample(*row)
    return found


def _count(state: DeadLetterState) -> ColumnElement[int]:
    """How many dead letters of a group are in *state*."""
    counts = fingerprint_counts.c
    of_group = and_(counts.fingerprint == fingerprints.c.fingerprint, counts.state == state)
    return func.coalesce(select(counts["count"]).where(of_group).scalar_subquery(), 0)


def _conditions(wanted: GroupFilter) -> Iterable[ColumnElement[bool]]:
    columns = fingerprints.c
    if wanted.status is not None:
        yield columns.status == wanted.status
    if wanted.consumer is not None:
        yield columns.consumer == clean(wanted.consumer)
    if wanted.owner is not None:
        yield func.coalesce(columns.owner, "") == clean(wanted.owner)
    if wanted.state is not None:
        yield _count(wanted.state) > 0
    for word in clean(wanted.text or "").split()[:MAX_WORDS]:
        texts = (columns.error_type, columns.frame, columns.message)
        yield or_(*(text.icontains(word, autoescape=True) for text in texts))


def _cursor(row: Any) -> str:
    key = row.key.isoformat() if isinstance(row.key, datetime) else row.key
    return json.dumps([key, row.fingerprint])


def _position(after: str, order: Order) -> tuple[Any, str]:
    try:
        key, name = json.loads(after)
        position = datetime.fromisoformat(key) if order is Order.LAST_SEEN else key
        is_key = order is Order.LAST_SEEN or (type(position) is int and abs(position) < 2**63)
        if is_key and isinstance(name, str):
            return position, clean(name)
    except (ValueError, TypeError, OverflowError, RecursionError):
        pass
    raise Invalid("That is no page that follows one of groups in this order.", [Fault("after", "is no cursor")])


# --- what people say --------------------------------------------------------------------------------------------------


def _cleaned(name: str, value: str) -> str | None:
    """What is to be kept; None for an empty text. Raises `Invalid`."""
    if isinstance(value, GroupStatus):
        return value
    text = clean(value.strip())
    most = {"note": MAX_NOTE, "runbook": MAX_URL}.get(name, MAX_NAME)
    if len(text) > most:
        raise Invalid(f"{name} has more than {most:,} characters.", [Fault(name, f"has more than {most:,} characters")])
    if name == "runbook" and text and not _is_web_address(text):
        raise Invalid(
            "A runbook is an address that begins with https:// or http://.", [Fault(name, "is no http(s) URL")]
        )
    return text or None


def _is_web_address(text: str) -> bool:
    try:
        parsed = urlsplit(text)
        return parsed.scheme in ("http", "https") and bool(parsed.hostname) and text.isprintable() and " " not in text
    except ValueError:
        return False
