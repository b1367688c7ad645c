"""Watching what changes: one look at the database a second for all who watch, and none while nobody does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import NamedTuple

from ackline.infra.errors import AcklineError

log = logging.getLogger(__name__)

#: Seconds between looks.
LOOK_SECONDS = 1.0
#: Seconds of silence after which a watcher is told that nothing happened, so that no proxy takes the stream for dead.
QUIET_SECONDS = 15.0
#: Watchers of one process at most: each is an open connection.
MAX_WATCHERS = 500


class Event(NamedTuple):
    """What is known of one thing now: what kind of thing it is, and JSON."""

    name: str
    data: str


#: What is known of everything that is watched, by a key of each thing.
Known = Mapping[str, Event]


class Watcher:
    """One who watches. Belongs to the event loop."""

    __slots__ = ("changed", "told")

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.told: dict[str, Event] = {}


class Watching:
    """All watchers of a process."""

    def __init__(self, look: Callable[[], Known]) -> None:
        """look: what is known now; blocks, so it is called in a thread."""
        self._look = look
        self._known: Known = {}
        self._watchers: set[Watcher] = set()
        self._looking: asyncio.Task[None] | None = None
        self._failing = False
        self._closed = False

    @property
    def is_full(self) -> bool:
        """Whether nobody more can watch."""
        return len(self._watchers) >= MAX_WATCHERS

    async def changes(self) -> AsyncGenerator[list[Event], None]:
        """What is known, and then each time what of it has changed; an empty list after `QUIET_SECONDS` without.

        Ends when the desk stops.
        """
        watcher = Watcher()
        self._watchers.add(watcher)
        if self._looking is None and not self._closed:
            self._looking = asyncio.create_task(self._keep_looking())
        try:
            while not self._closed:
                news = {key: event for key, event in self._known.items() if watcher.told.get(key) != event}
                if news:
                    watcher.told.update(news)
                    yield list(news.values())
                    continue
                try:
                    await asyncio.wait_for(watcher.changed.wait(), QUIET_SECONDS)
                    watcher.changed.clear()
                except TimeoutError:
                    yield []
        finally:
            self._watchers.discard(watcher)

    def close(self) -> None:
        """End all streams now."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
        self._wake()

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.changed.set()

    async def _keep_looking(self) -> None:
        while self._watchers:
            try:
                found = await asyncio.to_thread(self._look)
                self._failing = False
                if found != self._known:
                    self._known = found
                    self._wake()
            except Exception as error:
                self._note_failure(error)
            await asyncio.sleep(LOOK_SECONDS)
        # Who begins to watch later is told by a new look first, not by this one's.
        self._known = {}
        self._looking = None

    def _note_failure(self, error: Exception) -> None:
        """Streams stay when the database is away, and go on when it is back."""
        if not self._failing:
            bug = None if isinstance(error, AcklineError) else error
            log.error("watchers are told of no changes: %s Looking again until it works.", error, exc_info=bug)
        self._failing = True
