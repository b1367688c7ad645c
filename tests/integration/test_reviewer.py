"""The reviewer against a real broker: what is dead is in the database, once, and what is redriven is accounted for."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika
import psycopg
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from sqlalchemy import make_url

from ackline.dlq import reviewer as reviewer_module
from ackline.dlq.reviewer import Reviewer
from ackline.dlq.view import Summary
from ackline.infra import database, wire
from ackline.infra.link import BrokerRefused
from ackline.infra.names import DEAD, MESSAGES, OUTCOMES, UNROUTED
from ackline.infra.properties import Properties
from ackline.infra.settings import Settings
from ackline.infra.tables import ItemState
from ackline.infra.topology import ConsumerQueue, declare
from ackline.infra.wire import Trail
from ackline.producer import Publisher
from tests.broker import Vhost
from tests.connections import close, connections
from tests.hand_framed import HEADERS, TIMESTAMP, HandFramedClient, deep_table, long
from tests.letters import BODY, worker_headers, worker_properties
from tests.review import Review
from tests.roles import role
from tests.sending import items_of, request_redrive, take
from tests.waiting import until

BILLING = ConsumerQueue("billing", ("order.placed",))
#: What a reviewer gets to do before it is killed; another slice when the kill came too late to show anything.
SLICE, MOST_SLICES = 3_000, 10


@contextmanager
def reviewing(settings: Settings) -> Iterator[Reviewer]:
    """A reviewer that works while the block runs, and then ends in order."""
    database.upgrade(settings.database)
    engine = database.connect(settings.database)
    running = Reviewer(settings.broker, engine, grace_seconds=5)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            running.run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield running
    finally:
        running.stop()
        thread.join(90)
        engine.dispose()
        assert not thread.is_alive()
        assert failures == []


@pytest.fixture
def store(ackline_settings: Settings) -> Iterator[Review]:
    """The store of this test's SQLite database."""
    yield from _store(ackline_settings.database)


def _store(url: str) -> Iterator[Review]:
    database.upgrade(url)
    engine = database.connect(url)
    yield Review(engine)
    engine.dispose()


@pytest.fixture
def publisher(ackline_settings: Settings) -> Iterator[Publisher]:
    """A publisher to a vhost that has the topology with the consumer `billing`."""
    declare(ackline_settings.broker, [BILLING])
    with Publisher.connect(ackline_settings, timeout=60) as connected:
        yield connected


@pytest.fixture
def channel(ackline_settings: Settings) -> Iterator[BlockingChannel]:
    """A client that has nothing of Ackline."""
    parameters = pika.URLParameters(ackline_settings.broker)
    parameters.heartbeat = 0  # nobody beats while the test waits for something else
    connection = pika.BlockingConnection(parameters)
    yield connection.channel()
    if connection.is_open:
        connection.close()


def die(publisher: Publisher, *message_ids: str, body: bytes = BODY, **headers: str) -> None:
    """Publish dead letters as a worker does, and wait for the confirms."""
    futures = [
        publisher.send(DEAD, "billing", worker_properties(message_id, **headers), body, timeout=90)
        for message_id in message_ids
    ]
    for future in futures:
        future.result(90)


def rows(store: Review, count: int) -> list[Summary]:
    """All dead letters, as soon as there are *count*."""
    return until(
        lambda: found if len(found := store.page(limit=100_000)) >= count else None,
        what=f"{count} dead letters",
    )


def deliver(channel: BlockingChannel, queue: str) -> tuple[int, Trail, bytes]:
    """The next delivery of *queue*: its tag, what its headers tell, its body. Not acked."""

    def get() -> tuple[Any, Any, bytes] | None:
        method, properties, body = channel.basic_get(queue)
        return None if method is None else (method, properties, body or b"")

    method, properties, body = until(get, what=f"a message in {queue}")
    own = Properties.from_wire(b"".join(properties.encode()))
    return method.delivery_tag, wire.trail(own, method.exchange, method.routing_key), body


def succeed(publisher: Publisher, trail: Trail) -> None:
    """Report success as a worker does."""
    event = {
        "event": "handled",
        "redrive": trail.redrive,
        "consumer": trail.consumer,
        "message_id": "m-1",
        "attempt": 1,
    }
    event |= {"at": wire.now().isoformat(), "worker": "host:2"}
    publisher.send(OUTCOMES, f"handled.{trail.consumer}", Properties(), json.dumps([event]).encode()).result(90)


def depth(vhost: Vhost, queue: str) -> int:
    """Messages of *queue*, ready or unacked, as the broker says at last."""
    with vhost.api() as api:
        return int(api.get(f"/api/queues/{vhost.path}/{queue}").json().get("messages", -1))


