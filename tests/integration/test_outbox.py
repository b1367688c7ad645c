"""The outbox as an upstream service uses it, on SQLite and PostgreSQL: rows in the service's own transaction."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, select
from sqlalchemy import update as sql_update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from ackline.infra import database
from ackline.infra.properties import Properties
from ackline.infra.tables import OutboxState, outbox_metadata
from ackline.infra.tables import outbox as table
from ackline.producer import outbox
from ackline.producer.outbox import Entry, Stored
from tests.relaying import Recorded

YEARS_AHEAD = datetime(2042, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine as a service makes it, with the tables of an outbox."""
    engine = create_engine(database_url)
    outbox.create_tables(engine)
    yield engine
    engine.dispose()


def found(engine: Engine, message_id: str) -> Stored:
    """The newest row of a message that is there."""
    with engine.connect() as connection:
        row = outbox.find(connection, message_id)
    assert row is not None
    return row


def waiting(engine: Engine) -> list[str]:
    """Ids of the messages that wait to be published now, in their order."""
    with engine.connect() as connection:
        return [row.message_id for row in outbox.listed(connection, OutboxState.WAITING, 1000)]


# --- in whose transaction -----------------------------------------------------------------------------------------


def test_a_message_is_there_when_the_session_commits_and_only_then(engine: Engine) -> None:
    with Session(engine) as session:
        outbox.add(session, Recorded(number=1))
        session.rollback()
        kept = outbox.add(session, Recorded(number=2))
        assert waiting(engine) == []
        session.commit()
    assert waiting(engine) == [kept]


