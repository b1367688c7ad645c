"""The pool of handler threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from ackline.consumers.pool import Pool
from tests.waiting import until


def _stop(pool: Pool[Callable[[], None]], name: str) -> None:
    assert pool.stop() == []
    until(lambda: not _alive(name), what="the threads to end")


def _alive(name: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(f"{name}-")]


def _run(item: Callable[[], None]) -> None:
    item()


def test_one_thread_runs_items_in_the_order_of_submit() -> None:
    seen: list[int] = []
    pool: Pool[int] = Pool(1, seen.append, "ordered")
    for number in range(100):
        pool.submit(number)
    until(lambda: len(seen) == 100)
    assert seen == list(range(100))
    assert pool.stop() == []


def test_as_many_items_run_at_once_as_there_are_threads() -> None:
    pool = Pool(3, _run, "parallel")
    together = threading.Barrier(4)

    def meet() -> None:
        together.wait(90)

    for _ in range(3):
        pool.submit(meet)
    together.wait(90)
    _stop(pool, "parallel")


def test_stop_returns_what_was_not_begun_and_lets_what_runs_finish() -> None:
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        go_on.wait(90)
        done.set()

    def never() -> None:
        raise AssertionError("begun after stop")

    pool = Pool(1, _run, "stopping")
    pool.submit(slow)
    assert begun.wait(90)
    pool.submit(never)
    pool.submit(never)
    assert pool.stop() == [never, never]
    assert not done.is_set()
    go_on.set()
    assert done.wait(90)
    until(lambda: not _alive("stopping"), what="the thread to end")


def test_an_item_that_raises_costs_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def fails() -> None:
        raise ValueError("a bug")

    with caplog.at_level(logging.ERROR):
        pool = Pool(1, _run, "failing")
        pool.submit(fails)
        pool.submit(done.set)
        assert done.wait(90)
    assert "a worker thread failed on an item" in caplog.text
    _stop(pool, "failing")
