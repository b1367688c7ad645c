"""Paths of payloads that are found at once: `ACKLINE_SEARCH_PATHS`, kept in the table `search_values`.

Which paths those are, and from which dead letter on, the database itself says (`search_paths`), so that a reviewer that
still has other settings leaves no gap. When a path is added, what comes in from then on has its values there; the older
dead letters follow bit by bit (`backfill`), and until then a search reads their payloads one by one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Engine, LargeBinary, and_, case, delete, func, insert, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from ackline.dlq.condition import ABSENT, Path, at, parse_path, parsed, spelled
from ackline.infra.database import reading, writing
from ackline.infra.tables import dead_letters, edits, search_paths, search_values

#: Bytes of a payload that is searched, by index or not, at most: one of a hundred megabytes would hold up all others.
MAX_PAYLOAD = 1024 * 1024
#: Characters of a value in the index; of a longer one the beginning, and its hash.
_MAX_VALUE = 200
#: What stands for a list or an object: it is there, and equals nothing that can be asked for.
_CONTAINER = "{}"

#: A payload as it is now, its latest edit included; NULL when it is too large to be searched.
CURRENT = func.coalesce(edits.c.payload, dead_letters.c.payload, type_=LargeBinary)
SEARCHED = case((func.length(CURRENT) <= MAX_PAYLOAD, CURRENT), else_=None)
#: Joins the latest edit of a dead letter.
LATEST_EDIT = and_(edits.c.dead_letter_id == dead_letters.c.id, edits.c.version == dead_letters.c.version)


def values(paths: Iterable[Path], payload: bytes) -> list[tuple[str, str]]:
    """(path, value as it is compared) of each of *paths* that has one in *payload*. Total."""
    document = parsed(payload) if len(payload) <= MAX_PAYLOAD else ABSENT
    return [(spelled(path), key(found)) for path in paths if (found := at(document, path)) is not ABSENT]


def key(value: Any) -> str:
    """A JSON value as a text that is the same for equal values, and for no others: 1, 1.0 and 10e-1 are equal."""
    if isinstance(value, (dict, list)):
        return _CONTAINER
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return _cut(_number(Decimal(str(value))))
    return _cut(json.dumps(value))


def _number(value: Decimal) -> str:
    sign, digits, exponent = value.as_tuple()
    written = "".join(map(str, digits)).lstrip("0")
    kept = written.rstrip("0")
    if not kept:
        return "0"
    return f"{'-' * sign}{kept}e{int(exponent) + len(written) - len(kept)}"


def _cut(written: str) -> str:
    if len(written) <= _MAX_VALUE:
        return written
    return f"{written[:_MAX_VALUE]}…{hashlib.sha256(written.encode()).hexdigest()}"


def indexed(connection: Connection) -> dict[Path, int]:
    """The paths that have an index, and the first dead letter from which on it holds all."""
    return {parse_path(path): since for path, since in connection.execute(select(search_paths)).all()}


def add(connection: Connection, payloads: Iterable[tuple[int, bytes]]) -> None:
    """Take the values of new dead letters into the index, by id. They must have been inserted in this transaction."""
    paths = indexed(connection)
    if paths:
        _insert(connection, paths, payloads)


def replace(connection: Connection, dead_letter_id: int, payload: bytes) -> None:
    """Have the index hold the values of *payload* for this dead letter, whose row the caller has changed or locked."""
    connection.execute(delete(search_values).where(search_values.c.dead_letter_id == dead_letter_id))
    add(connection, [(dead_letter_id, payload)])


def _insert(connection: Connection, paths: Collection[Path], payloads: Iterable[tuple[int, bytes]]) -> None:
    rows = [
        {"path": path, "value": value, "dead_letter_id": row_id}
        for row_id, payload in payloads
        for path, value in values(paths, payload)
    ]
    if rows:
        connection.execute(_INSERTS[connection.dialect.name], rows)


_INSERTS: Mapping[str, Any] = {
    "sqlite": sqlite.insert(search_values).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(search_values).on_conflict_do_nothing(),
}


def register(engine: Engine, written: Collection[str]) -> None:
    """Have an index of these paths and of no others, as `ACKLINE_SEARCH_PATHS` names them. Raises `Invalid`."""
    wanted = {spelled(parse_path(path)) for path in written}
    with reading(engine) as connection:
        if set(connection.scalars(select(search_paths.c.path))) == wanted:
            return
    with writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            # Who is storing dead letters now has not seen the new paths: wait for them, and have the others wait.
            connection.execute(text("LOCK TABLE dead_letters IN SHARE ROW EXCLUSIVE MODE"))
        there = set(connection.scalars(select(search_paths.c.path)))
        for table in (search_paths, search_values):
            connection.execute(delete(table).where(table.c.path.in_(there - wanted)))
        first = (connection.scalar(select(func.max(dead_letters.c.id))) or 0) + 1
        if new := sorted(wanted - there):
            connection.execute(insert(search_paths), [{"path": path, "since": first} for path in new])


def backfill(engine: Engine, limit: int) -> bool:
    """Take up to *limit* older dead letters into the index. Returns whether there are more."""
    unfinished = search_paths.c.since > 1
    with reading(engine) as connection:  # mostly there is nothing to do, and then nobody has to wait for a writer
        if not connection.scalar(select(func.count()).select_from(search_paths).where(unfinished)):
            return False
    with writing(engine) as connection:
        paths = {path: since for path, since in indexed(connection).items() if since > 1}
        top = max(paths.values(), default=1)
        query = (
            select(dead_letters.c.id, SEARCHED)
            .outerjoin_from(dead_letters, edits, LATEST_EDIT)
            .where(dead_letters.c.id < top)
            .order_by(dead_letters.c.id.desc())
            .limit(limit)
            .with_for_update(of=dead_letters)  # an edit of one of them waits, and then writes what is right
        )
        found = [(row_id, bytes(payload or b"")) for row_id, payload in connection.execute(query)]
        _insert(connection, paths, found)
        reached = found[-1][0] if len(found) == limit else 1
        connection.execute(update(search_paths).where(or_(search_paths.c.since > reached)).values(since=reached))
        return reached > 1