# --- taking dead letters ------------------------------------------------------------------------------------------


def test_what_a_worker_gives_up_is_in_review(ackline_settings: Settings, publisher: Publisher, store: Review) -> None:
    with reviewing(ackline_settings):
        die(publisher, "m-1")
        (row,) = rows(store, 1)
    assert (row.consumer, row.source, row.attempts, row.error_message) == ("billing", "worker", 2, "no such user")


def test_what_crashes_a_worker_again_and_again_is_in_review(
    ackline_settings: Settings, publisher: Publisher, store: Review, channel: BlockingChannel
) -> None:
    publisher.send(MESSAGES, "order.placed", Properties(message_id="m-1", headers={"x-death": "lies"}), BODY).result(90)
    for _ in range(21):
        tag, _, _ = deliver(channel, "billing")
        channel.basic_reject(tag, requeue=True)
    with reviewing(ackline_settings):
        (row,) = rows(store, 1)
    assert (row.consumer, row.source, row.type) == ("billing", "broker", "order.placed")
    assert "crashed or lost its worker" in row.reason


def test_what_nobody_takes_and_what_returns_to_nobody_is_in_review(
    ackline_settings: Settings, publisher: Publisher, store: Review
) -> None:
    publisher.send(MESSAGES, "nobody.knows", Properties(message_id="m-1"), BODY).result(90)
    publisher.send(MESSAGES, "nobody.knows", Properties(message_id="m-2", expiration="1"), BODY).result(90)
    gone = Properties(message_id="m-3", headers=worker_headers("ghost"))
    publisher.send("ackline.retry.1s", "ghost", gone, BODY).result(90)
    with reviewing(ackline_settings):
        found = {row.message_id: row for row in rows(store, 3)}
    assert found["m-1"].reason == "No consumer takes messages of type 'nobody.knows'."
    assert found["m-2"].reason.startswith("No consumer takes messages of type 'nobody.knows'.")
    assert (found["m-3"].consumer, found["m-3"].source) == ("ghost", "unrouted")
    assert "is gone" in found["m-3"].reason


def test_headers_that_no_client_library_can_read_are_in_review(
    ackline_settings: Settings, publisher: Publisher, store: Review
) -> None:
    with HandFramedClient(ackline_settings.broker) as client:
        client.publish(b"ackline.messages", b"nobody.knows", TIMESTAMP, (10**13).to_bytes(8), b"\x00\xff")
        client.publish(b"ackline.messages", b"no\xff\x00body", HEADERS, long(deep_table(3_000)), b"deep")
    with reviewing(ackline_settings):
        found = {store.payload(row.id): row.type for row in rows(store, 2)}
    assert found == {b"\x00\xff": "nobody.knows", b"deep": "no\\xff\\x00body"}


def test_large_bodies_and_large_headers_are_in_review(
    ackline_settings: Settings, publisher: Publisher, store: Review
) -> None:
    body = bytes(range(256)) * 20_000
    with reviewing(ackline_settings):
        die(publisher, "m-1", body=body)
        die(publisher, "m-2", padding="x" * 100_000)
        found = {row.message_id: row for row in rows(store, 2)}
        assert store.payload(found["m-1"].id) == body
        assert store.get(found["m-2"].id).properties["headers"]["padding"] == "x" * 100_000


def test_a_reviewer_killed_in_the_middle_leaves_exactly_one_row_each(
    ackline_settings: Settings, publisher: Publisher, store: Review, vhost: Vhost
) -> None:
    with role(ackline_settings, "reviewer") as reviewer:
        for slice_ in range(MOST_SLICES):
            sent = (slice_ + 1) * SLICE
            ids = range(sent - SLICE, sent)
            futures = [publisher.send(DEAD, "billing", worker_properties(f"m-{n}"), BODY, timeout=90) for n in ids]
            rows(store, sent - SLICE + 1)
            reviewer.kill()
            stored = len(store.page(limit=100_000))
            assert all(future.exception(90) is None for future in futures)
            reviewer.start()
            found = rows(store, sent)
            if stored < sent:
                break
        else:
            pytest.fail("the kills came after the work; nothing was shown")
        assert reviewer.stop() == 0
    assert len(found) == len({row.message_id for row in found}) == len(store.page(limit=100_000)) == sent
    until(lambda: depth(vhost, DEAD) == 0, what="an empty queue")


