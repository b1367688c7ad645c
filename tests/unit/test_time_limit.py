"""Time limits: what is interrupted, what never is, and what is said of a handler that does not end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ackline.consumers import Failure, Reject, Retry, decide, fixed, time_limit
from ackline.consumers.stopping import Stopping
from ackline.consumers.time_limit import TimeLimitExceeded, TimeLimits, check, limit_of
from ackline.infra.errors import ConfigurationError
from tests.waiting import DEADLINE, until

#: A limit that nothing here reaches, and one that is soon over.
LONG, SHORT = 10 * DEADLINE, 0.2


@pytest.fixture
def limits() -> Iterator[TimeLimits]:
    limits = TimeLimits(patience=SHORT)
    yield limits
    limits.close()


def _spin(stop: Callable[[], bool] = lambda: False) -> None:
    while not stop():
        pass


def test_what_a_handler_returns_and_raises_is_its_own(limits: TimeLimits) -> None:
    assert limits.around(lambda message, context: (message, context), LONG)(1, 2) == (1, 2)
    with pytest.raises(ZeroDivisionError):
        limits.around(lambda message, context: message / 0, LONG)(1, None)


def test_a_thread_is_interrupted_where_it_is_and_the_failure_says_why(limits: TimeLimits) -> None:
    with pytest.raises(TimeLimitExceeded) as caught:
        limits.around(lambda message, context: _spin(), SHORT)(None, None)
    assert str(caught.value) == "the handler ran for longer than its time limit of 0.2s"
    assert "_spin" in [entry.name for entry in caught.traceback], "the place shows what it did"


def test_except_exception_does_not_keep_it(limits: TimeLimits) -> None:
    def handler(message: Any, context: Any) -> None:
        while True:
            with contextlib.suppress(Exception):
                _spin()

    with pytest.raises(TimeLimitExceeded):
        limits.around(handler, SHORT)(None, None)


def test_a_handler_that_waits_for_its_context_is_interrupted(limits: TimeLimits) -> None:
    with pytest.raises(TimeLimitExceeded):
        limits.around(lambda message, context: Stopping().wait(LONG), SHORT)(None, None)


def test_who_is_due_first_is_interrupted_first_whoever_began_first(limits: TimeLimits) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        longer = thread.submit(limits.around(lambda message, context: _spin(stop.is_set), LONG), None, None)
        with pytest.raises(TimeLimitExceeded):
            limits.around(lambda message, context: _spin(), SHORT)(None, None)
        assert not longer.done()
        stop.set()
        assert longer.result(DEADLINE) is None


@pytest.fixture
def _quick_switches() -> Iterator[None]:
    """The interpreter changes threads a thousand times as often, so that more of their orders occur."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_quick_switches")
def test_an_interruption_never_comes_after_the_end_of_the_handler(limits: TimeLimits) -> None:
    """Handlers that end just about when their limit does: what runs between them is never hit."""

    def handler(message: float, context: Any) -> None:
        _spin(lambda: time.monotonic() > message)

    def many(seed: int) -> int:
        chance = random.Random(seed)
        exceeded = 0
        for number in range(300):
            limit = chance.uniform(0.0001, 0.002)
            lasts = LONG if number % 50 == 0 else limit * chance.uniform(0.9, 1.3)
            try:
                limits.around(handler, limit)(time.monotonic() + lasts, None)
            except TimeLimitExceeded:
                exceeded += 1
            assert sum(number for number in range(200)) == 19900  # an exception here ends the test
        return exceeded

    with ThreadPoolExecutor(4) as threads:
        exceeded = list(threads.map(many, range(4)))
    assert min(exceeded) >= 6, "else nothing was tested"


def _stack(thread: int) -> list[str]:
    """The names of the functions that a thread is in."""
    return [frame.f_code.co_name for frame, _ in traceback.walk_stack(sys._current_frames()[thread])]


