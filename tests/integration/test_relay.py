"""The relay between a real database and a real broker: what it publishes, when, in which order, and what never."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy import update as sql_update

from ackline.infra import database
from ackline.infra.names import MESSAGES, UNROUTED
from ackline.infra.properties import Properties
from ackline.infra.running_broker import Broker
from ackline.infra.tables import OutboxState, leases
from ackline.infra.tables import outbox as table
from ackline.infra.wire import now
from ackline.producer import outbox
from ackline.producer.lease import Lease
from ackline.producer.outbox import Entry, Stored
from ackline.producer.publisher import Publisher
from ackline.producer.relay import Relay
from tests.amqp import Client
from tests.broker import Vhost
from tests.rabbitmqctl import rabbitmqctl
from tests.relaying import QUEUE, Recorded, declare_queue, numbers, taken
from tests.waiting import until

#: Seconds that a relay gets to stop.
STOP_SECONDS = 90.0


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A database with the tables of an outbox."""
    engine = database.connect(database_url)
    outbox.create_tables(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def url(vhost: Vhost) -> str:
    """The broker, with the topology and a queue that records."""
    declare_queue(vhost.amqp_url)
    return vhost.amqp_url


@contextlib.contextmanager
def relaying(url: str, engine: Engine, **options: Any) -> Iterator[Relay]:
    """A relay that runs while the block does. What `Relay.run` raises is raised at the end of the block."""
    relay = Relay(Publisher(url, name="relay"), engine, **options)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(relay.run)
        try:
            yield relay
        finally:
            relay.stop()
            running.result(STOP_SECONDS)


def add(engine: Engine, *range_: int, **options: Any) -> list[str]:
    """Have messages with these numbers published, in one transaction."""
    with database.writing(engine) as connection:
        return [outbox.add(connection, Recorded(number=number), **options) for number in range(*range_)]


def put(engine: Engine, *entries: Entry) -> None:
    with database.writing(engine) as connection:
        outbox.put(connection, entries)


def backlogged(engine: Engine) -> bool:
    with database.reading(engine) as connection:
        return outbox.is_backlogged(connection)


def listed(engine: Engine, state: OutboxState) -> list[Stored]:
    with database.reading(engine) as connection:
        return outbox.listed(connection, state, 10_000)


def until_empty(engine: Engine) -> None:
    until(lambda: not backlogged(engine), what="everything that waits to be published")


# --- what is published --------------------------------------------------------------------------------------------


def test_messages_are_published_in_the_order_of_their_rows_and_noted(engine: Engine, url: str) -> None:
    with relaying(url, engine), Client(url) as client:
        for start in range(0, 3000, 500):
            add(engine, start, start + 500)
        until_empty(engine)
        assert numbers(client) == list(range(3000))
    rows = listed(engine, OutboxState.PUBLISHED)
    assert len(rows) == 3000
    assert all(row.finished_at is not None and row.error is None for row in rows)


def test_a_message_goes_over_the_wire_as_it_was_added(engine: Engine, url: str) -> None:
    with database.writing(engine) as connection:
        outbox.add(connection, Recorded(number=7), message_id="m-7", correlation_id="c-7", headers={"a": "b"})
    with relaying(url, engine), Client(url) as client:
        until_empty(engine)
        (one,) = taken(client)
    assert (one.exchange, one.routing_key, one.body) == (MESSAGES, "test.recorded", b'{"number":7,"filling":""}')
    properties = one.properties
    assert (properties.message_id, properties.correlation_id, properties.type) == ("m-7", "c-7", "test.recorded")
    assert (properties.delivery_mode, properties.content_type, one.headers["a"]) == (2, "application/json", "b")


def test_large_messages_are_published_in_several_batches(engine: Engine, url: str) -> None:
    filling = "x" * 4_000_000
    for number in range(12):
        with database.writing(engine) as connection:
            outbox.add(connection, Recorded(number=number, filling=filling))
    with relaying(url, engine), Client(url) as client:
        until_empty(engine)
        assert numbers(client) == list(range(12))


def test_a_row_whose_transaction_ends_late_is_published_when_it_becomes_visible(postgresql_url: str, url: str) -> None:
    engine = database.connect(postgresql_url)
    outbox.create_tables(engine)
    with relaying(url, engine), Client(url) as client:
        with database.writing(engine) as slow:
            outbox.add(slow, Recorded(number=1))
            add(engine, 2, 3)
            until(lambda: client.ready(QUEUE) == 1, what="the row that was committed first")
        until(lambda: client.ready(QUEUE) == 2, what="the row with the lower id")
        assert numbers(client) == [2, 1]
    engine.dispose()


# --- scheduled messages -------------------------------------------------------------------------------------------


def test_a_scheduled_message_is_published_when_it_is_due_and_not_before(engine: Engine, url: str) -> None:
    (soon,) = add(engine, 1, 2, delay=3600)
    (later,) = add(engine, 2, 3, deliver_at=datetime(2061, 7, 28, tzinfo=UTC))
    add(engine, 3, 4)
    with relaying(url, engine), Client(url) as client:
        until(lambda: client.ready(QUEUE) == 1, what="what waits for no time")
        due_at = now() + timedelta(seconds=2)
        with database.writing(engine) as connection:
            connection.execute(sql_update(table).where(table.c.message_id == soon).values(due_at=due_at))
        until(lambda: client.ready(QUEUE) == 2, what="what is due")
        assert now() >= due_at
        until_empty(engine)
        assert numbers(client) == [3, 1]
        with database.reading(engine) as connection:
            assert [row.message_id for row in outbox.scheduled(connection, 10)] == [later]


def test_what_became_due_while_no_relay_ran_is_published_at_the_start_in_order(engine: Engine, url: str) -> None:
    add(engine, 0, 50, delay=3600)
    add(engine, 50, 60)
    far = now() + timedelta(days=36_000)
    add(engine, 60, 70, deliver_at=far)
    with database.writing(engine) as connection:  # a day passes; the first became due last
        past = {row.id: now() - timedelta(minutes=row.id) for row in outbox.scheduled(connection, 50)}
        for id_, due_at in past.items():
            connection.execute(sql_update(table).where(table.c.id == id_).values(due_at=due_at))
    with relaying(url, engine), Client(url) as client:
        until_empty(engine)
        assert numbers(client) == list(range(60))
    with database.reading(engine) as connection:
        assert [row.due_at for row in outbox.scheduled(connection, 100)] == [far] * 10


def test_of_cancelling_and_publishing_exactly_one_wins(engine: Engine, url: str) -> None:
    soon = [add(engine, number, number + 1, delay=0.02 * number)[0] for number in range(1, 200)]
    late = add(engine, 200, 210, delay=3600)
    with relaying(url, engine), Client(url) as client:
        until(lambda: client.ready(QUEUE), what="the first of them")  # so that publishing wins once at least
        cancelled = set()
        for message_id in [*soon, *late]:
            with database.writing(engine) as connection:
                if outbox.cancel(connection, message_id):
                    cancelled.add(message_id)
        with database.reading(engine) as connection:
            assert outbox.scheduled(connection, 1000) == []
        until_empty(engine)
        published = [one.properties.message_id for one in taken(client)]
    assert cancelled.isdisjoint(published)
    assert sorted([*cancelled, *published]) == sorted([*soon, *late])
    assert cancelled >= set(late)
    assert {row.message_id for row in listed(engine, OutboxState.CANCELLED)} == cancelled


# --- what cannot be published -------------------------------------------------------------------------------------


def test_a_message_that_the_broker_will_never_take_fails_and_holds_up_nobody(
    engine: Engine, url: str, vhost: Vhost
) -> None:
    fields: dict[str, Any] = {"type": "test.recorded", "delivery_mode": 2}
    spoiled = {
        "headers": Entry("headers", "test.recorded", Properties(**fields, headers={"a": "x" * 140_000}), b"{}"),
        "cut short": Entry("cut short", "test.recorded", Properties.from_wire(b"\x80\x00\x30text"), b"{}"),
        "no properties": Entry("no properties", "test.recorded", Properties.from_wire(b""), b"{}"),
        "type": Entry("type", "x" * 256, Properties(**fields), b"{}"),
        "another's user": Entry("another's user", "test.recorded", Properties(**fields, user_id="eve"), b"{}"),
    }
    if _takes_16_mib_at_most(vhost):
        spoiled["too large"] = Entry("too large", "test.recorded", Properties(**fields), bytes(17 * 1024 * 1024))
    for number, entry in enumerate(spoiled.values()):
        add(engine, number, number + 1)
        put(engine, entry)
    add(engine, 100, 200)
    with relaying(url, engine), Client(url) as client:
        until_empty(engine)
        # Their neighbours may have been sent twice: RabbitMQ does not say which of those in flight it means.
        assert sorted(set(numbers(client))) == [*range(len(spoiled)), *range(100, 200)]
    failed = {row.message_id: str(row.error) for row in listed(engine, OutboxState.FAILED)}
    assert set(failed) == set(spoiled)
    assert "larger than" in failed.get("too large", "larger than")
    assert "do not fit into an AMQP frame" in failed["headers"]
    assert "its properties are not those of an AMQP message" in failed["cut short"]
    assert "its properties are not those of an AMQP message" in failed["no properties"]
    assert "its type is too long" in failed["type"]
    assert "user_id" in failed["another's user"]


def _takes_16_mib_at_most(vhost: Vhost) -> bool:
    """Brokers before 4.0 take 128 MiB."""
    with vhost.api() as api:
        return int(api.get("/api/overview").json()["rabbitmq_version"].split(".")[0]) >= 4


def test_rows_that_wait_for_the_topology_say_why_and_are_published_in_order_when_it_is_mended(
    engine: Engine, url: str
) -> None:
    with Client(url) as client:
        client.delete_exchange(MESSAGES)
        add(engine, 0, 20)
        with relaying(url, engine):
            until(lambda: "RabbitMQ has no exchange" in _first_error(engine), what="the reason in the first row")
            assert client.ready(QUEUE) == 0
            declare_queue(url)
            until_empty(engine)
        # The exchange is there a moment before its bindings: what comes in between goes to review.
        assert list(dict.fromkeys([*numbers(client, UNROUTED), *numbers(client)])) == list(range(20))
    assert {row.error for row in listed(engine, OutboxState.PUBLISHED)} == {None}


def test_a_missing_right_to_the_exchange_fails_nothing(engine: Engine, url: str, vhost: Vhost) -> None:
    add(engine, 0, 20)
    with limited_user(vhost) as (limited, permit):
        permit(write="^$")
        with relaying(limited, engine), Client(url) as client:
            until(lambda: "does not permit this user to publish" in _first_error(engine), what="the reason")
            assert listed(engine, OutboxState.FAILED) == []
            permit(write="^ackline\\.messages$")
            until_empty(engine)
            assert list(dict.fromkeys(numbers(client))) == list(range(20))


def test_a_missing_right_to_a_topic_fails_its_messages_and_holds_up_nobody(
    engine: Engine, url: str, vhost: Vhost
) -> None:
    add(engine, 0, 3)
    put(engine, Entry("other", "test.other", Properties(message_id="other"), b"{}"))
    add(engine, 3, 6)
    with limited_user(vhost) as (limited, permit):
        permit(write=".*", topic="^test\\.recorded$")
        with relaying(limited, engine), Client(url) as client:
            until_empty(engine)
            assert sorted(set(numbers(client))) == list(range(6))
    (failed,) = listed(engine, OutboxState.FAILED)
    assert failed.message_id == "other"
    assert "access to topic 'test.other'" in str(failed.error)


def _first_error(engine: Engine) -> str:
    waiting = listed(engine, OutboxState.WAITING)
    return (waiting[0].error or "") if waiting else ""


@contextlib.contextmanager
def limited_user(vhost: Vhost) -> Iterator[tuple[str, Callable[..., None]]]:
    """The address of the vhost for a user of its own, and what gives that user its rights."""
    name = f"relay-{vhost.name}"
    with vhost.api() as api:
        api.put(f"/api/users/{name}", json={"password": "secret", "tags": ""}).raise_for_status()

        def permit(write: str, topic: str = ".*") -> None:
            rights = {"configure": "^$", "write": write, "read": "^$"}
            api.put(f"/api/permissions/{vhost.path}/{name}", json=rights).raise_for_status()
            topics = {"exchange": MESSAGES, "write": topic, "read": "^$"}
            api.put(f"/api/topic-permissions/{vhost.path}/{name}", json=topics).raise_for_status()

        try:
            parts = urlsplit(vhost.amqp_url)
            yield urlunsplit(parts._replace(netloc=f"{name}:secret@{parts.hostname}:{parts.port}")), permit
        finally:
            api.delete(f"/api/users/{name}").raise_for_status()


def test_what_is_added_while_the_broker_is_away_is_published_in_order_when_it_is_back(
    own_broker: Broker, tmp_path: Path
) -> None:
    engine = database.connect(f"sqlite:///{tmp_path / 'service.db'}")
    outbox.create_tables(engine)
    declare_queue(own_broker.amqp_url)
    with relaying(own_broker.amqp_url, engine):
        add(engine, 0, 10)
        until_empty(engine)
        own_broker.stop()
        add(engine, 10, 500)
        until(lambda: _first_error(engine), what="the reason in the first row")
        assert listed(engine, OutboxState.FAILED) == []
        own_broker.start()
        until_empty(engine)
    with Client(own_broker.amqp_url) as client:
        assert list(dict.fromkeys(numbers(client))) == list(range(500))
    engine.dispose()


def test_what_is_added_during_an_alarm_is_published_in_order_when_it_ends(own_broker: Broker, tmp_path: Path) -> None:
    engine = database.connect(f"sqlite:///{tmp_path / 'service.db'}")
    outbox.create_tables(engine)
    declare_queue(own_broker.amqp_url)
    with relaying(own_broker.amqp_url, engine):
        add(engine, 0, 10)
        until_empty(engine)
        rabbitmqctl(own_broker, "set_vm_memory_high_watermark", "0")
        add(engine, 10, 500)
        until(lambda: "RabbitMQ blocks publishing" in _first_error(engine), what="the alarm in the first row")
        rabbitmqctl(own_broker, "set_vm_memory_high_watermark", "0.6")
        until_empty(engine)
    with Client(own_broker.amqp_url) as client:
        assert list(dict.fromkeys(numbers(client))) == list(range(500))
    engine.dispose()


# --- cleaning up --------------------------------------------------------------------------------------------------


def test_what_is_finished_is_deleted_after_its_time_and_what_failed_is_kept(engine: Engine, url: str) -> None:
    add(engine, 0, 20)
    put(engine, Entry("spoiled", "test.recorded", Properties.from_wire(b""), b"{}"))
    (cancelled,) = add(engine, 20, 21, delay=3600)
    (scheduled,) = add(engine, 21, 22, delay=3600)
    with database.writing(engine) as connection:
        assert outbox.cancel(connection, cancelled)
    with relaying(url, engine, keep_seconds=0.0, keep_cancelled_seconds=0.0):
        until(lambda: _ids(engine) == {"spoiled", scheduled}, what="what is finished to be deleted")


def test_what_is_finished_is_kept_for_its_time(engine: Engine, url: str) -> None:
    old, *new = add(engine, 0, 20)
    with relaying(url, engine, keep_seconds=3600.0):
        until_empty(engine)
    with database.writing(engine) as connection:
        aged = sql_update(table).where(table.c.message_id == old)
        connection.execute(aged.values(finished_at=now() - timedelta(seconds=3601)))
    with relaying(url, engine, keep_seconds=3600.0):
        until(lambda: _ids(engine) == set(new), what="the old one to be deleted")


def _ids(engine: Engine) -> set[str]:
    with database.reading(engine) as connection:
        return set(connection.scalars(select(table.c.message_id)))


# --- one at a time ------------------------------------------------------------------------------------------------


def test_of_two_relays_that_start_at_once_one_publishes_and_the_other_takes_over(engine: Engine, url: str) -> None:
    with relaying(url, engine) as first, relaying(url, engine) as second, Client(url) as client:
        add(engine, 0, 1000)
        until_empty(engine)
        assert numbers(client) == list(range(1000)), "each once: only one publishes"
        active, standby = (first, second) if first._lease.term is not None else (second, first)
        assert standby._lease.term is None
        active.stop()
        until(lambda: standby._lease.term is not None, what="the standby to take over")
        add(engine, 1000, 1100)
        until_empty(engine)
        assert numbers(client) == list(range(1000, 1100))


def test_a_relay_that_stops_gives_its_lease_up(engine: Engine, url: str) -> None:
    with relaying(url, engine):
        until(lambda: _holders(engine) == 1, what="the lease")
    assert _holders(engine) == 0


def _holders(engine: Engine) -> int:
    with database.reading(engine) as connection:
        return connection.scalar(select(func.count()).select_from(leases)) or 0


def test_a_holder_that_cannot_renew_stops_before_another_can_take_over(engine: Engine) -> None:
    first, second = Lease(engine, "relay"), Lease(engine, "relay")
    both = []
    watching = threading.Event()

    def watch() -> None:
        while not watching.wait(0.002):
            if second.term is not None and first.term is not None:
                both.append(time.monotonic())

    watcher = threading.Thread(target=watch)
    watcher.start()
    first.start()
    try:
        before = first.term
        assert before is not None
        second.start()
        assert second.term is None
        with _lease_held_up(engine):
            until(lambda: first.term is None, what="the holder to notice that it could not renew")
        first.stop(30)  # as a process that is gone
        until(lambda: second.term is not None, what="the other to take over")
    finally:
        watching.set()
        watcher.join()
        first.stop(30)
        second.stop(30)
    assert both == []


@contextlib.contextmanager
def _lease_held_up(engine: Engine) -> Iterator[None]:
    """Nobody can write to the leases while the block runs."""
    with database.writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("LOCK TABLE ackline_leases IN SHARE MODE"))
        yield


def test_who_gets_the_lease_back_has_another_term(engine: Engine) -> None:
    first = Lease(engine, "relay")
    first.start()
    try:
        before = first.term
        with database.writing(engine) as connection:  # another took it meanwhile, and has gone
            connection.execute(sql_update(leases).values(holder="another", expires_at=now()))
        until(lambda: first.term not in (before, None), what="the lease to be taken again")
    finally:
        first.stop(30)
