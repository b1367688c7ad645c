"""The memory of a worker while a million messages wait for it, and while it handles them."""

from __future__ import annotations

from tests import broker as test_broker
from tests.benchmarks.comparing import Bench, table
from tests.benchmarks.consuming.meter import placed
from tests.benchmarks.worker_processes import ackline_worker, fill


def run(bench: Bench) -> str:
    """One run; the rows are looks at the same process. All messages wait when it starts."""
    count = bench.scaled(1_000_000)
    with test_broker.fresh_vhost(bench.broker) as vhost:
        fill(vhost.amqp_url, "bench", map(placed, range(count)))
        looks = ackline_worker(bench, vhost.amqp_url, "bench", app="memory_app").result(bench, count)
    first = looks[0]
    return table(
        f"Memory of a worker that {count:,} messages wait for",
        ["handled", "waiting", "seconds", "RSS"],
        [
            [
                f"{look['handled']:,}",
                f"{count - look['handled']:,}",
                f"{look['at'] - first['at']:.0f}",
                f"{look['rss'] / 1e6:.1f} MB",
            ]
            for look in looks
        ],
    )
