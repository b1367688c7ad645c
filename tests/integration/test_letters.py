"""Searching dead letters, and what people do with them, the same on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine

from ackline.dlq import search_values
from ackline.dlq.selection import Selection, rows
from ackline.infra import database
from ackline.infra.database import reading
from tests.letters import letter
from tests.review import ADA, Review


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An engine on a fresh, upgraded database."""
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path / 'ackline.db'}" if sqlite else request.getfixturevalue("postgresql_url")
    database.upgrade(url)
    engine = database.connect(url)
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: Engine) -> Review:
    return Review(engine)


def found(store: Review, **filters: object) -> list[str]:
    """The message ids of a selection, newest first, page by page."""
    ids: list[str] = []
    after = None
    while True:
        page = store.letters.page(ADA, Selection.parse(**filters), after, limit=2)
        ids += [row.message_id for row in page.items]
        if page.next is None:
            return ids
        after = page.next


def test_text(store: Review) -> None:
    store.ingest(
        [
            replace(letter("m-1"), error_message="Größe of order_17 is wrong: 1.5e3", reason="r"),
            replace(letter("m-2"), error_message="connection refused (db-7.example.com:5432)", reason="x"),
        ]
    )
    assert found(store, text="größe".capitalize()) == ["m-1"]
    assert found(store, text="ord") == ["m-1"]
    assert found(store, text="CONNECTION ref") == ["m-2"]
    assert found(store, text="example.com 5432") == ["m-2"]
    assert found(store, text="connection wrong") == []
    assert found(store, text="17 wrong", consumer="billing", states="in review") == ["m-1"]


def test_where(store: Review, engine: Engine) -> None:
    store.ingest([letter(f"m-{n}", body=b'{"order_id": "A-%d", "n": %d}' % (n % 3, n)) for n in range(9)])
    want = ["m-7", "m-4", "m-1"]
    assert found(store, where='payload.order_id = "A-1"') == want
    search_values.register(engine, ["payload.order_id"])
    assert found(store, where='payload.order_id = "A-1"') == want
    assert search_values.backfill(engine, 4)
    assert found(store, where='payload.order_id = "A-1"') == want
    assert search_values.backfill(engine, 4)
    assert not search_values.backfill(engine, 4)
    assert found(store, where='payload.order_id = "A-1"') == want
    assert found(store, where=['payload.order_id = "A-1"', "payload.n > 3"]) == want[:2]
    with reading(engine) as connection:
        assert rows(connection, Selection.parse(where='payload.order_id = "A-1"'), limit=5).scanned == 0
