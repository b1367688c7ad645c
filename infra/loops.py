"""Where a link runs: on an I/O thread of its own, or on the asyncio event loop of a service.

A thread serves any number of threads, and keeps heartbeats going whatever they do. The asyncio loop serves the tasks of
that loop, without a hop from one thread to another for each message; a task that blocks the loop holds it up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from pika.adapters.select_connection import IOLoop

from ackline.infra.connection import AsyncioConnection, ThreadConnection

log = logging.getLogger(__name__)


class Loop(Protocol):
    """An event loop that runs one link. `call` may be used on any thread, all else on the loop."""

    def connection(self, parameters: Any, **callbacks: Any) -> Any:
        """Make a connection that runs on this loop; see `pika.SelectConnection`."""

    def start(self, begin: Callable[[], None], again: Callable[[], None], abandon: Callable[[], None]) -> None:
        """Run *begin* on the loop, then what `call` and `later` are given.

        again: called after an error of ours. abandon: called when the loop ends before the link has called `end`.
        """

    @property
    def here(self) -> bool:
        """Whether the caller is on the loop."""

    def call(self, function: Callable[[], None]) -> None:
        """Have *function* run soon. Does nothing before `start`, and when the loop has ended."""

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Have *function* run in *seconds*."""

    def end(self) -> None:
        """The link needs it no more."""

    def join(self, timeout: float) -> bool:
        """On another thread: wait *timeout* seconds for `end`, and return whether it came."""

    async def ended(self, timeout: float) -> bool:
        """`join` for asyncio, on the loop itself if that is asyncio's."""


class ThreadLoop:
    """pika's event loop, on a daemon thread that runs nothing else."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._ending = False
        # Made at the start: a link that is never used holds no file descriptors.
        self._loop: Any = None
        self._thread: threading.Thread | None = None

    def connection(self, parameters: Any, **callbacks: Any) -> ThreadConnection:
        """See `Loop`."""
        return ThreadConnection(parameters, custom_ioloop=self._loop, **callbacks)

    def start(self, begin: Callable[[], None], again: Callable[[], None], abandon: Callable[[], None]) -> None:
        """See `Loop`; this one never ends early."""
        self._loop = IOLoop()
        run, name = partial(self._run, begin, again), f"ackline-io {self._name}"
        self._thread = threading.Thread(target=run, name=name, daemon=True)
        self._thread.start()

    @property
    def here(self) -> bool:
        """See `Loop`."""
        return self._thread is not None and threading.get_ident() == self._thread.ident

    def call(self, function: Callable[[], None]) -> None:
        """See `Loop`."""
        with self._lock:
            if self._loop is not None:
                self._loop.add_callback_threadsafe(function)

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """See `Loop`."""
        self._loop.call_later(seconds, function)

    def end(self) -> None:
        """See `Loop`."""
        self._ending = True
        self._loop.stop()

    def join(self, timeout: float) -> bool:
        """See `Loop`."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    async def ended(self, timeout: float) -> bool:
        """See `Loop`."""
        return await asyncio.to_thread(self.join, timeout)

    def _run(self, begin: Callable[[], None], again: Callable[[], None]) -> None:
        begin()
        while not self._ending:
            try:
                self._loop.start()
            except Exception:
                # A bug of ours in a callback. The broker still holds everything unacked: begin again.
                log.exception("%s: the I/O thread failed", self._name)
                with contextlib.suppress(Exception):
                    again()
        with self._lock:
            loop, self._loop = self._loop, None
        loop.close()


class AsyncioLoop:
    """The asyncio event loop that runs now. When that loop cancels its tasks, as `asyncio.run` does, the link ends."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._ended = asyncio.Event()
        self._ended_for_threads = threading.Event()
        self._task: asyncio.Task[None] | None = None

    def connection(self, parameters: Any, **callbacks: Any) -> AsyncioConnection:
        """See `Loop`."""
        return AsyncioConnection(parameters, custom_ioloop=self._loop, **callbacks)

    def start(self, begin: Callable[[], None], again: Callable[[], None], abandon: Callable[[], None]) -> None:
        """See `Loop`; errors of ours are the asyncio loop's to report."""
        self._task = self._loop.create_task(self._live(abandon), name="ackline-io")
        begin()

    async def _live(self, abandon: Callable[[], None]) -> None:
        try:
            await self._ended.wait()
        except asyncio.CancelledError:
            abandon()
            raise

    @property
    def here(self) -> bool:
        """See `Loop`."""
        return threading.get_ident() == self._thread

    def call(self, function: Callable[[], None]) -> None:
        """See `Loop`."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            (self._loop.call_soon if self.here else self._loop.call_soon_threadsafe)(function)

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """See `Loop`."""
        self._loop.call_later(seconds, function)

    def end(self) -> None:
        """See `Loop`."""
        self._ended.set()
        self._ended_for_threads.set()

    def join(self, timeout: float) -> bool:
        """See `Loop`."""
        return self._ended_for_threads.wait(timeout)

    async def ended(self, timeout: float) -> bool:
        """See `Loop`."""
        try:
            await asyncio.wait_for(self._ended.wait(), timeout)
        except TimeoutError:
            return False
        return True
