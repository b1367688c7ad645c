"""The worker beside a C client, Celery, FastStream and Dramatiq: 300 bytes from a queue that is full, a no-op handler.

All take as many messages, which pydantic checks (the C client does not look at them), from a quorum queue; but Dramatiq
declares its queue itself, a classic one. Each has the settings that are fastest here, as a trial at the beginning finds
them; Ackline has its defaults. Tracked messages are reported to the reviewer's queue; no reviewer runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from ackline.infra.running_broker import credentials
from tests import broker as test_broker
from tests.benchmarks.comparing import Bench, Contender, alternate, compiled, figures_of, median, spread, table
from tests.benchmarks.consuming.meter import Placed, Tracked, placed
from tests.benchmarks.worker_processes import ackline_worker, fill, program
from tests.broker import Vhost

RATE, CPU = "messages per second", "CPU µs per message"
#: Unacked messages of the C client, and how often it acks.
_PREFETCH, _EVERY = 500, 50
_APPS = "tests.benchmarks.consuming"
#: Arguments of a worker's command, and its environment.
Options = tuple[tuple[str, ...], dict[str, str]]
#: By what is shown of them. Without gevent: with that pool the worker stopped in the middle of its messages.
_CELERY: dict[str, Options] = {
    "solo": (("--pool", "solo"), {"BENCH_PREFETCH": "100"}),
    "threads 1": (("--pool", "threads", "-c", "1"), {"BENCH_PREFETCH": "100"}),
    "threads 8": (("--pool", "threads", "-c", "8"), {"BENCH_PREFETCH": "16"}),
    "prefork 1": (("--pool", "prefork", "-c", "1"), {"BENCH_PREFETCH": "100", "BENCH_POOL": "prefork"}),
    "prefork 2": (("--pool", "prefork", "-c", "2"), {"BENCH_PREFETCH": "50", "BENCH_POOL": "prefork"}),
}
_FASTSTREAM: dict[str, Options] = {f"prefetch {most}": ((), {"BENCH_PREFETCH": str(most)}) for most in (10, 100, 500)}
_DRAMATIQ: dict[str, Options] = {
    f"threads {threads}": (("--threads", str(threads)), {"dramatiq_queue_prefetch": "500"}) for threads in (1, 2, 8)
}


def run(bench: Bench) -> str:
    """Needs gcc and librabbitmq (Debian: librabbitmq-dev), and what the extra `bench` installs."""
    count = bench.scaled(50_000)
    client = compiled("consume_acks", bench.folder)
    rivals = {
        "Celery": (_CELERY, _celery),
        "FastStream": (_FASTSTREAM, _faststream),
        "Dramatiq": (_DRAMATIQ, _dramatiq),
    }
    contenders = [
        Contender(f"C client (rabbitmq-c), ack every {_EVERY}", lambda: _c_client(bench, client, count)),
        Contender("`def` handler", lambda: _ackline(bench, "bench", Placed, count)),
        Contender("`async def` handler", lambda: _ackline(bench, "bench-async", Placed, count)),
        Contender("`def` handler, tracked", lambda: _ackline(bench, "bench-tracked", Tracked, count)),
        *(_best(bench, name, variants, measure, count) for name, (variants, measure) in rivals.items()),
    ]
    figures = alternate(contenders, bench.rounds)
    rates = {contender.name: median(figures, contender.name, RATE) for contender in contenders}
    c_client, untracked, _, _, *others = rates.values()
    return table(
        f"Handling {len(placed(0).model_dump_json())} bytes with a no-op, one process (medians of {bench.rounds})",
        ["", "messages/s", "least–most", "CPU µs each", "× C", "× untracked", *(f"× {name}" for name in rivals)],
        [
            [
                name,
                f"{rate:,.0f}",
                spread(figures, name, RATE),
                f"{median(figures, name, CPU):.1f}",
                *(f"{rate / other:.2f}" for other in (c_client, untracked, *others)),
            ]
            for name, rate in rates.items()
        ],
    )


Measure = Callable[[Bench, Options, int], Mapping[str, float]]


def _best(bench: Bench, name: str, variants: Mapping[str, Options], measure: Measure, count: int) -> Contender:
    """The contender by its quickest options, of which each is tried with a tenth of the messages."""
    tried = {shown: measure(bench, options, max(count // 10, 1))[RATE] for shown, options in variants.items()}
    for shown, rate in tried.items():
        print(f"{name}, {shown}: {rate:,.0f}", file=sys.stderr)
    best = max(tried, key=tried.__getitem__)
    return Contender(f"{name}, {best}", lambda: measure(bench, variants[best], count))


def _c_client(bench: Bench, client: Path, count: int) -> Mapping[str, float]:
    with test_broker.fresh_vhost(bench.broker) as vhost:
        fill(vhost.amqp_url, "bench", map(placed, range(count)))
        parts = urlsplit(vhost.amqp_url)
        where = [str(parts.hostname), str(parts.port or 5672), *credentials(vhost.amqp_url), vhost.name]
        return figures_of([client, *where, "bench", str(count), str(_PREFETCH), str(_EVERY)])


def _ackline(bench: Bench, consumer: str, model: type[Placed], count: int) -> Mapping[str, float]:
    with test_broker.fresh_vhost(bench.broker) as vhost:
        fill(vhost.amqp_url, consumer, (placed(number, model) for number in range(count)), model=model)
        return ackline_worker(bench, vhost.amqp_url, consumer).figures(bench, count)


def _celery(bench: Bench, options: Options, count: int) -> Mapping[str, float]:
    arguments, environment = options
    with test_broker.fresh_vhost(bench.broker) as vhost:
        _fill_by("celery_app", vhost, count)
        command = [sys.executable, "-m", "celery", "-A", f"{_APPS}.celery_app", "worker", *arguments]
        command += ["--loglevel", "WARNING", "--without-gossip", "--without-mingle"]
        return program(command, BENCH_URL=vhost.amqp_url, **environment).figures(bench, count)


def _faststream(bench: Bench, options: Options, count: int) -> Mapping[str, float]:
    _, environment = options
    with test_broker.fresh_vhost(bench.broker) as vhost:
        fill(vhost.amqp_url, "bench", map(placed, range(count)))
        command = [sys.executable, "-m", f"{_APPS}.faststream_app"]
        return program(command, BENCH_URL=vhost.amqp_url, **environment).figures(bench, count)


def _dramatiq(bench: Bench, options: Options, count: int) -> Mapping[str, float]:
    arguments, environment = options
    with test_broker.fresh_vhost(bench.broker) as vhost:
        _fill_by("dramatiq_app", vhost, count)
        command = [sys.executable, "-m", "dramatiq", f"{_APPS}.dramatiq_app", "--processes", "1", *arguments]
        return program(command, BENCH_URL=vhost.amqp_url, **environment).figures(bench, count)


def _fill_by(app: str, vhost: Vhost, count: int) -> None:
    """Have that application fill its own queue, in its own way."""
    program([sys.executable, "-m", f"{_APPS}.{app}", str(count)], BENCH_URL=vhost.amqp_url).run()