def test_a_handler_that_ends_while_the_watchdog_is_about_to_interrupt_it_has_succeeded(
    limits: TimeLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt = time_limit._interrupt
    about_to, interrupted = threading.Event(), threading.Event()

    def slow(thread: int, error: type[BaseException] | None) -> None:
        if error is None:
            interrupt(thread, None)
            return
        about_to.set()
        until(lambda: "handler" not in _stack(thread), what="the handler to end")
        interrupt(thread, error)  # who went on without waiting for this is hit
        interrupted.set()

    def handler(message: Any, context: Any) -> bool:
        return about_to.wait(DEADLINE)

    monkeypatch.setattr(time_limit, "_interrupt", slow)
    assert limits.around(handler, SHORT)(None, None) is True
    _spin(interrupted.is_set)


def test_a_handler_that_keeps_the_interruption_to_itself_and_returns_has_succeeded(limits: TimeLimits) -> None:
    def handler(message: Any, context: Any) -> str:
        try:
            _spin()
        except TimeLimitExceeded:
            return "done all the same"
        return ""

    assert limits.around(handler, SHORT)(None, None) == "done all the same"


def test_a_thread_that_does_not_end_is_reported_once_and_when_it_ends(
    limits: TimeLimits, caplog: pytest.LogCaptureFixture
) -> None:
    stop = threading.Event()

    def handler(message: Any, context: Any) -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeLimitExceeded):
                _spin(stop.is_set)

    with caplog.at_level(logging.INFO), ThreadPoolExecutor(1) as thread:
        running = thread.submit(limits.around(handler, SHORT), None, "m-1")
        until(lambda: caplog.messages, what="the report")
        with pytest.raises(TimeLimitExceeded):  # the watchdog has looked again meanwhile
            limits.around(lambda message, context: _spin(), 4 * SHORT)(None, "another")
        assert not running.done(), "its slot is taken"
        stop.set()
        assert running.result(DEADLINE) is None
    late, ended = [said for said in caplog.messages if not said.startswith("another")]
    assert late.startswith("m-1: the handler goes on 0.2s after the end of its time limit of 0.2s: it waits in code")
    assert "belongs in a job" in late
    assert ended.startswith("m-1: the handler that went on beyond its time limit has ended after ")


def test_of_a_batch_the_first_is_named(limits: TimeLimits, caplog: pytest.LogCaptureFixture) -> None:
    stop = threading.Event()

    def handler(message: Any, context: Any) -> None:
        try:
            _spin()
        except TimeLimitExceeded:
            stop.wait(DEADLINE)

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(limits.around(handler, SHORT), [1, 2], ["a for b", "c for b"])
        until(lambda: caplog.messages, what="the report")
        stop.set()
        running.result(DEADLINE)
    assert caplog.messages[0].startswith("a for b (the first of a batch of 2): ")


# --- coroutines --------------------------------------------------------------------------------------------


async def _forever() -> None:
    await asyncio.sleep(LONG)


def test_a_coroutine_is_cancelled_and_the_failure_says_why(limits: TimeLimits) -> None:
    cleaned = []

    async def handler(message: Any, context: Any) -> None:
        try:
            await _forever()
        finally:
            cleaned.append(True)

    with pytest.raises(TimeLimitExceeded, match="longer than its time limit") as caught:
        asyncio.run(limits.around_async(handler, SHORT)(None, None))
    assert cleaned == [True]
    assert isinstance(caught.value.__cause__, TimeoutError)


def test_a_coroutines_own_result_and_timeout_are_its_own(limits: TimeLimits) -> None:
    async def handler(message: Any, context: Any) -> Any:
        if message is None:
            raise TimeoutError("of the bank")
        return message

    assert asyncio.run(limits.around_async(handler, LONG)("result", None)) == "result"
    with pytest.raises(TimeoutError, match="of the bank"):
        asyncio.run(limits.around_async(handler, LONG)(None, None))


def test_a_coroutine_that_keeps_its_cancellation_to_itself_is_reported(
    limits: TimeLimits, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(message: Any, context: Any) -> str:
        try:
            await _forever()
        except asyncio.CancelledError:
            while not caplog.messages:
                await asyncio.sleep(0.01)
        return "done all the same"

    run = limits.around_async(handler, SHORT)
    assert asyncio.run(asyncio.wait_for(run(None, "order.placed m-1"), DEADLINE)) == "done all the same"
    late, ended = caplog.messages
    assert late.startswith("order.placed m-1: the handler goes on 0.2s after the end of its time limit")
    assert "CancelledError" in late
    assert "has ended after" in ended


# --- what follows ------------------------------------------------------------------------------------------


def test_a_try_that_took_too_long_is_a_failure_by_the_policy() -> None:
    error = TimeLimitExceeded("the handler ran for longer than its time limit of 30s")
    assert decide(Failure(error, 1), fixed(attempts=2, delay="5s")) == Retry(5.0)
    assert decide(Failure(error, 2), fixed(attempts=2)) == Reject(
        "failed after 2 attempts: TimeLimitExceeded: the handler ran for longer than its time limit of 30s"
    )
    assert isinstance(decide(Failure(error, 1), fixed(reject_on=TimeLimitExceeded)), Reject)


def test_a_limit_is_a_duration_that_is_longer_than_nothing() -> None:
    assert [limit_of("report", written) for written in ("30s", "5m", 1.5)] == [30.0, 300.0, 1.5]
    with pytest.raises(ConfigurationError, match="The time limit of 'report' is '0s': leave it away for none"):
        limit_of("report", "0s")


def test_a_limit_must_fit_under_the_brokers_consumer_timeout_with_the_wait_before_it() -> None:
    check("report", 600, waiting=600, consumer_timeout=1800)
    with pytest.raises(ConfigurationError) as caught:
        check("report", 1200, waiting=600, consumer_timeout=1800)
    said = str(caught.value)
    assert said.startswith("The time limit of 'report', 20m, and up to 10m before")
    assert "consumer_timeout of 30m" in said
    assert "ACKLINE_CONSUMER_TIMEOUT" in said
