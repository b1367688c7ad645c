"""The signal to handlers that the worker stops."""

from __future__ import annotations

import asyncio
import time
from _thread import allocate_lock
from collections.abc import Callable
from functools import partial

#: Seconds that a thread waits without a safe point, at which a time limit could end it.
_SLICE = 0.5


class Stopping:
    """Set once, when the worker begins to stop. Any number of threads and event loops may wait for it.

    No lock is shared by those who wait: a time limit may interrupt them anywhere.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._wakers: set[Callable[[], object]] = set()

    def set(self) -> None:
        """Wake all who wait."""
        if not self.is_set:
            self.is_set = True
            for wake in list(self._wakers):
                wake()

    def wait(self, seconds: float) -> bool:
        """Block for *seconds*, or until it is set. Whether it is."""
        end = time.monotonic() + seconds
        gate = allocate_lock()
        gate.acquire()
        wake = gate.release
        self._wakers.add(wake)
        try:
            # In this order, here and below: who sets it either finds the waker, or did so before the look.
            while not self.is_set and (left := end - time.monotonic()) > 0:
                gate.acquire(timeout=min(left, _SLICE))
        finally:
            self._wakers.discard(wake)
        return self.is_set

    async def sleep(self, seconds: float) -> bool:
        """`wait` for a coroutine."""
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        wake = partial(loop.call_soon_threadsafe, woken.set)
        self._wakers.add(wake)
        try:
            if not self.is_set:
                await asyncio.wait_for(woken.wait(), seconds)
        except TimeoutError:
            pass
        finally:
            self._wakers.discard(wake)
        return self.is_set


#: Of handlers that run without a worker.
NEVER = Stopping()
