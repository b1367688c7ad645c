"""The event loop of async handlers."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable

import pytest

from ackline.consumers.event_loop import EventLoop
from tests.waiting import until

Item = Callable[[], Awaitable[None]]


async def _run(item: Item) -> None:
    await item()


def test_so_many_run_at_once_and_the_others_wait_in_order() -> None:
    seen: list[str] = []
    gate = asyncio.Event()

    def named(name: str) -> Item:
        async def item() -> None:
            seen.append(name)
            await gate.wait()

        return item

    loop: EventLoop[Item] = EventLoop(2, _run, "two")
    loop.submit([named("a"), named("b"), named("c"), named("d")])
    until(lambda: seen == ["a", "b"], what="the first two")
    assert loop.waiting == 2
    assert len(loop.running) == 2

    async def let_go() -> None:
        gate.set()

    asyncio.run_coroutine_threadsafe(let_go(), loop._loop).result(90)
    until(lambda: seen == ["a", "b", "c", "d"])
    until(lambda: loop.running == {})
    loop.stop()


def test_what_has_not_begun_can_be_taken_back_by_choice() -> None:
    begun = threading.Event()
    seen: list[int] = []

    async def run(item: int) -> None:
        if item == 0:
            begun.set()
            await asyncio.sleep(90)
        seen.append(item)

    loop: EventLoop[int] = EventLoop(1, run, "chosen")
    loop.submit([0, 1, 2, 3, 4])
    assert begun.wait(90)
    assert loop.withdraw(lambda item: item % 2 == 0) == [2, 4]
    assert loop.withdraw() == [1, 3]
    assert seen == []
    loop.stop()


def test_what_runs_is_cancelled_at_the_end() -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def forever() -> None:
        begun.set()
        try:
            await asyncio.sleep(10_000)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    loop: EventLoop[Item] = EventLoop(1, _run, "ending")
    loop.submit([forever])
    assert begun.wait(90)
    loop.stop()
    assert cancelled.wait(90)
    until(lambda: "ending" not in {thread.name for thread in threading.enumerate()}, what="the thread to end")


def test_an_item_that_raises_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    async def fails() -> None:
        raise ValueError("a bug")

    async def works() -> None:
        done.set()

    with caplog.at_level(logging.ERROR):
        loop: EventLoop[Item] = EventLoop(1, _run, "failing")
        loop.submit([fails, works])
        assert done.wait(90)
    assert "an async handler's task failed" in caplog.text
    loop.stop()
