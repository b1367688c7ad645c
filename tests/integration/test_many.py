"""Many values as one parameter, on both databases: `among` finds what `IN` finds, `rows` are what they were."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import BigInteger, Boolean, Engine, Float, Text, delete, insert, select, text, update

from ackline.infra import many
from ackline.infra.database import reading, writing
from ackline.infra.many import among
from ackline.infra.tables import UtcTime, accepted, fingerprint_counts
from ackline.infra.wire import now

ODD = ["it's", 'a "quote"', "雪\U0001f600", "\\", "%_?:x", "", "null", "7"]


@pytest.fixture
def stored(engine: Engine) -> Engine:
    with writing(engine) as connection:
        rows = [{"message_id": name, "type": "t", "at": now()} for name in ODD]
        connection.execute(insert(accepted), rows)
        counts = [{"fingerprint": f"f-{n}", "state": "in review", "count": n} for n in range(2000)]
        connection.execute(insert(fingerprint_counts), counts)
    return engine


@pytest.mark.parametrize("names", [[], ODD[:1], ODD, [*ODD, "another"], ["another"]])
def test_texts(stored: Engine, names: list[str]) -> None:
    with reading(stored) as connection:
        found = connection.scalars(select(accepted.c.message_id).where(among(accepted.c.message_id, names))).all()
    assert set(found) == set(names) & set(ODD)


def test_whole_numbers_many_of_them_and_beside_other_conditions(stored: Engine) -> None:
    count = fingerprint_counts.c["count"]
    with writing(stored) as connection:
        some = among(count, range(0, 40_000, 2))
        assert connection.scalars(select(count).where(some, count < 7).order_by(count)).all() == [0, 2, 4, 6]
        assert connection.execute(update(fingerprint_counts).where(~some).values(count=-1)).rowcount == 1000
        assert connection.execute(delete(fingerprint_counts).where(among(count, [-1]))).rowcount == 1000


def test_rows_are_a_table_of_their_values(engine: Engine) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=8)))
    types = {"name": Text(), "number": BigInteger(), "share": Float(), "sure": Boolean(), "at": UtcTime()}
    values: list[tuple[Any, ...]] = [
        (name, n - 3, n / 7, n % 2 == 0, at + timedelta(days=n)) for n, name in enumerate(ODD)
    ]
    values.append((None, None, None, None, None))
    with reading(engine) as connection:
        given = many.rows(connection, "given", types, values)
        assert connection.execute(select(given)).all() == values
        late = select(given.c.name).where(given.c.at > at, given.c.number < 0)
        assert connection.scalars(late).all() == ODD[1:3]
        assert connection.execute(select(many.rows(connection, "none", types, []))).all() == []


def test_rows_change_many_at_once(stored: Engine) -> None:
    counts = fingerprint_counts.c
    with writing(stored) as connection:
        columns = {"fingerprint": counts.fingerprint.type, "count": counts["count"].type}
        new = many.rows(connection, "new", columns, [(f"f-{n}", n + 5000) for n in range(1000)])
        changed = update(fingerprint_counts).where(counts.fingerprint == new.c.fingerprint)
        assert connection.execute(changed.values(count=new.c["count"])).rowcount == 1000
        found = connection.scalars(select(counts["count"]).order_by(counts["count"])).all()
    assert found == [*range(1000, 2000), *range(5000, 6000)]


def test_the_index_is_used(engine: Engine) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL reads small tables whole, whatever is asked")
    query = select(accepted.c.message_id).where(among(accepted.c.message_id, ODD), accepted.c.type == "t")
    with reading(engine) as connection:
        compiled = query.compile(engine, compile_kwargs={"literal_binds": True})
        plan = [row[3] for row in connection.execute(text("EXPLAIN QUERY PLAN " + str(compiled).replace(":", "\\:")))]
    assert plan[0].startswith("SEARCH accepted USING INDEX"), plan
