"""Work on a thread of its own that goes on for as long as something else is the case."""

from __future__ import annotations

import threading
from collections.abc import Callable

Work = Callable[[threading.Event], None]
"""Runs until the event is set."""


class Companion:
    """Has *work* done between `start` and `stop`, any number of times. For one thread."""

    def __init__(self, work: Work, name: str) -> None:
        """name: of the thread."""
        self._work = work
        self._name = name
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, unless it goes on already."""
        if self._thread is None or self._stopping.is_set():
            self._stopping = threading.Event()  # of its own: the last one may still be coming to its end
            self._thread = threading.Thread(target=self._work, args=(self._stopping,), name=self._name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Have it end soon."""
        self._stopping.set()

    def join(self, timeout: float) -> None:
        """Wait up to *timeout* seconds until it has ended."""
        if self._thread is not None:
            self._thread.join(timeout)
