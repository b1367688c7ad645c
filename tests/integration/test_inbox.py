"""The inbox, the same on SQLite and PostgreSQL, and for plain and async handlers: what a repeated delivery comes to."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from pydantic import BaseModel
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    func,
    insert,
    inspect,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError

from ackline.consumers import Batch, Context, Park, Reject, inbox_database, middleware, registered
from ackline.consumers import inbox as inboxes
from ackline.consumers.calling import compose
from ackline.consumers.decision import AlreadyHandled
from ackline.consumers.inbox import Inbox, claim, inbox
from ackline.consumers.worker import Worker
from ackline.infra import database
from ackline.infra.database import DatabaseUnavailable
from ackline.infra.errors import AcklineError, ConfigurationError
from ackline.infra.properties import Properties
from ackline.infra.settings import settings
from ackline.infra.tables import inbox as table
from ackline.producer import Publisher, message
from tests.amqp import Client
from tests.broker import Vhost
from tests.documented import load, write_files
from tests.waiting import until
from tests.working import consumer_of, working


@message("test.inbox.order")
class Order(BaseModel):
    number: int = 1


@message("test.inbox.charged")
class Charged(BaseModel):
    number: int


#: What the handlers write to.
service = MetaData()
charges = Table("charges", service, Column("id", Integer, primary_key=True), Column("number", Integer))
accounts = Table("accounts", service, Column("name", Text, primary_key=True))


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = database.connect(database_url)
    service.create_all(engine)
    yield engine
    engine.dispose()


class Consuming:
    """A consumer of `Order` with an inbox, as a worker runs it: `deliver` is what a delivery comes to."""

    def __init__(self, box: Inbox, handler: Callable[..., Any], **options: Any) -> None:
        found = consumer_of("billing", handler, Order, inbox=box, **options)
        self.box = box
        self._call = compose(found)
        self._loop = asyncio.new_event_loop() if found.is_async else None
        self._thread = threading.Thread(target=self._live, daemon=True)

    def _live(self) -> None:
        assert self._loop is not None
        self._loop.run_forever()
        self._loop.close()

    def __enter__(self) -> Consuming:
        self.box.open(4)
        if self._loop is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.box.close()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def run(self, message: Any, context: Any) -> Any:
        """What the composed handler returns, or raises."""
        if self._loop is None:
            return self._call(message, context)
        return asyncio.run_coroutine_threadsafe(self._call(message, context), self._loop).result(90)

    def deliver(self, message_id: str | None = "m-1", body: bytes = b'{"number": 1}', number: int = 1) -> Context:
        """Deliver an order; the context in which its handler ran."""
        context = context_of(message_id, body)
        self.run(Order(number=number), context)
        return context


def context_of(message_id: str | None = "m-1", body: bytes = b'{"number": 1}') -> Context:
    return Context(
        consumer="billing",
        message_id=message_id,
        message_type="test.inbox.order",
        attempt=1,
        properties=Properties(),
        raw=body,
    )


def charge(order: Order, ctx: Context) -> None:
    """A handler: one row for each time that it runs."""
    ctx.session.execute(insert(charges).values(number=order.number))


async def charge_async(order: Order, ctx: Context) -> None:
    await ctx.session.execute(insert(charges).values(number=order.number))


@pytest.fixture(params=[charge, charge_async], ids=["plain", "async"])
def charging(request: pytest.FixtureRequest, database_url: str, engine: Engine) -> Iterator[Consuming]:
    with Consuming(inbox(database_url), request.param) as running:
        yield running


def charged(engine: Engine) -> int:
    with database.reading(engine) as connection:
        return connection.execute(select(func.count()).select_from(charges)).scalar_one()


def rows(engine: Engine) -> list[Any]:
    with database.reading(engine) as connection:
        return list(connection.execute(select(table).order_by(table.c.message_id)))


# --- one effect ---------------------------------------------------------------------------------------------------


def test_a_message_that_is_delivered_twice_has_its_effect_once(charging: Consuming, engine: Engine) -> None:
    charging.deliver()
    charging.deliver()
    assert charged(engine) == 1
    (row,) = rows(engine)
    assert (row.consumer, row.message_id, row.claimed_until, row.unconfirmed) == ("billing", "m-1", None, None)


def test_each_message_has_its_own_effect(charging: Consuming, engine: Engine) -> None:
    charging.deliver("m-1")
    charging.deliver("m-2")
    assert charged(engine) == 2


def test_another_consumer_of_the_same_message_has_its_own_effect(database_url: str, engine: Engine) -> None:
    with Consuming(inbox(database_url), charge) as running:
        running.deliver()
        other = context_of()
        other.consumer = "shipping"
        running.run(Order(), other)
    assert charged(engine) == 2


def test_a_handler_that_raises_leaves_neither_effect_nor_note_and_is_run_again(
    database_url: str, engine: Engine
) -> None:
    tries: list[int] = []

    def fail_first(order: Order, ctx: Context) -> None:
        charge(order, ctx)
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("no such account")

    with Consuming(inbox(database_url), fail_first) as running:
        with pytest.raises(ValueError, match="no such account"):
            running.deliver()
        assert (charged(engine), rows(engine)) == (0, [])
        running.deliver()
        running.deliver()
    assert (charged(engine), len(tries)) == (1, 2)


def test_an_async_handler_that_raises_leaves_nothing_either(database_url: str, engine: Engine) -> None:
    async def fail(order: Order, ctx: Context) -> None:
        await charge_async(order, ctx)
        raise ValueError("no such account")

    with Consuming(inbox(database_url), fail) as running, pytest.raises(ValueError, match="no such account"):
        running.deliver()
    assert (charged(engine), rows(engine)) == (0, [])


def test_objects_that_the_handler_adds_are_written(database_url: str, engine: Engine) -> None:
    from sqlalchemy.orm import registry

    mapper = registry()

    class Charge:
        number: int

    mapper.map_imperatively(Charge, charges)

    def add(order: Order, ctx: Context) -> None:
        new = Charge()
        new.number = order.number
        ctx.session.add(new)

    with Consuming(inbox(database_url), add) as running:
        running.deliver()
    assert charged(engine) == 1
    mapper.dispose()


def test_what_fails_when_it_is_written_at_the_end_is_a_failed_attempt(database_url: str, engine: Engine) -> None:
    def late(order: Order, ctx: Context) -> None:
        ctx.session.execute(insert(accounts).values(name="ada"))
        charge(order, ctx)

    with engine.begin() as connection:
        connection.execute(insert(accounts).values(name="ada"))
    with Consuming(inbox(database_url), late) as running, pytest.raises(IntegrityError):
        running.deliver()
    assert (charged(engine), rows(engine)) == (0, [])


def test_a_handler_that_commits_by_itself_commits_nothing_before_the_note(database_url: str, engine: Engine) -> None:
    seen: list[int] = []

    def commit(order: Order, ctx: Context) -> None:
        charge(order, ctx)
        ctx.session.commit()
        seen.append(charged(engine))
        charge(order, ctx)
        raise ValueError("too late")

    with Consuming(inbox(database_url), commit) as running, pytest.raises(ValueError, match="too late"):
        running.deliver()
    assert (seen, charged(engine), rows(engine)) == ([0], 0, [])


def test_a_handler_cannot_undo_the_note_behind_our_back_but_part_of_its_effect(
    database_url: str, engine: Engine
) -> None:
    def rollback(order: Order, ctx: Context) -> None:
        with pytest.raises(IntegrityError), ctx.session.begin_nested():
            ctx.session.execute(insert(accounts), [{"name": "ada"}] * 2)
        charge(order, ctx)
        with pytest.raises(AcklineError, match="The transaction is the inbox's"):
            ctx.session.rollback()

    with Consuming(inbox(database_url), rollback) as running:
        running.deliver()
        running.deliver()
    assert charged(engine) == 1
    with engine.connect() as connection:
        assert connection.execute(select(accounts)).all() == []


def test_two_workers_with_the_same_message_at_once_have_its_effect_once(database_url: str, engine: Engine) -> None:
    in_handler, finish = threading.Event(), threading.Event()
    runs: list[int] = []

    def slow(order: Order, ctx: Context) -> None:
        runs.append(1)
        charge(order, ctx)
        in_handler.set()
        assert finish.wait(90)

    with Consuming(inbox(database_url), slow) as running, ThreadPoolExecutor(2) as pool:
        first = pool.submit(running.deliver)
        assert in_handler.wait(90)
        second = pool.submit(running.deliver)
        until(lambda: _waits(engine) or second.done(), what="the second to wait for the first")
        finish.set()
        first.result(90)
        try:
            second.result(90)
        except Park:  # SQLite waits for five seconds only; it comes again
            running.deliver()
    assert (charged(engine), len(runs)) == (1, 1)


def _waits(engine: Engine) -> bool:
    """Whether a statement of PostgreSQL waits for another's transaction; SQLite does not tell, and need not."""
    if engine.dialect.name == "sqlite":
        return True
    with engine.connect() as connection:
        return bool(connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


def test_the_second_of_two_at_once_runs_when_the_first_fails(postgresql_url: str) -> None:
    engine = database.connect(postgresql_url)
    service.create_all(engine)
    in_handler, finish = threading.Event(), threading.Event()

    def fail_first(order: Order, ctx: Context) -> None:
        charge(order, ctx)
        if not in_handler.is_set():
            in_handler.set()
            assert finish.wait(90)
            raise ValueError("the first fails")

    with Consuming(inbox(postgresql_url), fail_first) as running, ThreadPoolExecutor(2) as pool:
        first = pool.submit(running.deliver)
        assert in_handler.wait(90)
        second = pool.submit(running.deliver)
        until(lambda: _waits(engine), what="the second to wait for the first")
        finish.set()
        with pytest.raises(ValueError, match="the first fails"):
            first.result(90)
        second.result(90)
    assert charged(engine) == 1
    engine.dispose()


def test_many_at_once_on_one_database_have_their_effects_once(charging: Consuming, engine: Engine) -> None:
    def deliver(number: int) -> None:
        while True:
            try:
                charging.deliver(f"m-{number % 40}")
                return
            except Park:  # SQLite was locked for long
                pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(deliver, range(120)))
    assert charged(engine) == len(rows(engine)) == 40