def test_a_savepoint_that_is_rolled_back_takes_its_messages_with_it(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        first = outbox.add(session, Recorded(number=1))
        with session.begin_nested() as savepoint:
            outbox.add(session, Recorded(number=2))
            savepoint.rollback()
        third = outbox.add(session, Recorded(number=3))
    assert waiting(engine) == [first, third]


def test_a_connection_and_a_scoped_session_take_messages_too(engine: Engine) -> None:
    with engine.begin() as connection:
        first = outbox.add(connection, Recorded(number=1))
    session = scoped_session(sessionmaker(engine))
    second = outbox.add(session, Recorded(number=2))
    session.commit()
    session.remove()
    assert waiting(engine) == [first, second]


def test_an_asyncio_service_adds_in_its_own_transaction(postgresql_url: str) -> None:
    async def serve() -> tuple[str, str]:
        async_engine = create_async_engine(postgresql_url)
        async with AsyncSession(async_engine) as session, session.begin():
            first = await session.run_sync(outbox.add, Recorded(number=1), correlation_id="c-1")
        async with async_engine.begin() as connection:
            second = await connection.run_sync(outbox.add, Recorded(number=2))
        async with AsyncSession(async_engine) as session:
            await session.run_sync(outbox.add, Recorded(number=3))
            await session.rollback()
            with pytest.raises(
                TypeError, match=r"to a AsyncSession: .* `await session\.run_sync\(outbox\.add, message"
            ):
                outbox.add(session, Recorded(number=4))  # type: ignore[arg-type]
        await async_engine.dispose()
        return first, second

    engine = create_engine(postgresql_url)
    outbox.create_tables(engine)
    added = asyncio.run(serve())
    assert waiting(engine) == [*added]
    engine.dispose()


# --- what is kept -------------------------------------------------------------------------------------------------


def test_a_row_holds_the_message_as_it_will_go_over_the_wire(engine: Engine) -> None:
    with engine.begin() as connection:
        message_id = outbox.add(
            connection,
            Recorded(number=7, filling="é"),
            message_id="m-7",
            correlation_id="c-7",
            headers={"tenant": "blue"},
            track=True,
            app_id="shop",
        )
        row = connection.execute(select(table)).one()
    assert message_id == row.message_id == "m-7"
    assert (row.type, row.state, row.due_at, row.finished_at) == ("test.recorded", "waiting", None, None)
    assert row.payload == '{"number":7,"filling":"é"}'.encode()
    properties = Properties.from_wire(row.properties).decoded()
    assert abs(properties.pop("timestamp") - row.created_at.timestamp()) < 3600
    assert properties == {
        "content_type": "application/json",
        "delivery_mode": 2,
        "message_id": "m-7",
        "correlation_id": "c-7",
        "type": "test.recorded",
        "app_id": "shop",
        "headers": {"tenant": "blue", "ackline-track": True},
    }


def test_rows_have_the_order_in_which_they_were_put(engine: Engine) -> None:
    ids = [f"m-{number}" for number in range(2500)]
    with engine.begin() as connection:
        outbox.put(connection, [Entry(id_, "t", Properties(message_id=id_), b"") for id_ in ids])
        outbox.put(connection, [])
        assert list(connection.scalars(select(table.c.message_id).order_by(table.c.id))) == ids
        assert outbox.depth(connection) == 2500


# --- scheduled messages -------------------------------------------------------------------------------------------


def test_a_scheduled_message_is_listed_and_does_not_count_as_waiting(engine: Engine) -> None:
    with engine.begin() as connection:
        assert not outbox.is_backlogged(connection)
        later = outbox.add(connection, Recorded(number=1), deliver_at=YEARS_AHEAD)
        sooner = outbox.add(connection, Recorded(number=2), delay=timedelta(days=400))
        soonest = outbox.add(connection, Recorded(number=3), delay=3600.0)
        assert not outbox.is_backlogged(connection)
        assert outbox.depth(connection) == 0
        outbox.add(connection, Recorded(number=4), deliver_at=datetime(2001, 1, 1, tzinfo=UTC))
        assert outbox.is_backlogged(connection)
        assert outbox.depth(connection) == 1

        page = outbox.scheduled(connection, 2)
        assert [row.message_id for row in page] == [soonest, sooner]
        last = page[-1]
        assert last.due_at is not None
        (rest,) = outbox.scheduled(connection, 2, after=(last.due_at, last.id))
    assert rest == found(engine, later)
    assert (rest.due_at, rest.state, rest.type) == (YEARS_AHEAD, OutboxState.WAITING, "test.recorded")


def test_scheduled_messages_of_one_moment_are_paged_without_a_gap(engine: Engine) -> None:
    with engine.begin() as connection:
        ids = [outbox.add(connection, Recorded(number=number), deliver_at=YEARS_AHEAD) for number in range(5)]
        seen: list[str] = []
        after = None
        while page := outbox.scheduled(connection, 2, after):
            seen += [row.message_id for row in page]
            after = (YEARS_AHEAD, page[-1].id)
    assert seen == ids


def test_one_that_is_due_counts_as_waiting_before_a_relay_has_looked(engine: Engine) -> None:
    with engine.begin() as connection:
        outbox.add(connection, Recorded(number=1), delay=3600)
        connection.execute(sql_update(table).values(due_at=datetime(2020, 1, 1, tzinfo=UTC)))
        assert outbox.is_backlogged(connection)
        assert outbox.depth(connection) == 1


def test_a_scheduled_message_is_cancelled_once(engine: Engine) -> None:
    with engine.begin() as connection:
        message_id = outbox.add(connection, Recorded(number=1), deliver_at=YEARS_AHEAD)
        assert outbox.cancel(connection, message_id)
        assert not outbox.cancel(connection, message_id)
        assert not outbox.scheduled(connection, 10)
    row = found(engine, message_id)
    assert row.state == OutboxState.CANCELLED
    assert row.finished_at is not None


def test_what_waits_to_be_published_now_cannot_be_cancelled(engine: Engine) -> None:
    with engine.begin() as connection:
        message_id = outbox.add(connection, Recorded(number=1))
        assert not outbox.cancel(connection, message_id, failed=True)
        assert not outbox.cancel(connection, "no such message")
    assert waiting(engine) == [message_id]


def test_a_failed_message_waits_again_or_is_given_up(engine: Engine) -> None:
    with engine.begin() as connection:
        message_id = outbox.add(connection, Recorded(number=1))
        failed = {"state": OutboxState.FAILED, "error": "too large", "finished_at": datetime.now(UTC)}
        connection.execute(sql_update(table).values(failed))
        assert [row.error for row in outbox.listed(connection, OutboxState.FAILED, 10)] == ["too large"]
        assert not outbox.cancel(connection, message_id)
        assert outbox.retry(connection, message_id)
        assert not outbox.retry(connection, message_id)
    row = found(engine, message_id)
    assert (row.state, row.error, row.finished_at) == (OutboxState.WAITING, None, None)
    with engine.begin() as connection:
        connection.execute(sql_update(table).values(failed))
        assert outbox.cancel(connection, message_id, failed=True)


def test_the_newest_row_of_an_id_is_the_one_that_is_found(engine: Engine) -> None:
    with engine.begin() as connection:
        outbox.add(connection, Recorded(number=1), message_id="again", deliver_at=YEARS_AHEAD)
        outbox.add(connection, Recorded(number=2), message_id="again")
        newest = outbox.find(connection, "again")
        assert newest is not None
        assert newest.due_at is None
        assert outbox.find(connection, "no such message") is None


# --- the tables ---------------------------------------------------------------------------------------------------


def test_the_tables_are_those_of_the_page_and_creating_them_again_keeps_what_is_in_them(engine: Engine) -> None:
    with engine.begin() as connection:
        message_id = outbox.add(connection, Recorded(number=1))
    outbox.create_tables(engine)
    assert waiting(engine) == [message_id]
    with engine.begin() as connection:
        assert outbox.has_tables(connection)
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, outbox_metadata) == []
        table.drop(connection)
        assert not outbox.has_tables(connection)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_several_that_create_the_tables_at_once_all_succeed(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}" if kind == "sqlite" else request.getfixturevalue("postgresql_url")
    gate = threading.Barrier(6)

    def create() -> None:
        engine = database.connect(url)
        gate.wait()
        with database.writing(engine) as connection:
            outbox.create_tables(connection)
        engine.dispose()

    with ThreadPoolExecutor(6) as pool:
        for created in [pool.submit(create) for _ in range(6)]:
            created.result()