def test_a_reviewer_killed_between_delivery_and_commit_loses_nothing(
    ackline_settings: Settings, publisher: Publisher, store: Review
) -> None:
    with role(ackline_settings, "reviewer") as reviewer, _locked(ackline_settings):
        die(publisher, *[f"m-{n}" for n in range(300)])
        until(lambda: "taking dead letters waits" in reviewer.log.read_text(), what="the reviewer to hold a batch")
        reviewer.kill()
    with role(ackline_settings, "reviewer"):
        rows(store, 300)
    assert {row.duplicates for row in store.page(limit=5000)} == {0}


@contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    """Keep every other writer from the SQLite database while the block runs."""
    path = make_url(settings.database).database
    assert path is not None
    holder = sqlite3.connect(path, isolation_level=None, timeout=60)
    holder.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        holder.execute("ROLLBACK")
        holder.close()


def test_a_row_that_the_database_refuses_holds_nobody_up_and_is_not_lost(
    ackline_settings: Settings, publisher: Publisher, store: Review, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reviewer_module, "GIVE_BACK_SECONDS", 0.2)
    path = make_url(ackline_settings.database).database
    assert path is not None
    refusing = "SELECT RAISE(ABORT, 'not this one') WHERE NEW.message_id LIKE 'bad-%'"
    with sqlite3.connect(path, timeout=60) as connection:
        connection.execute(f"CREATE TRIGGER refuses BEFORE INSERT ON dead_letters BEGIN {refusing}; END")
    with reviewing(ackline_settings):
        die(publisher, "bad-1", "bad-2")
        die(publisher, "m-1", "bad-3", "m-2")
        rows(store, 2)
        die(publisher, "m-3")
        assert {row.message_id for row in rows(store, 3)} == {"m-1", "m-2", "m-3"}
        with sqlite3.connect(path, timeout=60) as connection:
            connection.execute("DROP TRIGGER refuses")
        assert len(rows(store, 6)) == 6
    connection.close()
    assert {row.duplicates for row in store.page()} == {0}


# --- the database away --------------------------------------------------------------------------------------------


def test_while_sqlite_is_locked_the_broker_keeps_everything(
    ackline_settings: Settings, publisher: Publisher, store: Review, caplog: pytest.LogCaptureFixture
) -> None:
    with reviewing(ackline_settings):
        die(publisher, "m-1")
        rows(store, 1)
        with _locked(ackline_settings):
            die(publisher, *[f"m-{n}" for n in range(2, 30)])
            until(lambda: "taking dead letters waits" in caplog.text, what="the reviewer to notice")
            assert len(store.page()) == 1
        rows(store, 29)
    assert {row.duplicates for row in store.page(limit=5000)} == {0}
    assert caplog.text.count("taking dead letters waits: The database") == 1


