"""How a role is told to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable


def stop_on_signal(stop: Callable[[], None]) -> None:
    """Call *stop* at the first SIGTERM or Ctrl-C; a second one ends the process at once. Call on the main thread.

    stop: must be safe in a signal handler: set an event, or put into a `SimpleQueue`.
    """

    def on_signal(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
