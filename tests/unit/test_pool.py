"""The pool of handler threads."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest

from ackline.consumers.pool import Pool
from tests.waiting import until


def _stop(pool: Pool[Callable[[], None]], name: str) -> None:
    assert pool.stop() == []
    until(lambda: not _alive(name), what="the threads to end")


def _alive(name: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(f"{name}-")]


def _run(item: Callable[[], None], _thread: int) -> None:
    item()


def test_one_thread_runs_items_in_the_order_of_submit() -> None:
    seen: list[int] = []
    pool: Pool[int] = Pool(1, lambda item, _: seen.append(item), "ordered")
    for number in range(0, 100, 4):
        pool.submit(range(number, number + 4))
    until(lambda: len(seen) == 100)
    assert seen == list(range(100))
    assert pool.stop() == []


def test_while_items_are_slow_as_many_run_at_once_as_there_are_threads() -> None:
    pool = Pool(3, _run, "parallel")
    pool.slow = True
    together = threading.Barrier(4)

    def meet() -> None:
        together.wait(90)

    pool.submit([meet] * 3)
    together.wait(90)
    _stop(pool, "parallel")


def test_while_items_are_quick_one_thread_runs_them_and_a_tick_frees_what_is_behind_a_slow_one() -> None:
    pool = Pool(8, _run, "quick")
    threads: set[str] = set()

    def quick() -> None:
        threads.add(threading.current_thread().name)

    done = threading.Event()
    pool.submit([quick] * 1000 + [done.set])
    assert done.wait(90)
    assert len(threads) == 1
    go_on = threading.Event()
    done.clear()

    def slow() -> None:
        go_on.wait(90)

    pool.submit([slow, done.set])
    until(lambda: pool.running.count(slow) == 1, what="the slow one to begin")
    assert not done.is_set()

    def another() -> bool:
        pool.tick()
        return done.is_set()

    until(another, what="another thread")
    go_on.set()
    _stop(pool, "quick")


def test_what_runs_is_shown_with_its_thread_and_since_when() -> None:
    pool = Pool(1, _run, "shown")
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        go_on.wait(90)

    before = time.monotonic()
    pool.submit([slow])
    assert begun.wait(90)
    assert pool.running == [slow]
    assert before <= pool.since[0] <= time.monotonic()
    go_on.set()
    until(lambda: pool.running == [None])
    _stop(pool, "shown")


def test_what_was_not_begun_can_be_taken_back_by_choice_and_the_others_keep_their_order() -> None:
    begun, go_on = threading.Event(), threading.Event()
    seen: list[int] = []

    def run(item: int, _thread: int) -> None:
        if item == 0:
            begun.set()
            go_on.wait(90)
        seen.append(item)

    pool: Pool[int] = Pool(1, run, "chosen")
    pool.submit(range(10))
    assert begun.wait(90)
    assert pool.waiting == 9
    assert pool.withdraw(lambda item: item % 2 == 0) == [2, 4, 6, 8]
    go_on.set()
    until(lambda: seen == [0, 1, 3, 5, 7, 9])
    assert pool.stop() == []


def test_stop_returns_what_was_not_begun_and_lets_what_runs_finish() -> None:
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        go_on.wait(90)
        done.set()

    def never() -> None:
        raise AssertionError("begun after stop")

    pool = Pool(1, _run, "stopping")
    pool.submit([slow, never, never])
    assert begun.wait(90)
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
        pool.submit([fails, done.set])
        assert done.wait(90)
    assert "a worker thread failed on an item" in caplog.text
    _stop(pool, "failing")
