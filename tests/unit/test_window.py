"""A window never has more takers than places, and no place is lost."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from ackline.producer.window import TaskWindow, Window
from tests.waiting import until


def soon(seconds: float = 60.0) -> float:
    return time.monotonic() + seconds


def test_a_place_that_is_not_had_in_time_is_not_taken() -> None:
    window = Window(1)
    assert window.take(soon())
    assert not window.take(soon(0.05))
    window.give(1)
    assert window.take(soon())
    assert window.free == 0


def test_places_that_are_given_back_together_wake_as_many_threads() -> None:
    window = Window(3)
    assert [window.take(soon()) for _ in range(3)] == [True] * 3
    taken: list[bool] = []
    threads = [threading.Thread(target=lambda: taken.append(window.take(soon()))) for _ in range(5)]
    for thread in threads:
        thread.start()
    window.give(3)
    until(lambda: len(taken) == 3, what="three threads to have a place")
    window.give(2)
    for thread in threads:
        thread.join()
    assert taken == [True] * 5
    assert window.free == 0


def test_tasks_share_places_in_their_order_and_one_that_is_cancelled_keeps_none() -> None:
    async def run() -> list[int]:
        window = TaskWindow(1)
        order: list[int] = []

        async def take(number: int) -> None:
            if await window.take(soon()):
                order.append(number)

        assert await window.take(soon())
        assert not await window.take(soon(0.01))
        tasks = [asyncio.create_task(take(number)) for number in range(4)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        window.give(3)
        await asyncio.wait(tasks, timeout=30)
        with pytest.raises(asyncio.CancelledError):
            tasks[1].result()
        return order

    assert asyncio.run(run()) == [0, 2, 3]
