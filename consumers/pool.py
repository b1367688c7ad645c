"""Threads that run what they are given, as few of them as are of use, and hand back what they have not begun.

All threads take from one queue, so nothing waits behind a slow item while a thread is free. But while items are quick a
second thread only fights the first for the interpreter's lock. So one thread is woken for what is submitted, and the
next one only when that helps: at once while items are known to be slow (`slow`), else when `tick` finds that nothing
was begun since its last call.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

from ackline.consumers.backlog import Backlog

T = TypeVar("T")

log = logging.getLogger(__name__)


class Pool(Generic[T]):
    """*size* threads that call *run* with each item and the thread's number, in the order of `submit`."""

    def __init__(self, size: int, run: Callable[[T, int], None], name: str) -> None:
        self._run = run
        self._items: Backlog[T] = Backlog()
        #: Whether a free thread should be woken for each item: they take longer than a change of threads.
        self.slow = False
        #: By thread: what it runs, None while it waits; and since when, by the monotonic clock.
        self.running: list[T | None] = [None] * size
        self.since = [0.0] * size
        self._stopping = False
        self._begun = [0] * size
        self._begun_at_tick = 0
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._lock = threading.Lock()
        self._free = 0
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"{name}-{number}", daemon=True)
            for number in range(size)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, items: Sequence[T]) -> None:
        """Have *items* run when threads are free."""
        self._items.extend(items)
        if self._free:
            self._wake.put(None)

    @property
    def waiting(self) -> int:
        """Items that nobody has begun."""
        return len(self._items)

    def withdraw(self, wanted: Callable[[T], bool] = lambda item: True) -> list[T]:
        """Take back the items that were not begun and that *wanted* says; not while another thread submits."""
        return self._items.withdraw(wanted)

    def tick(self) -> None:
        """Wake another thread when items wait and none was begun since the last call. For every few milliseconds."""
        begun = sum(self._begun)
        if self._items and self._free and begun == self._begun_at_tick:
            self._wake.put(None)
        self._begun_at_tick = begun

    def stop(self) -> list[T]:
        """Begin nothing more; return what was not begun."""
        self._stopping = True
        left = self.withdraw()
        for _ in self._threads:
            self._wake.put(None)
        return left

    def _work(self, number: int) -> None:
        items, running, since, begun, run = self._items, self.running, self.since, self._begun, self._run
        clock = time.monotonic
        while True:
            try:
                item = items.popleft()
            except IndexError:
                if self._wait():
                    return
                continue
            if self.slow and items and self._free:
                self._wake.put(None)
            begun[number] += 1
            since[number] = clock()
            running[number] = item
            try:
                run(item, number)
            except Exception:  # a bug of ours: one item must not cost a thread
                log.exception("a worker thread failed on an item")
            running[number] = None

    def _wait(self) -> bool:
        """Wait until there may be something to do; whether it is over."""
        with self._lock:
            self._free += 1
        # In this order: who submits now either sees a free thread, or is seen here.
        if not self._items and not self._stopping:
            self._wake.get()
        with self._lock:
            self._free -= 1
        return self._stopping and not self._items
