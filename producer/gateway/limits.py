"""How many messages a second: a token bucket."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Bucket:
    """A token bucket: *rate* tokens a second, as many at once, one per message. For one thread.

    A call wants one token to get in. A batch, whose length is known only once it has been read, is then charged the
    rest, if need be on credit: so a batch of any length gets in, and what follows it waits until it is paid for.
    """

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._tokens = float(rate)
        self._clock = clock
        self._at = clock()

    def admit(self) -> int:
        """Take a token for a call. Returns 0, or the seconds after which there will be one."""
        return self._spend(1, least=1)

    def charge(self, tokens: int) -> int:
        """Take more tokens for a call that was admitted. Returns 0, or the seconds to wait for an earlier debt."""
        return self._spend(tokens, least=0)

    def _spend(self, tokens: int, least: int) -> int:
        now = self._clock()
        self._tokens = min(self.rate, self._tokens + (now - self._at) * self.rate)
        self._at = now
        if self._tokens < least:
            return max(1, math.ceil((least - self._tokens) / self.rate))
        self._tokens -= tokens
        return 0
