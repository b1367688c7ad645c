"""The signal to handlers that the worker stops."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from ackline.consumers.stopping import Stopping
from tests.waiting import DEADLINE, until


def _has_waiters(stopping: Stopping, count: int) -> None:
    until(lambda: len(stopping._wakers) == count, what=f"{count} who wait")


def test_threads_and_coroutines_that_wait_are_woken() -> None:
    stopping = Stopping()
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(stopping.wait, DEADLINE) for _ in range(2)]
        waiting.append(threads.submit(lambda: asyncio.run(stopping.sleep(DEADLINE))))
        _has_waiters(stopping, 3)
        began = time.monotonic()
        stopping.set()
        assert [found.result(DEADLINE) for found in waiting] == [True] * 3
    assert time.monotonic() - began < DEADLINE
    assert stopping._wakers == set()


def test_who_waits_in_vain_learns_that_too() -> None:
    stopping = Stopping()
    assert stopping.wait(0.01) is False
    assert asyncio.run(stopping.sleep(0.01)) is False
    assert stopping._wakers == set()


def test_once_it_is_set_nobody_waits_any_more() -> None:
    stopping = Stopping()
    stopping.set()
    stopping.set()
    began = time.monotonic()
    assert stopping.wait(10 * DEADLINE)
    assert asyncio.run(stopping.sleep(10 * DEADLINE))
    assert time.monotonic() - began < 10 * DEADLINE


def test_none_is_missed_who_begins_to_wait_while_it_is_set() -> None:
    for _ in range(200):
        stopping = Stopping()
        waiting = threading.Thread(target=stopping.wait, args=(DEADLINE,))
        waiting.start()
        stopping.set()
        waiting.join(DEADLINE / 2)
        assert not waiting.is_alive()
