"""Many rows at once: what an INSERT of each would have stored, and its errors."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import DataError, IntegrityError

from ackline.infra.bulk import insert_rows
from ackline.infra.database import DatabaseUnavailable, reading, writing
from ackline.infra.tables import dead_letters
from ackline.infra.wire import now

NAMES = (
    *("message_id", "consumer", "body_sha256", "state", "source", "reason", "error_type", "error_message", "traceback"),
    *("attempts", "history", "first_failed_at", "received_at", "last_seen_at", "type", "app_id", "exchange"),
    *("routing_key", "properties", "trusted", "payload", "redrive_count", "duplicates", "flags"),
)
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=8)))
ODD = "tab\t, newline\n, \\N, \\., NULL, ' \" ; -- ${} 雪 \U0001f600"
HISTORY = [{"attempt": 1, "message": ODD}]


def row(number: int, **changed: object) -> tuple[object, ...]:
    values = dict(
        zip(
            NAMES,
            (
                *(f"m-{number}", "billing", bytes(32), "in review", "worker", ODD, "", "", ""),
                *(number, HISTORY, AT, AT, AT, "order.placed", None, ODD),
                *("", bytes(range(256)), number % 2 == 0, b"\\x00\x00", 0, 0, []),
            ),
            strict=True,
        )
    )
    return tuple((values | changed).values())


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 250])
def test_every_row_is_stored_as_it_is(engine: Engine, count: int) -> None:
    with writing(engine) as connection:
        insert_rows(connection, dead_letters, NAMES, [row(number) for number in range(count)])
    columns = [dead_letters.c[name] for name in NAMES]
    with reading(engine) as connection:
        found = [tuple(stored) for stored in connection.execute(select(*columns).order_by(dead_letters.c.id))]
    assert found == [row(number) for number in range(count)]
    assert all(stored[NAMES.index("received_at")].tzinfo is UTC for stored in found)


@pytest.mark.parametrize("number", [0, 120, 249])
def test_a_row_that_breaks_a_rule_raises_what_an_insert_raises(engine: Engine, number: int) -> None:
    rows = [row(n) for n in range(250)]
    rows[number] = row(number, state="lost")
    with pytest.raises(IntegrityError, match="state"), writing(engine) as connection:
        insert_rows(connection, dead_letters, NAMES, rows)
    with writing(engine) as connection:  # nothing of it is there, and the connection is of use
        assert connection.scalar(select(func.count()).select_from(dead_letters)) == 0
        insert_rows(connection, dead_letters, NAMES, [row(1)])


def test_a_text_that_the_database_does_not_take_costs_its_own_savepoint_only(engine: Engine) -> None:
    with writing(engine) as connection:
        insert_rows(connection, dead_letters, NAMES, [row(1)])
        with pytest.raises((DataError, ValueError)), connection.begin_nested():
            insert_rows(connection, dead_letters, NAMES, [row(2, type="\ud800")])
        insert_rows(connection, dead_letters, NAMES, [row(3)])
    with reading(engine) as connection:
        assert connection.scalars(select(dead_letters.c.message_id)).all() == ["m-1", "m-3"]


def test_a_connection_that_is_lost_is_an_outage(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("it has no connection to lose")

    def lose() -> None:
        with writing(engine) as connection:
            own = connection.scalar(text("SELECT pg_backend_pid()"))
            with writing(engine) as other:
                other.execute(text("SELECT pg_terminate_backend(:own, 90000)"), {"own": own})
            insert_rows(connection, dead_letters, NAMES, [row(1)])

    with pytest.raises(DatabaseUnavailable):
        lose()
    with writing(engine) as connection:
        insert_rows(connection, dead_letters, NAMES, [row(1), row(2, received_at=now())])
