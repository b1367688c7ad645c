"""Writing messages into PostgreSQL, whose fsync is on as it is for data that matters: one by one, and in batches."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

import psycopg

from tests import broker as test_broker
from tests import postgresql
from tests.benchmarks.comparing import Bench, Contender, alternate, median, spread, table
from tests.benchmarks.consuming.database_app import SIZE, TABLE
from tests.benchmarks.consuming.meter import placed
from tests.benchmarks.worker_processes import ackline_worker, fill

RATE, CPU = "messages per second", "CPU µs per message"


def run(bench: Bench) -> str:
    """Rows of handlers; each writes into a table of its own database."""
    one, batch = ("--concurrency", "1"), ("--prefetch", str(2 * SIZE))
    rows: dict[str, tuple[str, int, tuple[str, ...]]] = {
        "one for each, one at a time: `BEGIN`, `INSERT`, `COMMIT`": ("bench-transaction", 5_000, one),
        "one for each, one at a time: `INSERT`, autocommit": ("bench-insert", 5_000, one),
        # PostgreSQL writes several commits to the disk at once.
        "one for each, eight at a time: `BEGIN`, `INSERT`, `COMMIT`": ("bench-transaction", 10_000, ()),
        "one for each, eight at a time: `INSERT`, autocommit": ("bench-insert", 10_000, ()),
        f"batches of {SIZE}, `executemany`": ("bench-executemany", 50_000, batch),
        f"batches of {SIZE}, `COPY`": ("bench-copy", 100_000, batch),
    }
    with postgresql.server(durable=True) as server:
        contenders = [
            Contender(name, lambda what=what: _measure(bench, server, *what))  # type: ignore[misc]
            for name, what in rows.items()
        ]
        figures = alternate(contenders, bench.rounds)
    rates = {name: median(figures, name, RATE) for name in rows}
    alone, _, together, *_ = rates.values()
    return table(
        f"Handlers that write into PostgreSQL (medians of {bench.rounds})",
        ["", "messages/s", "least–most", "CPU µs each", "× one at a time", "× eight at a time"],
        [
            [
                name,
                f"{rate:,.0f}",
                spread(figures, name, RATE),
                f"{median(figures, name, CPU):.0f}",
                f"{rate / alone:.1f}",
                f"{rate / together:.1f}",
            ]
            for name, rate in rates.items()
        ],
    )


def _measure(bench: Bench, server: str, consumer: str, most: int, options: tuple[str, ...]) -> Mapping[str, float]:
    count = bench.scaled(most)
    with test_broker.fresh_vhost(bench.broker) as vhost, postgresql.fresh_database(server) as url:
        plain = urlunsplit(urlsplit(url)._replace(scheme="postgresql"))
        with psycopg.connect(plain) as connection:
            connection.execute(TABLE)
        fill(vhost.amqp_url, consumer, map(placed, range(count)))
        program = ackline_worker(bench, vhost.amqp_url, consumer, *options, app="database_app")
        program.environment["BENCH_DATABASE"] = plain
        figures = program.figures(bench, count)
        with psycopg.connect(plain) as connection:
            stored = connection.execute("SELECT count(*) FROM orders").fetchone()
        assert stored == (count,), stored
        return figures
