"""What a failure that arrives adds to its group: the group itself, how many there were and when, and whether to tell.

SQL on a connection that the caller commits. Rows of `fingerprints` are locked in the order of their ids, and after
those of `dead_letters`, so that two reviewers never wait for each other in a circle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, bindparam, case, delete, exists, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ackline.dlq import fingerprint
from ackline.dlq.audit import REVIEWER
from ackline.dlq.fingerprint import Fingerprint
from ackline.dlq.transition import transitions
from ackline.infra.tables import (
    AlertState,
    GroupStatus,
    alerts,
    dead_letters,
    fingerprint_rates,
    fingerprints,
)

#: What the rate of a group is counted in, and how long that is kept.
BUCKET, RATES_KEPT = timedelta(minutes=10), timedelta(days=7)


class Arrival(NamedTuple):
    """A failure that is stored: of which dead letter, of what type, when."""

    fingerprint: Fingerprint
    dead_letter_id: int
    type: str
    at: datetime


def note(connection: Connection, arrivals: Sequence[Arrival], at: datetime, *, alerting: bool) -> None:
    """Add *arrivals* to their groups; one that was resolved is open again.

    at: now. alerting: whether somebody is to be told of a group that is new or open again.
    """
    if not arrivals:
        return
    groups = _groups(arrivals, at)
    counts = Counter((arrival.fingerprint.id, _bucket(arrival.at)) for arrival in arrivals)
    told = connection.execute(_NOTED[connection.dialect.name], groups).all()
    rates = [{"fingerprint": name, "bucket": bucket, "count": n} for (name, bucket), n in sorted(counts.items())]
    connection.execute(_RATES[connection.dialect.name], rates)
    if alerting:
        added = {group["fingerprint"]: group["arrivals"] for group in groups}
        news = [
            {"fingerprint": row.fingerprint, "kind": "new" if row.arrivals == added[row.fingerprint] else "reopened"}
            for row in told
            if row.status_at == at
        ]
        alert = {"at": at, "next_at": at, "state": AlertState.WAITING, "attempts": 0}
        if news:
            connection.execute(insert(alerts), [alert | found for found in news])


def are_incomplete(connection: Connection) -> bool:
    """Whether there are dead letters without a fingerprint."""
    return bool(connection.scalar(select(exists().where(dead_letters.c.fingerprint == ""))))


def complete(connection: Connection, at: datetime, limit: int) -> int:
    """Give up to *limit* dead letters that have none their fingerprints. Returns how many it were.

    It is no news: no group is reopened by it, and nobody is told.
    """
    rows = connection.execute(
        select(*_FAILURE).where(dead_letters.c.fingerprint == "").limit(limit).with_for_update(skip_locked=True)
    ).all()
    if not rows:
        return 0
    found = [fingerprint.of(row) for row in rows]
    with transitions(connection) as moves:
        connection.execute(
            update(dead_letters).where(dead_letters.c.id == bindparam("row_id")),
            [{"row_id": row.id, "fingerprint": one.id} for row, one in zip(rows, found, strict=True)],
        )
        for row, one in zip(rows, found, strict=True):
            moves.count(one.id, row.state, 1)
        known = [Arrival(one, row.id, row.type, row.received_at) for row, one in zip(rows, found, strict=True)]
        connection.execute(_COMPLETED[connection.dialect.name], _groups(known, at))
    return len(rows)


def are_old(connection: Connection, before: datetime) -> bool:
    """Whether something is counted of what arrived *before*."""
    return bool(connection.scalar(select(exists().where(fingerprint_rates.c.bucket < before))))


def forget_rates(connection: Connection, before: datetime, limit: int) -> int:
    """Delete up to *limit* counts of what arrived *before*. Returns how many."""
    rates = fingerprint_rates.c
    oldest = select(rates.bucket).where(rates.bucket < before).order_by(rates.bucket).limit(limit)
    last = connection.scalars(oldest).all()[-1:]
    return connection.execute(delete(fingerprint_rates).where(rates.bucket <= last[0])).rowcount if last else 0


def _groups(arrivals: Iterable[Arrival], at: datetime) -> list[dict[str, Any]]:
    """The rows of `fingerprints` for *arrivals*, in the order of their ids."""
    groups: dict[str, dict[str, Any]] = {}
    for one, dead_letter_id, type_, arrived in arrivals:
        group = groups.get(one.id)
        if group is None:
            groups[one.id] = {
                "fingerprint": one.id,
                "consumer": one.consumer,
                "type": type_,
                "error_type": one.error_type,
                "frame": one.frame,
                "message": one.message,
                "first_seen": arrived,
                "last_seen": arrived,
                "arrivals": 1,
                "sample_id": dead_letter_id,
                "status": GroupStatus.OPEN,
                "status_at": at,
                "status_by": REVIEWER,
                "reopened": 0,
            }
            continue
        group["arrivals"] += 1
        group["first_seen"] = min(group["first_seen"], arrived)
        if arrived >= group["last_seen"]:
            group["last_seen"], group["sample_id"] = arrived, dead_letter_id
    return [groups[name] for name in sorted(groups)]


def _bucket(at: datetime) -> datetime:
    return at.replace(minute=at.minute // 10 * 10, second=0, microsecond=0)


def _upsert(dialect: Any, *, reopens: bool) -> Any:
    statement = dialect.insert(fingerprints)
    old, new = fingerprints.c, statement.excluded
    later, earlier = new["last_seen"] >= old["last_seen"], new["first_seen"] < old["first_seen"]

    def either(condition: ColumnElement[bool], *names: str) -> dict[str, ColumnElement[Any]]:
        return {name: case((condition, new[name]), else_=old[name]) for name in names}

    changes = either(later, "last_seen", "sample_id") | either(earlier, "first_seen")
    changes["arrivals"] = old["arrivals"] + new["arrivals"]
    if reopens:
        returns = old["status"] == GroupStatus.RESOLVED
        changes |= either(returns, "status", "status_at", "status_by")
        changes["reopened"] = old["reopened"] + case((returns, 1), else_=0)
    return statement.on_conflict_do_update(index_elements=[old["fingerprint"]], set_=changes)


def _rates(dialect: Any) -> Any:
    statement = dialect.insert(fingerprint_rates)
    old, new = fingerprint_rates.c, statement.excluded
    return statement.on_conflict_do_update(
        index_elements=[old["fingerprint"], old["bucket"]], set_={"count": old["count"] + new["count"]}
    )


_DIALECTS: dict[str, Any] = {"sqlite": sqlite, "postgresql": postgresql}
#: Says of each group what tells whether it is new, or open again: `status_at` is then the time of this transaction.
_NOTED = {
    name: _upsert(dialect, reopens=True).returning(
        fingerprints.c.fingerprint, fingerprints.c.arrivals, fingerprints.c.status_at
    )
    for name, dialect in _DIALECTS.items()
}
_COMPLETED = {name: _upsert(dialect, reopens=False) for name, dialect in _DIALECTS.items()}
_RATES = {name: _rates(dialect) for name, dialect in _DIALECTS.items()}
_FAILURE = [
    dead_letters.c[name]
    for name in (
        *("id", "state", "type", "received_at", "consumer", "source"),
        *("reason", "error_type", "error_message", "traceback", "history"),
    )
]
