"""Which deliveries of a shard may be handled now: of each key the first one, and no other before that is done with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from itertools import chain
from typing import Generic, TypeVar

T = TypeVar("T")


class KeyLanes(Generic[T]):
    """One lane for each key that has anything to handle. Not thread-safe: the I/O thread's own.

    The first of a lane has the way: it is handled, or waits for its next try. The others wait behind it, in order.
    """

    def __init__(self) -> None:
        self._lanes: dict[Hashable, deque[T]] = {}

    def add(self, key: Hashable, item: T) -> bool:
        """*item* came. Whether it has the way; otherwise `leave` gives it out when its turn has come."""
        lane = self._lanes.get(key)
        if lane is None:
            self._lanes[key] = deque((item,))
            return True
        lane.append(item)
        return False

    def has_way(self, key: Hashable, item: T) -> bool:
        """Whether *item* itself is the first of that lane."""
        lane = self._lanes.get(key)
        return lane is not None and lane[0] is item

    def leave(self, key: Hashable) -> T | None:
        """The first of that lane is done with. The one that has the way now; None when none waits."""
        lane = self._lanes[key]
        lane.popleft()
        if lane:
            return lane[0]
        del self._lanes[key]
        return None

    def renew(self, key: Hashable, item: T) -> None:
        """Put *item* in the place of the one that has the way."""
        self._lanes[key][0] = item

    def keep(self, wanted: Callable[[T], bool]) -> None:
        """Forget all but those that have the way and that *wanted* says."""
        self._lanes = {key: deque((lane[0],)) for key, lane in self._lanes.items() if wanted(lane[0])}

    def __iter__(self) -> Iterator[T]:
        """All of them, in no order."""
        return chain.from_iterable(self._lanes.values())

    def __bool__(self) -> bool:
        return bool(self._lanes)