# --- what is no duplicate -----------------------------------------------------------------------------------------


def test_a_message_without_an_id_is_handled_as_often_as_it_comes_and_said_once(
    charging: Consuming, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        charging.deliver(None)
        charging.deliver(None)
    assert charged(engine) == 2
    assert rows(engine) == []
    (said,) = [line for line in caplog.messages if "has no id" in line]
    assert said.startswith("billing: a message of type test.inbox.order has no id")


def test_an_id_that_was_another_message_s_goes_to_review(charging: Consuming, engine: Engine) -> None:
    charging.deliver("m-1", b'{"number": 1}')
    with pytest.raises(Reject, match="a message with the same id, but another body, has been handled already"):
        charging.deliver("m-1", b'{"number": 2}')
    assert charged(engine) == 1


def test_an_id_may_be_any_text(charging: Consuming, engine: Engine) -> None:
    for id_ in ("a\x00b", "ü" * 100, "'; DROP TABLE charges; --"):
        charging.deliver(id_)
        charging.deliver(id_)
    assert charged(engine) == 3


# --- what the handler publishes -----------------------------------------------------------------------------------


def publish(order: Order, ctx: Context) -> None:
    charge(order, ctx)
    ctx.publish(Charged(number=order.number))
    ctx.publish(Charged(number=-order.number))


async def publish_async(order: Order, ctx: Context) -> None:
    await charge_async(order, ctx)
    ctx.publish(Charged(number=order.number))
    ctx.publish(Charged(number=-order.number))


@pytest.fixture(params=[publish, publish_async], ids=["plain", "async"])
def publishing(request: pytest.FixtureRequest, database_url: str, engine: Engine) -> Iterator[Consuming]:
    with Consuming(inbox(database_url), request.param) as running:
        yield running


def enlisted(context: Context) -> list[tuple[str, str, dict[str, Any], bytes]]:
    return [(exchange, key, properties.decoded(), body) for exchange, key, properties, body in context.enlisted()]


def test_a_duplicate_publishes_what_the_broker_may_not_have(publishing: Consuming, engine: Engine) -> None:
    first = publishing.deliver()
    again = publishing.deliver()
    assert charged(engine) == 1
    assert len(enlisted(first)) == 2
    assert enlisted(again) == enlisted(first), "the same messages under the same ids, properties and all"


def test_what_is_confirmed_is_not_published_again(publishing: Consuming, engine: Engine) -> None:
    confirm = publishing.deliver().on_confirmed
    assert confirm is not None
    confirm()
    until(lambda: rows(engine)[0].unconfirmed is None, what="the confirm to be noted")
    again = publishing.deliver()
    assert (enlisted(again), again.on_confirmed) == ([], None)


def test_a_confirm_just_before_the_stop_is_noted(database_url: str, engine: Engine) -> None:
    with Consuming(inbox(database_url), publish) as running:
        confirm = running.deliver().on_confirmed
        assert confirm is not None
        confirm()
    assert rows(engine)[0].unconfirmed is None


def test_what_a_duplicate_publishes_is_confirmed_in_the_same_way(publishing: Consuming, engine: Engine) -> None:
    publishing.deliver()
    confirm = publishing.deliver().on_confirmed
    assert confirm is not None
    confirm()
    until(lambda: rows(engine)[0].unconfirmed is None, what="the confirm to be noted")


def test_a_handler_that_fails_leaves_nothing_to_publish(database_url: str, engine: Engine) -> None:
    def fail(order: Order, ctx: Context) -> None:
        publish(order, ctx)
        raise ValueError("no such account")

    with Consuming(inbox(database_url), fail) as running, pytest.raises(ValueError, match="no such account"):
        running.deliver()
    assert rows(engine) == []


# --- claims -------------------------------------------------------------------------------------------------------


class Desk:
    """An effect that is in no database: it counts. It can be told to fail, or to take its time."""

    def __init__(self) -> None:
        self.calls = 0
        self.fails = False
        self.in_handler = threading.Event()
        self.finish = threading.Event()
        self.finish.set()

    def call(self, order: Order, ctx: Context) -> None:
        self.calls += 1
        self.in_handler.set()
        assert self.finish.wait(90)
        if self.fails:
            raise ConnectionError("the desk is closed")
        ctx.publish(Charged(number=order.number))

    async def call_async(self, order: Order, ctx: Context) -> None:
        await asyncio.to_thread(self.call, order, ctx)


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture(params=["plain", "async"])
def claiming(request: pytest.FixtureRequest, database_url: str, engine: Engine, desk: Desk) -> Iterator[Consuming]:
    handler = desk.call if request.param == "plain" else desk.call_async
    with Consuming(claim("10m", database_url), handler) as running:
        yield running


def expire_claims(engine: Engine) -> None:
    """As if ten minutes had gone by."""
    with engine.begin() as connection:
        connection.execute(update(table).values(claimed_until=datetime.now(UTC) - timedelta(seconds=1)))


def test_a_claimed_message_that_was_handled_is_not_run_again(claiming: Consuming, desk: Desk, engine: Engine) -> None:
    first = claiming.deliver()
    again = claiming.deliver()
    assert desk.calls == 1
    assert rows(engine)[0].claimed_until is None
    assert enlisted(again) == enlisted(first) != [], "and what it published is published again until it is confirmed"


def test_a_duplicate_comes_again_while_another_worker_has_the_claim(
    claiming: Consuming, desk: Desk, engine: Engine
) -> None:
    desk.finish.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(claiming.deliver)
        assert desk.in_handler.wait(90)
        with pytest.raises(Park, match="another worker has claimed it") as raised:
            claiming.deliver()
        assert 0 < raised.value.delay <= 60
        desk.finish.set()
        first.result(90)
    claiming.deliver()
    assert desk.calls == 1


def test_a_claim_that_expired_is_taken_over_once(claiming: Consuming, desk: Desk, engine: Engine) -> None:
    desk.finish.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(claiming.deliver)
        assert desk.in_handler.wait(90)
        expire_claims(engine)
        desk.in_handler.clear()
        second = pool.submit(claiming.deliver)
        assert desk.in_handler.wait(90)
        with pytest.raises(Park):
            claiming.deliver()
        desk.finish.set()
        first.result(90)
        second.result(90)
    assert desk.calls == 2
    claiming.deliver()
    assert desk.calls == 2


def test_a_handler_that_fails_gives_up_its_claim(claiming: Consuming, desk: Desk, engine: Engine) -> None:
    desk.fails = True
    with pytest.raises(ConnectionError, match="the desk is closed"):
        claiming.deliver()
    assert rows(engine) == []
    desk.fails = False
    claiming.deliver()
    assert desk.calls == 2


def test_one_that_fails_late_does_not_give_up_the_claim_of_another(
    claiming: Consuming, desk: Desk, engine: Engine
) -> None:
    desk.finish.clear()
    desk.fails = True
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(claiming.deliver)
        assert desk.in_handler.wait(90)
        with engine.begin() as connection:  # another took it over, and works on
            connection.execute(update(table).values(claimed_until=datetime.now(UTC) + timedelta(seconds=90)))
        desk.finish.set()
        with pytest.raises(ConnectionError):
            first.result(90)
    assert len(rows(engine)) == 1
    with pytest.raises(Park):
        claiming.deliver()


def test_one_that_succeeds_late_is_handled_whoever_has_the_claim(
    claiming: Consuming, desk: Desk, engine: Engine
) -> None:
    desk.finish.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(claiming.deliver)
        assert desk.in_handler.wait(90)
        with engine.begin() as connection:
            connection.execute(update(table).values(claimed_until=datetime.now(UTC) + timedelta(seconds=90)))
        desk.finish.set()
        first.result(90)
    claiming.deliver()
    assert desk.calls == 1


def test_a_consumer_with_a_claim_has_no_session(database_url: str, engine: Engine) -> None:
    with (
        Consuming(claim("10m", database_url), charge) as running,
        pytest.raises(ConfigurationError, match=r"billing has no session: add inbox=inbox\(\) to its @consumer"),
    ):
        running.deliver()


@pytest.mark.parametrize(("expires", "keep"), [("0s", "7d"), ("8d", "7d"), ("soon", "7d")])
def test_a_claim_that_is_of_no_use_is_refused(expires: str, keep: str) -> None:
    with pytest.raises(ConfigurationError):
        claim(expires, keep=keep)


# --- batches ------------------------------------------------------------------------------------------------------


def in_batches(box: Inbox, handler: Callable[..., Any]) -> Consuming:
    return Consuming(box, handler, batch=Batch(10))


def batch_of(*ids: str | None) -> tuple[list[Order], list[Context]]:
    return [Order(number=place) for place in range(len(ids))], [context_of(id_) for id_ in ids]


def test_a_batch_is_handled_without_those_that_were_handled_before(database_url: str, engine: Engine) -> None:
    got: list[list[str | None]] = []

    def charge_all(orders: list[Order], contexts: list[Context]) -> None:
        got.append([context.id for context in contexts])
        contexts[0].session.execute(insert(charges), [{"number": order.number} for order in orders])

    with in_batches(inbox(database_url), charge_all) as running:
        assert running.run(*batch_of("m-1", "m-2")) == [None, None]
        results = running.run(*batch_of("m-2", "m-3", None, "m-1", "m-4"))
        assert [type(result) for result in results] == [
            AlreadyHandled, type(None), type(None), AlreadyHandled, type(None),
        ]  # fmt: skip
        assert [type(result) for result in running.run(*batch_of("m-1", "m-2"))] == [AlreadyHandled] * 2
    assert got == [["m-1", "m-2"], ["m-3", None, "m-4"]]
    assert charged(engine) == 5


@pytest.fixture(params=[inbox, lambda url: claim("10m", url)], ids=["inbox", "claim"])
def box(request: pytest.FixtureRequest, database_url: str, engine: Engine) -> Inbox:
    made: Inbox = request.param(database_url)
    return made


def test_one_that_fails_in_a_batch_is_not_handled_and_the_others_are(box: Inbox, engine: Engine) -> None:
    def publish_some(orders: list[Order], contexts: list[Context]) -> list[Exception | None]:
        for order, context in zip(orders, contexts, strict=True):
            context.publish(Charged(number=order.number))
        return [ValueError("no such account") if context.id == "bad" else None for context in contexts]

    with in_batches(box, publish_some) as running:
        results = running.run(*batch_of("m-1", "bad", "m-3"))
    assert list(map(repr, results)) == ["None", "ValueError('no such account')", "None"]
    assert [(row.message_id, row.claimed_until, len(row.unconfirmed)) for row in rows(engine)] == [
        ("m-1", None, 1),
        ("m-3", None, 1),
    ]


def test_a_batch_that_raises_leaves_nothing(box: Inbox, engine: Engine) -> None:
    def fail(orders: list[Order], contexts: list[Context]) -> None:
        raise ValueError("no such account")

    with in_batches(box, fail) as running, pytest.raises(ValueError, match="no such account"):
        running.run(*batch_of("m-1", "m-2"))
    assert rows(engine) == []


def test_a_batch_whose_results_do_not_fit_leaves_nothing(box: Inbox, engine: Engine) -> None:
    with in_batches(box, lambda orders, contexts: [None]) as running, pytest.raises(ValueError):
        running.run(*batch_of("m-1", "m-2"))
    assert rows(engine) == []


def test_the_same_message_twice_in_a_batch_is_handled_once_and_comes_again(box: Inbox, engine: Engine) -> None:
    got: list[int] = []
    with in_batches(box, lambda orders, contexts: got.append(len(orders))) as running:
        first, second = running.run(*batch_of("m-1", "m-1"))
    assert first is None
    assert isinstance(second, Park)
    assert got == [1]


def test_an_async_batch_is_handled_once_too(database_url: str, engine: Engine) -> None:
    async def charge_all(orders: list[Order], contexts: list[Context]) -> None:
        await contexts[0].session.execute(insert(charges), [{"number": order.number} for order in orders])

    with in_batches(inbox(database_url), charge_all) as running:
        for _ in range(2):
            running.run(*batch_of("m-1", "m-2"))
    assert charged(engine) == 2


# --- the database -------------------------------------------------------------------------------------------------


def test_the_worker_creates_the_table_in_a_database_of_a_service_and_nothing_else(database_url: str) -> None:
    engine = database.connect(database_url)
    with Consuming(inbox(database_url), charge):
        assert inspect(engine).get_table_names() == ["ackline_inbox"]
    engine.dispose()


def test_ackline_s_own_database_is_used_when_none_is_named(
    database_url: str, monkeypatch: pytest.MonkeyPatch, fresh_settings: None
) -> None:
    monkeypatch.setenv("ACKLINE_DATABASE_URL", database_url)
    engine = database.connect(database_url)
    with Consuming(inbox(), charge):
        assert {"ackline_inbox", "dead_letters", "alembic_version"} <= set(inspect(engine).get_table_names())
    engine.dispose()


def test_the_database_of_inboxes_can_be_set(
    database_url: str, monkeypatch: pytest.MonkeyPatch, fresh_settings: None, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACKLINE_DATABASE_URL", f"sqlite:///{tmp_path / 'ackline.db'}")
    monkeypatch.setenv("ACKLINE_INBOX_DATABASE_URL", database_url)
    engine = database.connect(database_url)
    service.create_all(engine)
    with Consuming(inbox(), charge) as running:
        running.deliver()
    assert charged(engine) == 1
    engine.dispose()


@pytest.fixture
def fresh_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings that are read anew, and by nobody after this test."""
    settings.cache_clear()
    yield
    settings.cache_clear()


def test_the_table_can_be_created_beforehand(database_url: str, engine: Engine) -> None:
    inboxes.create_tables(engine)
    inboxes.create_tables(engine)
    with engine.begin() as connection:
        inboxes.create_tables(connection)
    with Consuming(inbox(database_url), charge) as running:
        running.deliver()
    assert charged(engine) == 1


def test_a_user_who_may_not_create_the_table_is_told_how_it_is_created(postgresql_url: str) -> None:
    admin = database.connect(postgresql_url)
    role = f"role_{uuid4().hex}"
    with admin.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'"))
        connection.execute(text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))
    url = make_url(postgresql_url).set(username=role, password="secret").render_as_string(hide_password=False)
    try:
        with pytest.raises(AcklineError, match=r"may not create its table: create it with your migrations") as raised:
            inbox(url).open(1)
        assert "secret" not in str(raised.value)
    finally:
        inbox_database.of(url).engine.dispose()
        with admin.begin() as connection:
            connection.execute(text(f"DROP ROLE {role}"))
        admin.dispose()


def test_a_database_that_is_not_there_is_a_sentence_when_the_worker_starts() -> None:
    with pytest.raises(DatabaseUnavailable, match=r"Nothing answers as PostgreSQL at 127\.0\.0\.1:1"):
        inbox("postgresql://ada@127.0.0.1:1/service").open(1)


def test_a_url_that_cannot_be_used_is_a_sentence_when_the_worker_starts() -> None:
    with pytest.raises(ConfigurationError, match="the URL of the inbox cannot be used: it must read postgresql://"):
        inbox("mysql://localhost/service").open(1)


def test_a_connection_that_died_while_nobody_used_it_costs_no_attempt(
    postgresql_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = database.connect(postgresql_url)
    service.create_all(engine)
    for box, handler in ((inbox(postgresql_url), charge), (inbox(postgresql_url), charge_async)):
        with Consuming(box, handler) as running:
            running.deliver(f"{handler.__name__} 1")
            with engine.begin() as connection:
                connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid, 90000) FROM pg_stat_activity "
                        "WHERE pid <> pg_backend_pid() AND datname = current_database()"
                    )
                )
            running.deliver(f"{handler.__name__} 2")
    assert charged(engine) == 4
    assert "messages wait" not in caplog.text
    engine.dispose()


def test_while_the_database_does_not_work_messages_come_again_without_an_attempt(
    charging: Consuming, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE ackline_inbox RENAME TO elsewhere"))
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            with pytest.raises(Park) as raised:
                charging.deliver()
            assert raised.value.delay == 5
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE elsewhere RENAME TO ackline_inbox"))
        charging.deliver()
    assert charged(engine) == 1
    said = [line for line in caplog.messages if "messages wait" in line or "works again" in line]
    assert len(said) == 2, "once that it is away, once that it is back"


def test_rows_are_deleted_when_their_time_is_over(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_database, "CLEAN_BATCH", 2)
    monkeypatch.setattr(inbox_database, "NOTE_SECONDS", 0.01)
    with Consuming(inbox(database_url, keep="1h"), charge) as running:
        for number in range(5):
            running.deliver(f"old-{number}")
        running.deliver("new")
    with engine.begin() as connection:
        hour = timedelta(hours=1)
        (kept,) = connection.execute(select(table.c.keep_until).where(table.c.message_id == "new")).one()
        assert timedelta(0) < kept - datetime.now(UTC) <= hour
        old = table.c.message_id != "new"
        connection.execute(update(table).where(old).values(keep_until=datetime.now(UTC) - hour))
    with Consuming(inbox(database_url), charge):
        until(lambda: [row.message_id for row in rows(engine)] == ["new"], what="old rows to be deleted")


def test_inboxes_of_one_database_share_its_connections(database_url: str, engine: Engine) -> None:
    one, other = inbox(database_url), claim("10m", database_url)
    with Consuming(one, charge) as running:
        with Consuming(other, lambda order, ctx: None):
            pass
        running.deliver()  # the first one's are still there
    assert charged(engine) == 1


# --- in a worker --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", [publish, publish_async], ids=["plain", "async"])
def test_a_worker_handles_a_message_once_that_is_published_twice(
    handler: Callable[..., Any], database_url: str, engine: Engine, vhost: Vhost
) -> None:
    billing = consumer_of("billing", handler, Order, inbox=inbox(database_url))
    with working(vhost.amqp_url, billing), Publisher(vhost.amqp_url) as publisher:
        for _ in range(2):
            publisher.publish(Order(number=7), message_id="m-1", timeout=60)
        publisher.publish(Order(number=8), message_id="m-2", timeout=60)
        until(lambda: [row.unconfirmed for row in rows(engine)] == [None, None], what="the confirms to be noted")
        with Client(vhost.amqp_url) as client:
            until(lambda: client.consumers("billing") and not client.ready("billing"), what="an empty queue")
    assert charged(engine) == 2


def test_a_worker_whose_inbox_has_no_database_says_so_and_ends(vhost: Vhost) -> None:
    billing = consumer_of("billing", charge, Order, inbox=inbox("postgresql://ada@127.0.0.1:1/service"))
    with pytest.raises(DatabaseUnavailable, match="Nothing answers as PostgreSQL"):
        Worker([billing], url=vhost.amqp_url).run()


# --- as documented ------------------------------------------------------------------------------------------------


def documented(section: str, name: str, folder: Path) -> Any:
    """The module of that name in a section of the page for handler authors."""
    write_files("handlers.md", section, folder)
    return load(folder / f"{name}.py")


@pytest.mark.usefixtures("own_registry")
def test_the_documented_inbox(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, fresh_settings: None, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACKLINE_INBOX_DATABASE_URL", database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE bookings (order_id TEXT, cents INTEGER)"))
    ledger = documented("Exactly-once effects", "ledger", tmp_path)
    with Consuming(inbox(), ledger.book) as running:
        for _ in range(2):
            context = context_of()
            running.run(ledger.OrderPaid(order_id="A-1", cents=950), context)
            assert [key for _, key, _, _ in context.enlisted()] == ["receipt.issued"]
    with database.reading(engine) as connection:
        assert connection.execute(text("SELECT * FROM bookings")).all() == [("A-1", 950)]


@pytest.mark.usefixtures("own_registry")
def test_the_documented_claim(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, fresh_settings: None, tmp_path: Path
) -> None:
    calls: list[str] = []

    def post(address: str, **_: Any) -> httpx.Response:
        calls.append(address)
        return httpx.Response(201, request=httpx.Request("POST", address))

    monkeypatch.setattr(httpx, "post", post)
    monkeypatch.setenv("ACKLINE_INBOX_DATABASE_URL", database_url)
    refunds = documented("Exactly-once effects", "refunds", tmp_path)
    with Consuming(registered()["refunds"].inbox or pytest.fail("no inbox"), refunds.refund) as running:
        for _ in range(2):
            running.run(refunds.RefundGranted(order_id="A-1"), context_of())
    assert calls == ["https://bank.example/refunds/A-1"]


@pytest.mark.usefixtures("own_registry")
def test_the_documented_middleware(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(middleware, "_everywhere", [])
    invoices = documented("Middleware", "invoices", tmp_path)
    run = compose(registered()["invoices"])
    with caplog.at_level(logging.INFO):
        run(invoices.InvoiceDue(number=7), context_of())
        with pytest.raises(AlreadyHandled):
            run(invoices.InvoiceDue(number=7), context_of())
    assert capsys.readouterr().out == "invoice 7\n"
    assert sum("took" in line for line in caplog.messages) == 2
