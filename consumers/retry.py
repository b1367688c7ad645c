"""Retries: from a bug to the review desk.

A handler raises. Its delivery is *published again* to a retry tier (`ackline.retry.5s`, …) with the consumer's name as
routing key and the failure in its headers; when that publish is confirmed, and only then, the original is acked. The
tier is a queue whose messages expire after its delay; the broker then hands them, at least once, to `ackline.return`,
which brings them back to the one consumer that failed. So nothing is held in a worker's memory, a worker may be
killed at any point, and a wait shows in the management UI as a message in a queue whose name says how long.

After `attempts` tries, or at once when the handler raises `Reject`, the delivery is published to `ackline.dead` in
the same way, with the reason, the history and the traceback, and the reviewer takes it into the database. A crash
between a confirm and the ack leaves both, which is a duplicate; no crash leaves neither.

If the publish is not confirmed the original stays unacked and the publish is tried again. If the headers leave no room
for ours, the original is rejected, and the broker's own dead-lettering takes it to review without the error.
"""

from __future__ import annotations

from dataclasses import dataclass

from ackline.infra.durations import seconds
from ackline.infra.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a handler is tried and how long it waits between: made by `exponential` or `fixed`.

    attempts: tries of the handler at most, the first included. first, cap: seconds. factor: from one delay to the next.
    """

    attempts: int
    first: float
    cap: float
    factor: float = 2.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigurationError(f"attempts is {self.attempts}; the first try counts, so it is at least 1.")

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the *attempt*-th try failed, before it is rounded up to a tier."""
        # The exponent is bounded because a float overflows beyond 2**1023.
        return float(min(self.cap, self.first * self.factor ** min(attempt - 1, 1000)))


def exponential(attempts: int = 5, first: str | float = "1s", cap: str | float = "5m") -> RetryPolicy:
    """Retry after *first*, then twice as long each time, *cap* at most; *attempts* tries in all."""
    return RetryPolicy(attempts, seconds(first), seconds(cap))


def fixed(attempts: int = 5, delay: str | float = "5s") -> RetryPolicy:
    """Retry after the same *delay* each time; *attempts* tries in all."""
    return RetryPolicy(attempts, seconds(delay), seconds(delay), factor=1.0)
