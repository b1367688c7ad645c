"""Places for messages that have no confirm yet: what bounds a publisher's memory and the broker's burden."""

from __future__ import annotations

import asyncio
import threading
import time


class Window:
    """*size* places, for any number of threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        #: Places that are free now.
        self.free = size
        self._room = threading.Condition(threading.Lock())
        self._waiting = 0

    def take(self, deadline: float) -> bool:
        """Take a place; waits for one until *deadline* (`time.monotonic`), and returns whether it was had."""
        with self._room:
            while self.free <= 0:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._waiting += 1
                self._room.wait(left)
                self._waiting -= 1
            self.free -= 1
            return True

    def give(self, places: int) -> None:
        """Give *places* back: one call for all confirms that came together, so that threads are woken once."""
        with self._room:
            self.free += places
            if self._waiting:
                self._room.notify(places)


class TaskWindow:
    """*size* places, for the tasks of one asyncio loop. First come, first served."""

    def __init__(self, size: int) -> None:
        self._places = asyncio.Semaphore(size)

    async def take(self, deadline: float) -> bool:
        """See `Window.take`. A task that is cancelled meanwhile keeps no place."""
        if not self._places.locked():
            return await self._places.acquire()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await self._places.acquire()
        except TimeoutError:
            return False

    def give(self, places: int) -> None:
        """See `Window.give`."""
        for _ in range(places):
            self._places.release()
