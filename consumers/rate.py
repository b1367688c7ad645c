"""How many messages a consumer begins in a time: a token bucket, and what waits for its tokens."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Sequence

from ackline.consumers.delivery import Delivery
from ackline.infra.errors import ConfigurationError

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(s|m|h)\Z")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}

#: Messages a second at least. A message waits for its token unacked, and the broker's `consumer_timeout` (30 min by
#: default) runs from its delivery: at 10 an hour it waits for 6 min.
SLOWEST = 10 / 3600
#: Seconds' worth of messages that wait for their tokens at most: enough not to wait for the broker.
HELD_SECONDS = 2.0
#: Seconds between two looks for new tokens at least: a high rate costs a hundred wake-ups a second, not one a message.
_TICK = 0.01
#: What sums of fractions may lack of a whole token.
_ROUNDING = 1e-9


def per_second(rate: str) -> float:
    """Messages a second: of "100/s", "10/m" or "1000/h". Raises `ConfigurationError` for anything else."""
    match = _RATE.match(rate.strip()) if isinstance(rate, str) else None
    if match is None:
        raise ConfigurationError(f"{rate!r} is no rate: write '100/s', '10/m' or '1000/h'.")
    return float(match[1]) / _UNITS[match[2]]


class Bucket:
    """The tokens of one consumer in one process: *rate* come in a second, one second's worth (at least 1) is kept.

    Not thread-safe: the I/O thread's own. All times are of the same monotonic clock.
    """

    def __init__(self, rate: float, now: float) -> None:
        """rate: messages a second. Raises `ConfigurationError` for one that would hold messages for too long."""
        if rate < SLOWEST:
            raise ConfigurationError(
                f"A rate of {rate * 3600:.3g} messages an hour in each process is too slow: a message would wait for "
                f"its turn for longer than RabbitMQ lets it. {SLOWEST * 3600:g} an hour is the least; for what is "
                "rarer, publish it when it is due."
            )
        self._rate = rate
        self._most = max(rate, 1.0)
        self._tokens = self._most
        self._at = now

    @property
    def prefetch(self) -> int:
        """Messages to hold at most, so that none waits long for its token."""
        return max(1, int(self._rate * HELD_SECONDS))

    def take(self, n: int, now: float) -> int:
        """Take up to *n* tokens; how many there were: so many messages may begin."""
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate)
        self._at = now
        granted = min(n, int(self._tokens + _ROUNDING))
        self._tokens -= granted
        return granted

    def wait(self, now: float) -> float:
        """Seconds until it is worth while to take again; 0 when there is a token."""
        missing = 1 - self._tokens - (now - self._at) * self._rate
        return max(missing / self._rate, _TICK) if missing > _ROUNDING else 0.0


class Throttle:
    """Hands deliveries on, in order, as the tokens of *bucket* allow. The I/O thread's own."""

    def __init__(
        self,
        bucket: Bucket,
        submit: Callable[[list[Delivery]], None],
        later: Callable[[float, Callable[[], None]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """submit: takes deliveries that may begin. later: runs a function in so many seconds, on this thread."""
        self._bucket = bucket
        self._submit = submit
        self._later = later
        self._clock = clock
        self._waiting: deque[Delivery] = deque()
        self._timed = False

    def add(self, deliveries: Sequence[Delivery]) -> None:
        """These were delivered."""
        self._waiting.extend(deliveries)
        if not self._timed:
            self._release()

    def withdraw(self, wanted: Callable[[Delivery], bool] = lambda delivery: True) -> list[Delivery]:
        """Take back those that wait and that *wanted* says."""
        found = [delivery for delivery in self._waiting if wanted(delivery)]
        self._waiting = deque(delivery for delivery in self._waiting if not wanted(delivery))
        return found

    def _release(self) -> None:
        self._timed = False
        waiting, now = self._waiting, self._clock()
        while waiting and not waiting[0].is_current:  # the connection was lost: it comes again
            waiting.popleft()
        begun = [waiting.popleft() for _ in range(self._bucket.take(len(waiting), now))]
        if begun:
            self._submit(begun)
        if waiting:
            self._timed = True
            self._later(self._bucket.wait(now), self._release)
