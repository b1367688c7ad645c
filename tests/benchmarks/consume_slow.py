"""Handlers that wait: how near to the ideal rate a worker keeps them, and whether one that is stuck holds others up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests import broker as test_broker
from tests.benchmarks.comparing import Bench, Contender, alternate, median, spread, table
from tests.benchmarks.consuming.meter import Placed, placed
from tests.benchmarks.consuming.slow_app import QUICK, SLOW, STUCK, STUCK_NOTE
from tests.benchmarks.worker_processes import ackline_worker, fill

RATE = "messages per second"
_KINDS = {"threads": "", "async": "-async"}
#: Handlers at once, of slow ones and of those beside a stuck one.
_SLOW_AT_ONCE, _QUICK_AT_ONCE, _PREFETCH = 100, 7, 200


def run(bench: Bench) -> str:
    """Two tables."""
    return f"{_slow(bench)}\n{_beside_a_stuck_one(bench)}"


def _slow(bench: Bench) -> str:
    count, ideal = bench.scaled(10_000), _SLOW_AT_ONCE / SLOW
    options = ["--concurrency", str(_SLOW_AT_ONCE)]
    contenders = [
        Contender(shown, lambda kind=kind: _measure(bench, f"bench-slow{kind}", count, options))  # type: ignore[misc]
        for shown, kind in _KINDS.items()
    ]
    figures = alternate(contenders, bench.rounds)
    return table(
        f"Handlers of {SLOW * 1000:.0f} ms, concurrency {_SLOW_AT_ONCE} (medians of {bench.rounds})",
        ["", "messages/s", "least–most", "of the ideal"],
        [
            [
                contender.name,
                f"{median(figures, contender.name, RATE):,.0f}",
                spread(figures, contender.name, RATE),
                f"{median(figures, contender.name, RATE) / ideal:.1%}",
            ]
            for contender in contenders
        ],
    )


def _beside_a_stuck_one(bench: Bench) -> str:
    """With the stuck one there is a slot more, which it takes: as many are left for the others."""
    # 20 s for the others: they are done while the stuck one still is in its handler.
    count = bench.scaled(int(20 * _QUICK_AT_ONCE / QUICK))
    contenders = [
        Contender(
            f"{shown}, {'beside a stuck one' if stuck else 'alone'}",
            lambda kind=kind, stuck=stuck: _measure(  # type: ignore[misc]
                bench,
                f"bench-stuck{kind}",
                count,
                ["--concurrency", str(_QUICK_AT_ONCE + stuck), "--prefetch", str(_PREFETCH)],
                stuck=stuck,
            ),
        )
        for shown, kind in _KINDS.items()
        for stuck in (False, True)
    ]
    figures = alternate(contenders, bench.rounds)
    rates = {contender.name: median(figures, contender.name, RATE) for contender in contenders}
    alone = {shown: rates[f"{shown}, alone"] for shown in _KINDS}
    return table(
        f"Handlers of {QUICK * 1000:.0f} ms, {_QUICK_AT_ONCE} at once, prefetch {_PREFETCH}, alone and beside one of "
        f"{STUCK:.0f} s in a slot of its own (medians of {bench.rounds})",
        ["", "messages/s", "least–most", "of those alone"],
        [
            [name, f"{rate:,.0f}", spread(figures, name, RATE), f"{rate / alone[name.split(',')[0]]:.1%}"]
            for name, rate in rates.items()
        ],
    )


def _measure(
    bench: Bench, consumer: str, count: int, options: Sequence[str], *, stuck: bool = False
) -> Mapping[str, float]:
    messages: list[Placed] = [placed(0).model_copy(update={"note": STUCK_NOTE})] * stuck
    messages += map(placed, range(1, count + 1))
    with test_broker.fresh_vhost(bench.broker) as vhost:
        fill(vhost.amqp_url, consumer, messages)
        return ackline_worker(bench, vhost.amqp_url, consumer, *options, app="slow_app").figures(bench, count)
