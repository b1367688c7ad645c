"""Watching messages until they are final: one look at the database for all that are watched, whoever watches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Generic, Protocol, TypeVar

from ackline.infra.errors import AcklineError
from ackline.producer.status import Asked

log = logging.getLogger(__name__)

#: Seconds between looks.
LOOK_SECONDS = 0.3
#: Seconds of silence after which a watcher is told that nothing happened, so that no proxy takes the stream for dead.
QUIET_SECONDS = 15.0
#: Watchers of one process at most: each is an open connection.
MAX_WATCHERS = 1000


class Watched(Protocol):
    """What is known of a message, or of a job."""

    @property
    def is_final(self) -> bool:
        """Whether nothing changes any more."""

    def model_dump_json(self) -> str:
        """As it is told."""


Status = TypeVar("Status", bound=Watched)


class Watcher(Generic[Status]):
    """One who watches a message. Belongs to the event loop."""

    __slots__ = ("asked", "changed", "status")

    def __init__(self, asked: Asked, status: Status) -> None:
        self.asked = asked
        self.status = status
        self.changed = asyncio.Event()


class Watching(Generic[Status]):
    """All watchers of a process. Nothing looks while there are none."""

    def __init__(self, look: Callable[[Collection[Asked]], Mapping[Asked, Status]]) -> None:
        """look: what is known of these messages; blocks, so it is called in a thread."""
        self._look = look
        self._watchers: set[Watcher[Status]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._closed = False
        self._failing = False

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another watcher."""
        return len(self._watchers) >= MAX_WATCHERS

    def add(self, asked: Asked, status: Status) -> Watcher[Status]:
        """Watch a message whose *status* is known to be so now. `remove` it in the end."""
        watcher = Watcher(asked, status)
        self._watchers.add(watcher)
        if self._looking is None and not self._closed:
            self._looking = asyncio.create_task(self._keep_looking())
        return watcher

    def remove(self, watcher: Watcher[Status]) -> None:
        """It watches no more."""
        self._watchers.discard(watcher)

    async def changes(self, watcher: Watcher[Status]) -> AsyncIterator[Status | None]:
        """The status at once, and again each time that it has changed; None after every `QUIET_SECONDS` without.

        Ends after a final status, or when the gateway stops.
        """
        while True:
            status = watcher.status
            yield status
            while not self._closed and not status.is_final and watcher.status == status:
                try:
                    await asyncio.wait_for(watcher.changed.wait(), QUIET_SECONDS)
                except TimeoutError:
                    yield None
                watcher.changed.clear()
            if status.is_final or self._closed:
                return

    def close(self) -> None:
        """End all streams now."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
        for watcher in self._watchers:
            watcher.changed.set()

    async def _keep_looking(self) -> None:
        while self._watchers:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                found = await asyncio.to_thread(self._look, {watcher.asked for watcher in self._watchers})
            except Exception as error:
                self._note_failure(error)
                continue
            self._failing = False
            for watcher in self._watchers:
                status = found.get(watcher.asked, watcher.status)
                if status != watcher.status:
                    watcher.status = status
                    watcher.changed.set()
        self._looking = None  # nothing is awaited since the look at the watchers, so that none was added in between

    def _note_failure(self, error: Exception) -> None:
        """Streams stay when the database is away, and go on when it is back."""
        if not self._failing:
            bug = None if isinstance(error, AcklineError) else error
            log.error("watched messages show no changes: %s Looking again until it works.", error, exc_info=bug)
        self._failing = True
