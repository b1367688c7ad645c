"""What has been handed over and nobody has begun."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Backlog(deque[T]):
    """A queue that one thread fills and others empty from the left: in CPython each step is atomic."""

    def withdraw(self, wanted: Callable[[T], bool]) -> list[T]:
        """Take out the items that *wanted* says; the others keep their order. For the thread that fills it."""
        found = []
        for _ in range(len(self)):
            try:
                item = self.popleft()
            except IndexError:  # the others were quicker
                break
            if wanted(item):
                found.append(item)
            else:
                self.append(item)
        return found
