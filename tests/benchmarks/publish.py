"""`submit` and `apublish` beside a C client, FastStream and Celery: 1 KB to a quorum queue, with confirms."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from ackline.infra.names import MESSAGES
from ackline.infra.running_broker import credentials
from ackline.infra.topology import ConsumerQueue, declare
from tests import broker as test_broker
from tests.benchmarks.comparing import Bench, Contender, alternate, compiled, figures_of, median, spread, table
from tests.benchmarks.publish_contenders import SIZE, TYPE
from tests.broker import Vhost

#: Confirms that the C client leaves outstanding.
WINDOW = 1000
RATE, CPU = "messages per second", "CPU µs per message"


def run(bench: Bench) -> str:
    """Needs gcc and librabbitmq (Debian: librabbitmq-dev), FastStream and Celery: the extra `bench`."""
    program = compiled("publish_confirms", bench.folder)
    rows: list[tuple[str, int, str | Path]] = [
        ("C client (rabbitmq-c), 1,000 confirms in flight", 100_000, program),
        ("`submit`, one thread", 100_000, "submit-1"),
        ("`submit`, eight threads", 100_000, "submit-8"),
        ("`apublish`, 500 tasks", 50_000, "apublish"),
        ("FastStream `publish`, 500 tasks", 20_000, "faststream"),
        ("Celery `delay` with confirms", 5_000, "celery"),
    ]
    contenders = [Contender(name, _measure(bench, what, bench.scaled(count))) for name, count, what in rows]
    figures = alternate(contenders, bench.rounds)
    c_client, *_, faststream, celery = (median(figures, name, RATE) for name, _, _ in rows)
    return table(
        f"Publishing {SIZE} bytes to a quorum queue, with confirms (medians of {bench.rounds})",
        ["", "messages/s", "least–most", "CPU µs each", "× C", "× FastStream", "× Celery"],
        [
            [
                name,
                f"{(rate := median(figures, name, RATE)):,.0f}",
                spread(figures, name, RATE),
                f"{median(figures, name, CPU):.0f}",
                *(f"{rate / other:.2f}" for other in (c_client, faststream, celery)),
            ]
            for name, _, _ in rows
        ],
    )


def _measure(bench: Bench, what: str | Path, count: int) -> Callable[[], Mapping[str, float]]:
    def measure() -> Mapping[str, float]:
        # A vhost for each measurement: what an earlier one left in a queue costs the next nothing.
        with test_broker.fresh_vhost(bench.broker) as vhost:
            declare(vhost.amqp_url, [ConsumerQueue("bench", (TYPE,))])
            return figures_of(_command(what, vhost, count))

    return measure


def _command(what: str | Path, vhost: Vhost, count: int) -> list[str]:
    if isinstance(what, str):
        return [sys.executable, "-m", "tests.benchmarks.publish_contenders", what, vhost.amqp_url, str(count)]
    parts = urlsplit(vhost.amqp_url)
    where = [str(parts.hostname), str(parts.port or 5672), *credentials(vhost.amqp_url), vhost.name]
    return [str(what), *where, MESSAGES, TYPE, str(count), str(SIZE), str(WINDOW)]
