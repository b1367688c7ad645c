"""Jobs beside the same tasks in plain Celery with equal guarantees: publishing, running, and the time until one runs.

Equal: a quorum queue, late acks, failures that are not acked, JSON, mandatory publishes with confirms, no results. Each
has two processes, and runs a no-op on arguments of 300 bytes. Plain Celery has the prefetch that is quickest here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from tests import broker as test_broker
from tests.benchmarks.comparing import (
    Bench,
    Contender,
    alternate,
    figures_of,
    median,
    spread,
    table,
)
from tests.benchmarks.worker_processes import Program, ackline_program, program

_APPS = "tests.benchmarks.consuming"
_PROCESSES = "2"
#: Unacked messages for each process of plain Celery, which are its default of 4 and more.
_PREFETCH = ("4", "25", "100")
_PUBLISHED, _RUN, _CPU, _UNTIL = "published per second", "messages per second", "CPU µs per message", "ms to its run"


def run(bench: Bench) -> str:
    """One table."""
    count, one_by_one = bench.scaled(8_000), bench.scaled(500)
    tried = {prefetch: _plain(bench, prefetch, max(count // 10, 1), 1)[_RUN] for prefetch in _PREFETCH}
    for prefetch, rate in tried.items():
        print(f"plain Celery, prefetch {prefetch}: {rate:,.0f}", file=sys.stderr)
    best = max(tried, key=tried.__getitem__)
    ours, plain = "Ackline", f"plain Celery, prefetch {best}"
    contenders = [
        Contender(ours, lambda: _ackline(bench, count, one_by_one)),
        Contender(plain, lambda: _plain(bench, best, count, one_by_one)),
    ]
    figures = alternate(contenders, bench.rounds)
    return table(
        f"Jobs of two processes, a no-op (medians of {bench.rounds})",
        ["", "delay/s", "least–most", "jobs/s", "least–most", "CPU µs each", "ms until it runs", "99 %"],
        [
            [
                name,
                f"{median(figures, name, _PUBLISHED):,.0f}",
                spread(figures, name, _PUBLISHED),
                f"{median(figures, name, _RUN):,.0f}",
                spread(figures, name, _RUN),
                f"{median(figures, name, _CPU):.0f}",
                f"{median(figures, name, _UNTIL):.2f}",
                f"{median(figures, name, '99 %'):.2f}",
            ]
            for name in figures
        ]
        + [
            [
                "Ackline's of Celery's",
                f"{median(figures, ours, _PUBLISHED) / median(figures, plain, _PUBLISHED):.0%}",
                "",
                f"{median(figures, ours, _RUN) / median(figures, plain, _RUN):.0%}",
                "",
                f"{median(figures, ours, _CPU) / median(figures, plain, _CPU):.0%}",
                f"{median(figures, ours, _UNTIL) / median(figures, plain, _UNTIL):.0%}",
                "",
            ]
        ],
    )


def _ackline(bench: Bench, count: int, one_by_one: int) -> Mapping[str, float]:
    with test_broker.fresh_vhost(bench.broker) as vhost:
        worker = ackline_program(bench, vhost.amqp_url, "jobs_app", "jobs", "--concurrency", _PROCESSES)
        return _measure(bench, "jobs_app", worker, count, one_by_one)


def _plain(bench: Bench, prefetch: str, count: int, one_by_one: int) -> Mapping[str, float]:
    with test_broker.fresh_vhost(bench.broker) as vhost:
        app = "plain_jobs_app"
        command = [sys.executable, "-m", "celery", "-A", f"{_APPS}.{app}", "worker", "-c", _PROCESSES]
        command += ["--loglevel", "WARNING", "--without-gossip", "--without-mingle"]
        worker = program(command, BENCH_URL=vhost.amqp_url, BENCH_PREFETCH=prefetch)
        return _measure(bench, app, worker, count, one_by_one)


def _measure(bench: Bench, app: str, worker: Program, count: int, one_by_one: int) -> Mapping[str, float]:
    """Fill its queue, have the worker empty it, and then publish job by job."""
    service = [sys.executable, "-m", f"{_APPS}.{app}"]
    published = figures_of([*service, "publish", str(count)], **worker.environment)
    with worker.measured(bench, count) as ran:
        waited = figures_of([*service, "wait", str(one_by_one)], **worker.environment)
    return {**published, **ran, **waited}
