"""The circuit breaker, with its effects recorded and its timers run by hand."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ackline.consumers.breaker import Breaker, Circuit
from ackline.infra.errors import ConfigurationError
from tests.waiting import until

DOWN = ConnectionError("connection refused")


class Bench:
    """A circuit whose limits are recorded, and whose timers run when the test says so."""

    def __init__(self, *, prefetch: int = 100, **options: Any) -> None:
        self.limits: list[int | None] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.now = 0.0
        self.circuit = Circuit(
            "billing",
            Breaker(on=(ConnectionError, TimeoutError), **options),
            prefetch=prefetch,
            limit=self.limits.append,
            later=lambda seconds, function: self.timers.append((seconds, function)),
            clock=lambda: self.now,
        )

    def fail(self, error: BaseException = DOWN) -> float | None:
        return self.circuit.failed(self.circuit.begin(), error)

    def succeed(self) -> None:
        self.circuit.succeeded(self.circuit.begin())

    def open(self) -> None:
        while self.fail() is None:
            pass

    def run_timer(self) -> None:
        [(seconds, function)] = self.timers
        self.timers.clear()
        self.now += seconds
        function()


def test_failures_in_a_row_open_it_and_the_one_that_does_is_parked() -> None:
    bench = Bench(failures=3, probe="2s")
    assert [bench.fail(), bench.fail()] == [None, None], "the policy decides: attempts count"
    assert bench.limits == []
    assert bench.fail() == 2.0
    assert bench.limits == [0]


def test_a_success_in_between_begins_the_count_anew() -> None:
    bench = Bench(failures=2)
    for _ in range(10):
        assert bench.fail() is None
        bench.succeed()
    assert bench.limits == []


def test_another_exception_says_that_what_the_handler_needs_is_there() -> None:
    bench = Bench(failures=2)
    for _ in range(10):
        assert bench.fail() is None
        assert bench.fail(ValueError("no such account")) is None
    assert bench.limits == []


def test_an_exception_counts_by_its_class_and_all_classes_count_together() -> None:
    bench = Bench(failures=3)
    assert [bench.fail(ConnectionResetError()), bench.fail(TimeoutError()), bench.fail(BrokenPipeError())] == [
        None,
        None,
        1.0,
    ]


def test_what_was_running_when_it_opened_is_parked_and_changes_nothing() -> None:
    bench = Bench(failures=1)
    running = [bench.circuit.begin() for _ in range(3)]
    bench.open()
    assert [bench.circuit.failed(began, DOWN) for began in running] == [1.0, 1.0, 1.0]
    bench.circuit.succeeded(running[0])
    assert bench.limits == [0]
    assert len(bench.timers) == 1


def test_what_began_before_the_outage_and_fails_after_it_is_parked_and_changes_nothing() -> None:
    bench = Bench(failures=1)
    slow = bench.circuit.begin()
    bench.open()
    bench.run_timer()
    bench.succeed()
    before = list(bench.limits)
    assert bench.circuit.failed(slow, DOWN) == 1.0
    assert bench.limits == before


def test_what_begins_while_it_is_open_is_parked_when_it_fails() -> None:
    bench = Bench(failures=1)
    bench.open()
    assert bench.fail() == 1.0
    bench.succeed()
    assert bench.limits == [0]
    assert len(bench.timers) == 1


def test_after_the_probe_time_one_message_is_taken_and_its_failure_opens_it_again_without_an_attempt() -> None:
    bench = Bench(failures=5, probe="3s")
    bench.open()
    for _ in range(50):
        bench.run_timer()
        assert bench.limits[-1] == 1
        assert bench.timers == [], "without a message to probe with it stays half open"
        assert bench.fail() == 3.0
        assert bench.limits[-1] == 0


def test_a_probe_that_succeeds_closes_it_and_attempts_count_again() -> None:
    bench = Bench(failures=2)
    bench.open()
    bench.run_timer()
    bench.succeed()
    assert bench.timers == []
    assert bench.fail() is None
    assert bench.fail() == 1.0, "it opens again only after as many failures as before"


def test_a_probe_that_fails_otherwise_closes_it() -> None:
    bench = Bench(failures=1)
    bench.open()
    bench.run_timer()
    assert bench.fail(ValueError("no such account")) is None
    assert bench.limits[-1] != 0


def test_after_it_has_closed_messages_are_let_in_by_and_by() -> None:
    bench = Bench(prefetch=20)
    bench.open()
    bench.run_timer()
    steps: list[tuple[int, int | None]] = []
    for successes in range(1, 40):
        seen = len(bench.limits)
        bench.succeed()
        steps += [(successes, limit) for limit in bench.limits[seen:]]
    assert steps == [(1, 2), (3, 4), (7, 8), (15, 16), (31, None)]


def test_one_message_at_a_time_is_all_that_a_prefetch_of_1_ever_was() -> None:
    bench = Bench(prefetch=1)
    bench.open()
    bench.run_timer()
    bench.succeed()
    assert bench.limits == [0, 1, None]


@pytest.mark.parametrize("handled", [1, 3, 10, 60])
def test_no_message_is_given_back_more_than_about_log2_prefetch_times_however_often_it_opens(handled: int) -> None:
    """Brokers before 4.3 dead-letter what was given back 20 times."""
    bench = Bench(prefetch=500, failures=1)
    queue = list(range(2000))
    given_back = dict.fromkeys(queue, 0)
    while queue:
        for _ in range(handled):
            bench.succeed()
        del queue[:handled]  # in the order of the queue, as one thread handles them
        limit = bench.limits[-1] if bench.limits else None
        bench.open()
        for message in queue[: 500 if limit is None else limit]:
            given_back[message] += 1
        bench.run_timer()
    assert max(given_back.values()) <= 10


def test_a_check_is_a_probe_without_a_message() -> None:
    up = threading.Event()
    checks: list[str] = []

    def check() -> None:
        checks.append(threading.current_thread().name)
        if not up.is_set():
            raise OSError("no route to host")

    bench = Bench(failures=1, check=check)
    bench.open()
    for count in (1, 2, 3):
        until(lambda: bench.timers)
        bench.run_timer()
        until(lambda: len(checks) == count)  # noqa: B023
        assert bench.limits == [0], "no message is taken for it"
    until(lambda: bench.timers)
    up.set()
    bench.run_timer()
    until(lambda: bench.limits == [0, 1], what="the first message")
    assert set(checks) == {"probe of billing"}, "not on the thread that runs the timers"
    bench.succeed()
    assert bench.limits == [0, 1, 2]


def test_each_change_of_state_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(failures=2, probe="1s")
    with caplog.at_level(logging.DEBUG, "ackline"):
        bench.open()
        bench.run_timer()
        bench.fail()
        bench.run_timer()
        bench.succeed()
        bench.succeed()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            (
                "billing: the circuit is open (failures in a row: 2, the last ConnectionError): "
                "no message is taken; a probe every 1 s"
            ),
        ),
        ("DEBUG", "billing: the circuit is half open: one message is taken"),
        ("DEBUG", "billing: the probe failed, the circuit is open again: ConnectionError"),
        ("DEBUG", "billing: the circuit is half open: one message is taken"),
        ("INFO", "billing: the circuit is closed again after 2.0 s and 2 probes"),
    ]


def test_threads_that_fail_and_succeed_at_once_leave_one_timer_and_one_state() -> None:
    bench = Bench(failures=3)
    ends: list[Callable[[], object]] = [bench.fail, bench.fail, bench.fail, bench.succeed]

    def work() -> None:
        for step in range(2000):
            ends[step % 4]()

    for _ in range(5):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        bench.open()
        assert len(bench.timers) == 1
        assert bench.limits[-1] == 0
        bench.run_timer()
        bench.succeed()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"on": ()}, "names no exceptions"),
        ({"on": ConnectionError}, "names no exceptions"),
        ({"on": ("ConnectionError",)}, "names no exceptions"),
        ({"on": (ConnectionError,), "failures": 0}, "opens after one failure at least"),
        ({"on": (ConnectionError,), "probe": "soon"}, "is no duration"),
    ],
)
def test_what_is_no_breaker_is_refused_in_a_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Breaker(**options)
