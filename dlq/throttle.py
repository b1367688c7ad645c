"""How often a password may be tried: five times at once, then with a growing pause, for each name by itself.

Kept in memory, in each process: what it protects is slow by itself (argon2id). Nobody is locked out by others for
longer than the longest pause.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

#: Tries that cost no pause.
FREE = 5
#: Seconds of the first pause, which doubles with each try, and of the longest.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
#: Seconds after the last pause when all is forgotten.
FORGET = 900.0
#: Names that are remembered; who tries more loses the oldest, after 10,000 slow hashes.
_MOST_NAMES = 10_000


class Throttle:
    """Safe on any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        #: By name: tries that did not succeed, and when the next one may be.
        self._tries: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def enter(self, name: str) -> float:
        """Count a try for *name* and return 0, or the seconds until there may be one.

        It counts before its end is known, so that a hundred at once are no way round.
        """
        with self._lock:
            now = self._clock()
            tried, not_before = self._tries.get(name, (0, now))
            if now < not_before:
                return not_before - now
            if now > not_before + FORGET:
                tried = 0
            pause = min(FIRST_PAUSE * 2.0 ** min(tried - FREE + 1, 10), LONGEST_PAUSE) if tried + 1 >= FREE else 0.0
            self._tries[name] = tried + 1, now + pause
            self._tries.move_to_end(name)
            if len(self._tries) > _MOST_NAMES:
                self._tries.popitem(last=False)
            return 0.0

    def succeeded(self, name: str) -> None:
        """Forget the tries for *name*."""
        with self._lock:
            self._tries.pop(name, None)
