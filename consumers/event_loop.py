"""The event loop on which a worker's async handlers run, so many at once."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from ackline.consumers.backlog import Backlog

T = TypeVar("T")

log = logging.getLogger(__name__)


class EventLoop(Generic[T]):
    """An asyncio loop on its own thread: up to *size* tasks that await *run* of an item, in the order of `submit`."""

    def __init__(self, size: int, run: Callable[[T], Awaitable[None]], name: str) -> None:
        self._size = size
        self._run = run
        self._items: Backlog[T] = Backlog()
        #: What runs, by the number of its task, and since when (monotonic time).
        self.running: dict[int, tuple[T, float]] = {}
        self._number = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._live, name=name, daemon=True).start()

    def submit(self, items: Sequence[T]) -> None:
        """Have *items* run when there is room."""
        self._items.extend(items)
        self._loop.call_soon_threadsafe(self._fill)

    @property
    def waiting(self) -> int:
        """Items that have not begun."""
        return len(self._items)

    def withdraw(self, wanted: Callable[[T], bool] = lambda item: True) -> list[T]:
        """Take back the items that have not begun and that *wanted* says; not while another thread submits."""
        return self._items.withdraw(wanted)

    def stop(self) -> None:
        """End the loop. What runs is cancelled."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _live(self) -> None:
        self._loop.run_forever()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _fill(self) -> None:
        while len(self._tasks) < self._size:
            try:
                item = self._items.popleft()
            except IndexError:
                return
            task = self._loop.create_task(self._one(item))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._fill()

    async def _one(self, item: T) -> None:
        self._number += 1
        number = self._number
        self.running[number] = (item, time.monotonic())
        try:
            await self._run(item)
        except Exception:  # a bug of ours
            log.exception("an async handler's task failed")
        finally:
            del self.running[number]
