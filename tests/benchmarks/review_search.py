"""What an operator waits for with 1,000,000 dead letters of 200 fingerprints, on SQLite and on PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, Engine, insert, text

from ackline.dlq import search_values
from ackline.dlq.approvals import Approvals
from ackline.dlq.contracts import Contracts
from ackline.dlq.groups import GroupFilter, Groups, Order
from ackline.dlq.letters import Letters
from ackline.dlq.rights import Actor, Role
from ackline.dlq.selection import Selection
from ackline.infra import database
from ackline.infra.properties import Properties
from ackline.infra.settings import Settings
from ackline.infra.tables import dead_letters, fingerprint_rates, fingerprints
from ackline.infra.tables import search_values as values
from tests import postgresql
from tests.benchmarks.comparing import Bench, table

LETTERS, SHORT, KINDS, TYPES = 1_000_000, 20_000, 200, 20
#: Runs of each search, every one for something else, and the bound of their p95 in milliseconds.
RUNS, BOUND, TEXT_BOUND = 200, 100, 500
_BATCH = 10_000
_WHO = Actor("bench", Role.ADMIN)
_PATH = "payload.order_id"
_START = datetime(2026, 1, 1, tzinfo=UTC)
_PROPERTIES = Properties(content_type="application/json", delivery_mode=2).wire
#: In which states dead letters are: of ten.
_STATES = ("in review",) * 6 + ("handled",) * 3 + ("discarded",)
_ERRORS = ("timeout", "connection refused", "no such customer", "price is negative", "address is missing")


def run(bench: Bench) -> str:
    """Fills each database first, which takes minutes."""
    count = SHORT if bench.short else LETTERS
    found: dict[str, Mapping[str, float]] = {}
    url = f"sqlite:///{bench.folder / 'review.db'}"
    found["SQLite"] = _measured(url, count)
    with postgresql.server(durable=True) as server, postgresql.fresh_database(server) as url:
        found["PostgreSQL"] = _measured(url, count)
    return table(
        f"Searching {count:,} dead letters of {KINDS} fingerprints: p95 of {RUNS} runs, in ms",
        ["", *found, "bound"],
        [
            [name, *(f"{found[kind][name]:.1f}" for kind in found), str(TEXT_BOUND if "text" in name else BOUND)]
            for name in next(iter(found.values()))
        ],
    )


def _measured(url: str, count: int) -> dict[str, float]:
    database.upgrade(url)
    engine = database.connect(url)
    try:
        began = time.monotonic()
        _fill(engine, count)
        print(f"{engine.dialect.name}: {count:,} dead letters in {time.monotonic() - began:.0f} s", file=sys.stderr)
        return {name: _p95(name, search) for name, search in _searches(engine, count).items()}
    finally:
        engine.dispose()


def _p95(name: str, search: Callable[[random.Random], object]) -> float:
    chance = random.Random(name)
    took = []
    for _ in range(RUNS):
        began = time.perf_counter()
        search(chance)
        took.append((time.perf_counter() - began) * 1000)
    p95 = statistics.quantiles(took, n=20)[-1]
    print(f"{name}: median {statistics.median(took):.1f}, p95 {p95:.1f}, most {max(took):.1f} ms", file=sys.stderr)
    return p95


# --- the searches -----------------------------------------------------------------------------------------------------


def _searches(engine: Engine, count: int) -> dict[str, Callable[[random.Random], object]]:
    letters = Letters(engine, Contracts({}), Approvals(engine, Settings(amqp_url="amqp://127.0.0.1:1")))
    groups = Groups(engine)

    def page(chance: random.Random, after: int | None = None, **filters: Any) -> None:
        assert letters.page(_WHO, Selection.parse(**filters), after, 50).items

    def by_filter(chance: random.Random) -> dict[str, Any]:
        kind = chance.randrange(KINDS)
        filters: list[dict[str, Any]] = [
            {"consumer": _consumer(kind)},
            {"type": _type(kind), "states": "in review"},
            {"fingerprint": _name(kind)},
            {"fingerprint": _name(kind), "states": ["in review", "discarded"]},
            {"consumer": _consumer(kind), "attempts_min": 3, "states": "discarded"},
            {"states": chance.choice(_STATES), "received_since": _at(count - count // 10, count)},
            {"consumer": _consumer(kind), "received_until": _at(count // 2, count)},
            {"received_until": _at(chance.randrange(count // 10, count), count)},
            {"message_id": f"m-{chance.randrange(count)}"},
            {"correlation_id": f"c-{chance.randrange(count) // 3}"},
        ]
        return chance.choice(filters)

    def by_text(chance: random.Random) -> str:
        kind = chance.randrange(KINDS)
        return chance.choice(
            [
                f"{chance.randrange(count):07}",
                _ERRORS[kind % len(_ERRORS)],
                f"kind{kind}",
                f"order kind{kind}",
                "ord",
            ]
        )

    return {
        "groups, a page": lambda chance: groups.page(
            _WHO,
            GroupFilter(consumer=chance.choice([None, _consumer(chance.randrange(KINDS))])),
            order=chance.choice([*Order]),
        ),
        "dead letters by filters, a page": lambda chance: page(chance, **by_filter(chance)),
        "by an indexed path, a page": lambda chance: page(chance, where=f'{_PATH} = "A-{chance.randrange(count):07}"'),
        "the next page": lambda chance: page(
            chance, after=chance.randrange(count // 2, count), consumer=_consumer(chance.randrange(KINDS))
        ),
        "one dead letter": lambda chance: letters.get(_WHO, chance.randrange(count) + 1),
        "by text in error messages, a page": lambda chance: page(chance, text=by_text(chance)),
    }


# --- the dead letters -------------------------------------------------------------------------------------------------


def _name(kind: int) -> str:
    return sha256(str(kind).encode()).hexdigest()[:16]


def _consumer(kind: int) -> str:
    return f"consumer-{kind % TYPES}"


def _type(kind: int) -> str:
    return f"type.{kind % TYPES}"


def _at(number: int, count: int) -> datetime:
    """When the dead letter of that number came in: all within thirty days."""
    return _START + timedelta(days=30) * (number / count)


def _fill(engine: Engine, count: int) -> None:
    """What the reviewer would have stored, in a fraction of the time."""
    search_values.register(engine, [_PATH])
    with _unguarded(engine):
        for start in range(0, count, _BATCH):
            rows = [_row(number, count) for number in range(start, start + _BATCH)]
            found = [
                {"path": _PATH, "value": search_values.key(f"A-{number:07}"), "dead_letter_id": number + 1}
                for number in range(start, start + _BATCH)
            ]
            with engine.begin() as connection:
                connection.execute(insert(dead_letters), rows)
                connection.execute(insert(values), found)
    with engine.begin() as connection:
        _group(connection, count)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE" if engine.dialect.name == "sqlite" else "VACUUM ANALYZE"))


@contextlib.contextmanager
def _unguarded(engine: Engine) -> Iterator[None]:
    """Without the trigger that has every dead letter begin in review."""
    if engine.dialect.name == "postgresql":
        _do(engine, "ALTER TABLE dead_letters DISABLE TRIGGER dead_letters_begin")
        yield
        _do(engine, "ALTER TABLE dead_letters ENABLE TRIGGER dead_letters_begin")
        return
    with engine.begin() as connection:
        guard = connection.scalar(text("SELECT sql FROM sqlite_master WHERE name = 'dead_letters_begin'"))
    _do(engine, "DROP TRIGGER dead_letters_begin")
    yield
    _do(engine, str(guard))


def _do(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)


def _row(number: int, count: int) -> dict[str, Any]:
    # Spread by a hash, so that neither kinds nor states follow each other in a pattern.
    chance = number * 2654435761 % 2**32
    kind, state, at = chance % KINDS, _STATES[chance // KINDS % len(_STATES)], _at(number, count)
    payload = json.dumps(
        {"order_id": f"A-{number:07}", "customer": {"name": f"n{kind}", "note": "x" * 200}, "total": 9.5}
    )
    message = f"{_ERRORS[kind % len(_ERRORS)]} in kind{kind} for order {number:07}"
    is_over = {"handled_at": at if state == "handled" else None, "discarded_at": at if state == "discarded" else None}
    by = "ada" if state == "discarded" else None
    return {
        "id": number + 1,
        "message_id": f"m-{number}",
        "consumer": _consumer(kind),
        "body_sha256": sha256(payload.encode()).digest(),
        "state": state,
        "source": "worker",
        "reason": f"failed 5 of 5 attempts: ValueError: {message}",
        "error_type": f"app.Error{kind % 40}",
        "error_message": message,
        "traceback": f"Traceback (most recent call last):\n  File app.py, line {kind}\nValueError: {message}",
        "attempts": 1 + chance // 7 % 5,
        "history": [{"attempt": 1, "at": at.isoformat(), "worker": "w:1", "error": "ValueError", "message": message}],
        "first_failed_at": at,
        "received_at": at,
        "last_seen_at": at,
        "type": _type(kind),
        "correlation_id": f"c-{number // 3}",
        "exchange": "ackline.messages",
        "routing_key": _type(kind),
        "properties": _PROPERTIES,
        "trusted": True,
        "payload": payload.encode(),
        "fingerprint": _name(kind),
        "redrive_count": 0,
        "duplicates": 0,
        "flags": [],
        "discarded_by": by,
        "discard_reason": by,
        **is_over,
    }


def _group(connection: Connection, count: int) -> None:
    for kind in range(KINDS):
        row = {
            "fingerprint": _name(kind),
            "consumer": _consumer(kind),
            "type": _type(kind),
            "error_type": f"app.Error{kind % 40}",
            "frame": f"app.py:{kind}",
            "message": f"{_ERRORS[kind % len(_ERRORS)]} in kind{kind} for order #",
            "first_seen": _START,
            "last_seen": _at(count - kind, count),
            "arrivals": count // KINDS,
            "sample_id": count - kind,
            "status": "open",
            "status_at": _START,
            "status_by": "ackline reviewer",
            "reopened": 0,
        }
        connection.execute(insert(fingerprints).values(row))
        hours = [
            {"fingerprint": _name(kind), "bucket": _at(count, count) - timedelta(minutes=10 * n), "count": n}
            for n in range(144)
        ]
        connection.execute(insert(fingerprint_rates), hours)
    counted = text("INSERT INTO fingerprint_counts SELECT fingerprint, state, count(*) FROM dead_letters GROUP BY 1, 2")
    connection.execute(counted)