def test_while_postgresql_is_away_the_broker_keeps_everything(
    ackline_settings: Settings, publisher: Publisher, postgresql_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ackline_settings.model_copy(update={"database_url": postgresql_url})
    caplog.set_level(logging.INFO)
    with contextmanager(_store)(postgresql_url) as store:
        with reviewing(settings):
            die(publisher, "m-1")
            rows(store, 1)
            _accept_connections(postgresql_url, False)
            die(publisher, *[f"m-{n}" for n in range(2, 300)])
            until(lambda: "taking dead letters waits" in caplog.text, what="the reviewer to notice")
            _accept_connections(postgresql_url, True)
            rows(store, 299)
        assert {row.duplicates for row in store.page(limit=5000)} == {0}
    assert caplog.text.count("taking dead letters waits: PostgreSQL at") == 1
    assert "taking dead letters goes on" in caplog.text


def _accept_connections(url: str, yes: bool) -> None:
    """Have the database end its connections and refuse new ones, or take them again."""
    parsed = make_url(url)
    server = parsed.set(drivername="postgresql", database="postgres").render_as_string(hide_password=False)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {parsed.database} ALLOW_CONNECTIONS {str(yes).lower()}".encode())
        ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        connection.execute(ending, [parsed.database])


# --- the broker away ----------------------------------------------------------------------------------------------


def test_a_lost_connection_loses_and_doubles_nothing(
    ackline_settings: Settings, publisher: Publisher, store: Review, vhost: Vhost
) -> None:
    with reviewing(ackline_settings):
        die(publisher, "m-1")
        rows(store, 1)
        (name,) = until(lambda: connections(vhost, "reviewer "), what="the reviewer's connection to be listed")
        close(vhost, [name])
        die(publisher, *[f"m-{n}" for n in range(2, 200)])
        found = rows(store, 199)
    assert len(found) == 199
    until(lambda: depth(vhost, DEAD) == 0, what="an empty queue")


def test_a_connection_lost_while_the_database_is_away_loses_and_doubles_nothing(
    ackline_settings: Settings, publisher: Publisher, store: Review, vhost: Vhost, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with reviewing(ackline_settings):
        (name,) = until(lambda: connections(vhost, "reviewer "), what="the reviewer's connection to be listed")
        with _locked(ackline_settings):
            die(publisher, *[f"m-{n}" for n in range(100)])
            until(lambda: "taking dead letters waits" in caplog.text, what="the reviewer to hold a batch")
            close(vhost, [name])
            until(lambda: caplog.text.count("consuming ackline.dead") >= 2, what="the reviewer to consume again")
        rows(store, 100)
    assert {row.duplicates for row in store.page(limit=5000)} == {0}
    until(lambda: depth(vhost, DEAD) == 0, what="an empty queue")


@pytest.mark.parametrize("queue", [DEAD, UNROUTED])
def test_a_queue_that_is_deleted_is_there_again(
    ackline_settings: Settings, publisher: Publisher, store: Review, channel: BlockingChannel, queue: str
) -> None:
    with reviewing(ackline_settings):
        die(publisher, "m-1")
        rows(store, 1)
        channel.queue_delete(queue)
        # What is published while there is no queue is returned to the publisher, so it tries until there is one.
        until(lambda: _is_taken(publisher, queue), what="the queue to be there again")
        assert len(rows(store, 2)) == 2


def _is_taken(publisher: Publisher, queue: str) -> bool:
    exchange, key = (DEAD, "billing") if queue == DEAD else (MESSAGES, "nobody.knows")
    return publisher.send(exchange, key, worker_properties("m-2"), BODY).exception(90) is None


def test_a_wrong_password_ends_the_reviewer_with_a_sentence(ackline_settings: Settings) -> None:
    database.upgrade(ackline_settings.database)
    engine = database.connect(ackline_settings.database)
    host = ackline_settings.broker.rpartition("@")[2]
    try:
        with pytest.raises(BrokerRefused, match="wrong user or password"):
            Reviewer(f"amqp://nobody:wrong@{host}", engine).run()
    finally:
        engine.dispose()


def test_a_reviewer_that_is_asked_to_stop_has_stored_or_given_back_everything(
    ackline_settings: Settings, publisher: Publisher, store: Review, vhost: Vhost
) -> None:
    with role(ackline_settings, "reviewer") as reviewer:
        ids = range(3000)
        futures = [publisher.send(DEAD, "billing", worker_properties(f"m-{n}"), BODY, timeout=90) for n in ids]
        rows(store, 1)
        assert reviewer.stop() == 0
        assert all(future.exception(90) is None for future in futures)
    stored = len(store.page(limit=5000))
    until(lambda: depth(vhost, DEAD) == 3000 - stored, what=f"the other {3000 - stored} in the queue")
    with reviewing(ackline_settings):
        rows(store, 3000)
    assert {row.duplicates for row in store.page(limit=5000)} == {0}


# --- redrives -----------------------------------------------------------------------------------------------------


def test_a_redriven_message_that_a_worker_handles_is_handled(
    ackline_settings: Settings, publisher: Publisher, store: Review, channel: BlockingChannel
) -> None:
    with reviewing(ackline_settings):
        die(publisher, "m-1")
        (row,) = rows(store, 1)
        item_id = request_redrive(store, [row.id], "ada").items[row.id]
        tag, trail, body = deliver(channel, "billing")
        assert (trail.consumer, trail.attempt, trail.redrive, trail.history) == ("billing", 1, item_id, ())
        assert (trail.exchange, trail.routing_key, body) == (MESSAGES, "order.placed", BODY)
        until(lambda: items_of(store, [item_id])[0].state == ItemState.CONFIRMED, what="the confirm")
        assert store.get(row.id).state == "redriving", "handled is what the worker says, not that it was sent"
        succeed(publisher, trail)
        channel.basic_ack(tag)
        until(lambda: store.get(row.id).state == "handled", what="the outcome")


def test_a_redriven_message_that_fails_again_is_in_review_again(
    ackline_settings: Settings, publisher: Publisher, store: Review, channel: BlockingChannel
) -> None:
    with reviewing(ackline_settings):
        die(publisher, "m-1")
        (row,) = rows(store, 1)
        request_redrive(store, [row.id], "ada")
        _, trail, _ = deliver(channel, "billing")
        assert trail.redrive is not None
        die(publisher, "m-1", redrive=trail.redrive)
        until(lambda: store.get(row.id).state == "in review", what="the dead letter to come back")
    found = store.get(row.id)
    assert (found.redrive_count, found.duplicates, len(store.page())) == (1, 0, 1)


def test_a_redriven_message_whose_consumer_is_gone_is_in_review_again(
    ackline_settings: Settings, publisher: Publisher, store: Review
) -> None:
    with reviewing(ackline_settings):
        die(publisher, "m-1", consumer="ghost")
        (row,) = rows(store, 1)
        request_redrive(store, [row.id], "ada")
        until(lambda: store.get(row.id).redrive_count == 1, what="the dead letter to come back")
    found = store.get(row.id)
    assert (found.state, found.reason) == ("in review", "The consumer 'ghost' is gone: its queue does not exist.")
    assert len(store.page()) == 1


def test_a_message_whose_headers_leave_no_room_is_in_review_again(
    ackline_settings: Settings, publisher: Publisher, store: Review, channel: BlockingChannel
) -> None:
    full = Properties(message_id="m-1", headers={"padding": "x" * 131_000})
    publisher.send(MESSAGES, "order.placed", full, BODY).result(90)
    tag, _, _ = deliver(channel, "billing")
    channel.basic_reject(tag, requeue=False)
    with reviewing(ackline_settings):
        (row,) = rows(store, 1)
        request_redrive(store, [row.id], "ada")
        found = until(lambda: one if (one := store.get(row.id)).send_error else None, what="the refusal")
    assert found.state == "in review"
    assert "could not be sent: Its headers do not fit" in (found.send_error or "")


def test_what_was_issued_before_a_crash_is_published_after_it(
    ackline_settings: Settings, publisher: Publisher, store: Review, channel: BlockingChannel
) -> None:
    with reviewing(ackline_settings):
        die(publisher, "m-1")
        (row,) = rows(store, 1)
    item_id = request_redrive(store, [row.id], "ada").items[row.id]
    assert len(take(store, 10, seconds=1)) == 1  # and here that reviewer died
    with reviewing(ackline_settings):
        _, trail, _ = deliver(channel, "billing")
        assert trail.redrive == item_id
        until(lambda: items_of(store, [item_id])[0].state == ItemState.CONFIRMED, what="the confirm")


def test_a_reviewer_killed_in_the_middle_of_redrives_sends_every_one(
    ackline_settings: Settings, publisher: Publisher, store: Review, vhost: Vhost, channel: BlockingChannel
) -> None:
    asked: set[str] = set()
    with role(ackline_settings, "reviewer") as reviewer:
        for slice_ in range(MOST_SLICES):
            die(publisher, *[f"m-{slice_}-{n}" for n in range(SLICE)])
            found = rows(store, (slice_ + 1) * SLICE)[:SLICE]
            items = list(request_redrive(store, [row.id for row in found], "ada").items.values())
            until(lambda: _confirmed(store, items), what="the first redrives")  # noqa: B023
            reviewer.kill()
            confirmed = _confirmed(store, items)
            reviewer.start()
            until(lambda: _confirmed(store, items) == SLICE, what="every confirm")  # noqa: B023
            asked.update(items)
            if confirmed < SLICE:
                break
        else:
            pytest.fail("the kills came after the work; nothing was shown")
        sent: set[str | None] = set()
        while len(sent) < len(asked):
            _, trail, _ = deliver(channel, "billing")
            sent.add(trail.redrive)
        assert sent == asked
    assert store.counts() == {"in review": 0, "redriving": len(asked), "handled": 0, "discarded": 0}


def _confirmed(store: Review, items: list[str]) -> int:
    return sum(item.state == ItemState.CONFIRMED for item in items_of(store, items))


def test_an_outcome_that_no_worker_writes_is_counted_and_holds_nobody_up(
    ackline_settings: Settings, publisher: Publisher, store: Review, channel: BlockingChannel, vhost: Vhost
) -> None:
    with reviewing(ackline_settings) as reviewer:
        for garbage in (b"", b"\xff", b"[]", b"{}", b'[{"event": "handled", "redrive": 5}]', b"[" * 100_000):
            publisher.send(OUTCOMES, "handled.x", Properties(), garbage).result(90)
        nobody = {"event": "handled", "redrive": "no such item", "consumer": "billing", "message_id": "m"}
        publisher.send(OUTCOMES, "handled.x", Properties(), json.dumps([nobody]).encode()).result(90)
        until(lambda: reviewer.strange_outcomes == 7, what="seven strange outcomes")
        die(publisher, "m-1")
        rows(store, 1)
    until(lambda: depth(vhost, OUTCOMES) == 0, what="an empty queue")
