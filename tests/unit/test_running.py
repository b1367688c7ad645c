"""Reporting that a handler has begun: only of those that go on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from ackline.consumers.handling import Outgoing
from ackline.consumers.running import REPORT_SECONDS, Running
from ackline.infra.properties import Properties


class Bench:
    """A `Running` whose clock and timer the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sent: list[str] = []
        self.looks: list[Callable[[], None]] = []
        self.running = Running(
            lambda outgoing: self.sent.append(outgoing.routing_key), self._later, clock=lambda: self.now
        )

    def _later(self, seconds: float, look: Callable[[], None]) -> None:
        assert seconds == REPORT_SECONDS
        self.looks.append(look)

    def look(self, after: float) -> None:
        """Let *after* seconds go by, and the timer run."""
        self.now += after
        due, self.looks = self.looks, []
        for look in due:
            look()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def report(name: str) -> Callable[[], Outgoing]:
    return lambda: Outgoing("", name, Properties(), b"")


def test_a_handler_that_is_over_soon_is_not_reported(bench: Bench) -> None:
    with bench.running(report("quick")):
        pass
    bench.look(after=10)
    assert bench.sent == []


def test_a_handler_that_goes_on_is_reported_once(bench: Bench) -> None:
    with bench.running(report("slow")):
        bench.look(after=REPORT_SECONDS / 2)
        assert bench.sent == []
        bench.look(after=REPORT_SECONDS)
        bench.look(after=REPORT_SECONDS)
        assert bench.sent == ["slow"]


def test_each_of_several_is_reported_by_its_own_time_and_a_failure_counts_as_an_end(bench: Bench) -> None:
    with bench.running(report("first")):
        bench.now += REPORT_SECONDS * 0.9
        with bench.running(report("second")):
            with suppress(ValueError), bench.running(report("failed")):
                raise ValueError("no")
            bench.look(after=REPORT_SECONDS * 0.2)
            assert bench.sent == ["first"]
            bench.look(after=REPORT_SECONDS)
    assert bench.sent == ["first", "second"]


def test_nothing_looks_while_nothing_runs(bench: Bench) -> None:
    for _ in range(3):
        with bench.running(report("quick")):
            assert len(bench.looks) == 1
    bench.look(after=REPORT_SECONDS)
    assert bench.looks == []
    with bench.running(report("later")):
        assert len(bench.looks) == 1
