"""Taking dead letters in: from a queue that is full into SQLite and PostgreSQL, committed before they are acked."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager

from sqlalchemy import Engine, func, select

from ackline.dlq.groups import recount
from ackline.dlq.search_values import register
from ackline.infra import database, wire
from ackline.infra.names import DEAD
from ackline.infra.properties import Properties
from ackline.infra.tables import dead_letters, fingerprints, search_values
from ackline.infra.topology import declare
from ackline.producer import Publisher
from tests import broker as test_broker
from tests import postgresql
from tests.benchmarks.comparing import MEASURE_SECONDS, Bench, Contender, alternate, median, spread, table
from tests.broker import settings_for
from tests.roles import role
from tests.waiting import until

COUNT, SIZE, KINDS = 50_000, 300, 20
PATHS = ("payload.order_id", "payload.customer.id")
RATE, CPU = "dead letters per second", "CPU µs per dead letter"
#: Confirms that filling leaves outstanding, and seconds between two looks at how far it is.
_WINDOW, _LOOK_SECONDS = 2000, 0.02
_TRACEBACK = """\
Traceback (most recent call last):
  File "/srv/lib/python3.11/site-packages/ackline/consumers/calling.py", line 52, in call
    handler(message)
  File "/srv/shop/billing.py", line 31, in charge
    rate = rates.of(order.country)
           ^^^^^^^^^^^^^^^^^^^^^^^
  File "/srv/shop/rates.py", line {kind}, in of_{kind}
    raise LookupError(f"no rate for order {{order_id}} of customer {{customer}}")
LookupError: no rate for order {order_id} of customer {customer}
"""


def run(bench: Bench) -> str:
    """A reviewer as a process of its own, which finds its queue full."""
    with postgresql.server(durable=True) as server:
        rows = {
            f"{name}{', two indexed paths' if paths else ''}": (url, paths)
            for name, url in (("SQLite", None), ("PostgreSQL", server))
            for paths in ((), PATHS)
        }
        contenders = [
            Contender(name, lambda what=what: _measure(bench, *what))  # type: ignore[misc]
            for name, what in rows.items()
        ]
        figures = alternate(contenders, bench.rounds)
    return table(
        f"Dead letters of {SIZE} bytes and {KINDS} kinds taken in, from queue to commit (medians of {bench.rounds})",
        ["", "dead letters/s", "least–most", "CPU µs each"],
        [
            [
                name,
                f"{median(figures, name, RATE):,.0f}",
                spread(figures, name, RATE),
                f"{median(figures, name, CPU):.0f}",
            ]
            for name in rows
        ],
    )


def _measure(bench: Bench, server: str | None, paths: tuple[str, ...]) -> Mapping[str, float]:
    count = bench.scaled(COUNT)
    with test_broker.fresh_vhost(bench.broker) as vhost, _database(bench, server) as url:
        settings = settings_for(vhost.amqp_url, vhost.management_url, bench.folder / f"data-{time.monotonic_ns()}")
        declare(settings.broker)
        with Publisher(settings.broker) as publisher:
            _fill(publisher, count)
        database.upgrade(url)
        engine = database.connect(url)
        register(engine, paths)
        more = {"ACKLINE_DATABASE_URL": url, "ACKLINE_SEARCH_PATHS": ",".join(paths)}
        with role(settings, "reviewer", **more) as reviewer:
            began, there, cpu = time.perf_counter(), _stored(engine), _cpu(reviewer.pid)
            while (stored := _stored(engine)) < count:
                assert time.perf_counter() - began < MEASURE_SECONDS
                time.sleep(_LOOK_SECONDS)
            took, cpu = time.perf_counter() - began, _cpu(reviewer.pid) - cpu
            with vhost.api() as api:
                until(lambda: _messages(api.get(f"/api/queues/{vhost.path}/{DEAD}").json()) == 0, what="all acked")
        with database.reading(engine) as connection:
            assert recount(connection) == []
            assert connection.scalar(select(func.count()).select_from(fingerprints)) == KINDS
            assert connection.scalar(select(func.count()).select_from(search_values)) == len(paths) * count
        engine.dispose()
    return {RATE: (stored - there) / took, CPU: 1e6 * cpu / (stored - there)}


@contextmanager
def _database(bench: Bench, server: str | None) -> Iterator[str]:
    if server is None:
        yield f"sqlite:///{bench.folder / f'{time.monotonic_ns()}.db'}"
    else:
        with postgresql.fresh_database(server) as url:
            yield url


def _fill(publisher: Publisher, count: int) -> None:
    """Dead letters as workers publish them: after three attempts, with a traceback."""
    waiting: deque[Future[None]] = deque()
    for number in range(count):
        order_id, customer, kind = f"A-{number}", number % 997, number % KINDS
        said = f"no rate for order {order_id} of customer {customer}"
        history = [
            {"attempt": attempt, "at": f"2026-01-02T03:00:0{attempt}.000Z", "worker": "host:1"}
            | {"error": "LookupError", "message": said}
            for attempt in (1, 2, 3)
        ]
        headers = {
            wire.CONSUMER: "billing",
            wire.ATTEMPT: 3,
            wire.FIRST_FAILED_AT: "2026-01-02T03:00:01.000Z",
            wire.HISTORY: json.dumps(history),
            wire.REASON: f"failed 3 of 3 attempts: LookupError: {said}",
            wire.TRACEBACK: _TRACEBACK.format(kind=kind, order_id=order_id, customer=customer),
            wire.ORIGINAL: {"exchange": "ackline.messages", "routing_key": "order.placed"},
        }
        properties = Properties(
            message_id=wire.uuid7(),
            type="order.placed",
            content_type="application/json",
            delivery_mode=2,
            headers=headers,
        )
        payload: dict[str, object] = {"order_id": order_id, "customer": {"id": customer}, "note": ""}
        payload["note"] = "x" * (SIZE - len(json.dumps(payload)))
        waiting.append(publisher.send(DEAD, "billing", properties, json.dumps(payload).encode(), timeout=60))
        if len(waiting) > _WINDOW:
            waiting.popleft().result()
    for future in waiting:
        future.result()


def _stored(engine: Engine) -> int:
    with database.reading(engine) as connection:
        return connection.scalar(select(func.max(dead_letters.c.id))) or 0


def _messages(queue: dict[str, int]) -> int:
    return queue.get("messages", -1)


def _cpu(pid: int) -> float:
    """Seconds of processor time that a process has used (Linux: clock_getcpuclockid(3))."""
    return time.clock_gettime(~pid << 3 | 2)
