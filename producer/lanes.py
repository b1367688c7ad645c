"""Work in lanes: each gets a few threads at most and a fair turn, so that a slow one does not hold up the others."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(slots=True)
class _Lane(Generic[Item]):
    waiting: deque[Item] = field(default_factory=deque)
    running: int = 0


class Lanes(Generic[Item]):
    """Runs *work* on items, on daemon threads that are started when there is something to do. Thread-safe."""

    def __init__(self, work: Callable[[Item], None], *, threads: int, threads_per_lane: int, waiting: int) -> None:
        """work: must not raise. waiting: items that a lane takes beside those that run."""
        self._work = work
        self._threads = threads
        self._threads_per_lane = threads_per_lane
        self._waiting = waiting
        self._lock = threading.Lock()
        self._lanes: OrderedDict[str, _Lane[Item]] = OrderedDict()
        self._running = 0
        self._closed = False

    def put(self, lane_name: str, item: Item) -> bool:
        """Have *item* worked on, in that lane. False when the lane is full: then it is not taken."""
        with self._lock:
            lane = self._lanes.get(lane_name) or _Lane()
            if self._closed or len(lane.waiting) >= self._waiting:
                return False
            self._lanes[lane_name] = lane
            lane.waiting.append(item)
            if self._running == self._threads or lane.running + len(lane.waiting) > self._threads_per_lane:
                return True  # a thread that is busy now will take it
            self._running += 1
        threading.Thread(target=self._run, name="lanes", daemon=True).start()
        return True

    def close(self) -> None:
        """Begin nothing more. What runs goes on; what waits is dropped."""
        with self._lock:
            self._closed = True

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs."""
        with self._lock:
            return self._running == 0

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            lane_name, item = taken
            try:
                self._work(item)
            finally:
                self._done(lane_name)

    def _take(self) -> tuple[str, Item] | None:
        """The next item of the lane whose turn it is; None ends the thread."""
        with self._lock:
            for lane_name, lane in self._lanes.items():
                if lane.waiting and lane.running < self._threads_per_lane and not self._closed:
                    self._lanes.move_to_end(lane_name)
                    lane.running += 1
                    return lane_name, lane.waiting.popleft()
            self._running -= 1
            return None

    def _done(self, lane_name: str) -> None:
        with self._lock:
            lane = self._lanes[lane_name]
            lane.running -= 1
            if not lane.running and not lane.waiting:
                del self._lanes[lane_name]
