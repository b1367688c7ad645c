"""Sending dead letters back: claimed, confirmed and answered by the worker; beside moving them by hand, one by one.

By hand is what a script does without Ackline: get one from a dead-letter queue, publish it, wait for the confirm, ack
it. It knows nothing of what becomes of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pika

from ackline.dlq.contracts import Contracts
from ackline.dlq.deadletter import DeadLetter
from ackline.dlq.desk import Desk
from ackline.dlq.rights import Actor, Role
from ackline.dlq.selection import Selection
from ackline.dlq.store import Store
from ackline.infra import database, wire
from ackline.infra.names import DEAD
from ackline.infra.properties import Properties
from ackline.infra.tables import ItemState, RedriveState
from ackline.infra.topology import ConsumerQueue, declare
from tests import broker as test_broker
from tests import postgresql
from tests.benchmarks.comparing import MEASURE_SECONDS, Bench, Contender, alternate, median, spread, table
from tests.benchmarks.consuming.meter import TYPE, placed
from tests.broker import settings_for
from tests.letters import read, worker_headers
from tests.roles import role

COUNT, BY_HAND = 100_000, 10_000
#: Rounds at most: one takes minutes.
ROUNDS = 3
RATE = "messages per second"
_CONSUMER, _BY_HAND = "bench", "bench-by-hand"
_CHUNK, _LOOK_SECONDS = 1000, 0.1
_WHO = Actor("bench", Role.ADMIN)


def run(bench: Bench) -> str:
    """A reviewer and a worker, a process each, on one database."""
    with postgresql.server(durable=True) as server:
        contenders = [
            Contender("one by one, with blocking confirms", lambda: _by_hand(bench)),
            Contender("redrive, SQLite", lambda: _redrive(bench, None)),
            Contender("redrive, PostgreSQL", lambda: _redrive(bench, server)),
        ]
        figures = alternate(contenders, min(bench.rounds, ROUNDS))
    by_hand = median(figures, contenders[0].name, RATE)
    return table(
        f"{bench.scaled(COUNT):,} dead letters sent back (medians of {min(bench.rounds, ROUNDS)})",
        ["", "messages/s", "least–most", "× one by one"],
        [
            [
                contender.name,
                f"{median(figures, contender.name, RATE):,.0f}",
                spread(figures, contender.name, RATE),
                f"{median(figures, contender.name, RATE) / by_hand:.1f}",
            ]
            for contender in contenders
        ],
    )


def _redrive(bench: Bench, server: str | None) -> Mapping[str, float]:
    count = bench.scaled(COUNT)
    with test_broker.fresh_vhost(bench.broker) as vhost, _database(bench, server) as url:
        folder = bench.folder / f"redrive-{time.monotonic_ns()}"
        base = settings_for(vhost.amqp_url, vhost.management_url, folder)
        settings = base.model_copy(
            update={"database_url": url, "app": ("tests.benchmarks.consuming.ackline_app",), "grace_seconds": 1.0}
        )
        declare(settings.broker, [ConsumerQueue(_CONSUMER, (TYPE,))])
        database.upgrade(url)
        engine = database.connect(url)
        store = Store(engine)
        for start in range(0, count, _CHUNK):
            store.ingest([_letter(number) for number in range(start, min(start + _CHUNK, count))])
        redrives = Desk(engine, settings, Contracts.of(settings)).redrives
        plan = redrives.plan(_WHO, Selection(), canary=False)
        with role(settings, "worker", "--consumers", _CONSUMER), role(settings, "reviewer"):
            began = time.perf_counter()
            redrives.start(_WHO, plan.id)
            while (found := redrives.get(_WHO, plan.id)).state == RedriveState.RUNNING:
                assert time.perf_counter() - began < MEASURE_SECONDS, found
                time.sleep(_LOOK_SECONDS)
            took = time.perf_counter() - began
        statement = redrives.statement(_WHO, plan.id)
        assert statement.adds_up, statement
        assert statement.items[ItemState.HANDLED] == count, statement
        engine.dispose()
    return {RATE: count / took}


def _by_hand(bench: Bench) -> Mapping[str, float]:
    count = bench.scaled(BY_HAND)
    with test_broker.fresh_vhost(bench.broker) as vhost:
        declare(vhost.amqp_url, [ConsumerQueue(_CONSUMER, (TYPE,)), ConsumerQueue(_BY_HAND, ())])
        connection = pika.BlockingConnection(pika.URLParameters(vhost.amqp_url))
        channel = connection.channel()
        properties = pika.BasicProperties(type=TYPE, delivery_mode=2)  # type: ignore[no-untyped-call]
        for number in range(count):
            channel.basic_publish("ackline.return", _BY_HAND, placed(number).model_dump_json().encode(), properties)
        channel.confirm_delivery()
        moved, began = 0, time.perf_counter()
        while moved < count:
            method, found, body = channel.basic_get(_BY_HAND)
            if method is None or body is None:
                assert time.perf_counter() - began < MEASURE_SECONDS
                continue
            channel.basic_publish("ackline.return", _CONSUMER, body, found, mandatory=True)
            channel.basic_ack(method.delivery_tag)
            moved += 1
        took = time.perf_counter() - began
        connection.close()
    return {RATE: count / took}


@contextmanager
def _database(bench: Bench, server: str | None) -> Iterator[str]:
    if server is None:
        yield f"sqlite:///{bench.folder / f'{time.monotonic_ns()}.db'}"
    else:
        with postgresql.fresh_database(server) as url:
            yield url


def _letter(number: int) -> DeadLetter:
    headers = worker_headers(consumer=_CONSUMER)
    properties = Properties(
        message_id=wire.uuid7(), type=TYPE, content_type="application/json", delivery_mode=2, headers=headers
    )
    return read(properties, placed(number).model_dump_json().encode(), queue=DEAD)
