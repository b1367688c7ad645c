"""Threads that run what they are given, and hand back what they have not begun."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)


class Pool(Generic[T]):
    """*size* threads that call *run* with each item, in the order of `submit`."""

    def __init__(self, size: int, run: Callable[[T], None], name: str) -> None:
        self._run = run
        self._items: SimpleQueue[T | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(size)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, item: T) -> None:
        """Have *item* run when a thread is free."""
        self._items.put(item)

    def stop(self) -> list[T]:
        """Begin nothing more; return what was not begun."""
        left = []
        while True:
            try:
                item = self._items.get_nowait()
            except Empty:
                break
            if item is not None:
                left.append(item)
        for _ in self._threads:
            self._items.put(None)
        return left

    def _work(self) -> None:
        while (item := self._items.get()) is not None:
            try:
                self._run(item)
            except Exception:  # a bug of ours: one item must not cost a thread
                log.exception("a worker thread failed on an item")
