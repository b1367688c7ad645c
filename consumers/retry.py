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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from ackline.infra.durations import seconds
from ackline.infra.errors import ConfigurationError
from ackline.infra.names import RETRY_TIERS, retry_tier

Error: TypeAlias = type[BaseException]
#: One class of exceptions, or several.
Errors: TypeAlias = Error | tuple[Error, ...]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Which failures are retried, how often, and when: made by `exponential`, `fixed` or `schedule`.

    attempts: tries of the handler at most, the first included. delays: seconds after the first failed try, the second,
    ...; the last one for all further. jitter: see `spread`.

    retry_on, reject_on: the class of an error that is in reject_on goes to review at once; so does, when there is a
    retry_on, all that is not in it. A class stands for its subclasses too, and the most specific one decides: the first
    in the error's method resolution order that either of them names.

    give_up_after: seconds from the first failure; a retry that would come back later goes to review instead.
    """

    attempts: int
    delays: tuple[float, ...]
    jitter: bool = False
    retry_on: tuple[Error, ...] = ()
    reject_on: tuple[Error, ...] = ()
    give_up_after: float | None = None

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigurationError(f"attempts is {self.attempts}; the first try counts, so it is at least 1.")
        for named in (*self.retry_on, *self.reject_on):
            if not (isinstance(named, type) and issubclass(named, BaseException)):
                raise ConfigurationError(f"{named!r} is no class of exceptions: retry_on and reject_on take those.")
        if both := set(self.retry_on) & set(self.reject_on):
            names = ", ".join(sorted(named.__name__ for named in both))
            raise ConfigurationError(f"{names} cannot be in retry_on and in reject_on: leave it in one of them.")

    def at_most(self, attempts: int | None) -> RetryPolicy:
        """This policy with no more than so many attempts; None: as it is."""
        return self if attempts is None or attempts >= self.attempts else replace(self, attempts=attempts)

    def retries(self, error: BaseException) -> bool:
        """Whether an *error* of its class is retried at all."""
        for named in type(error).__mro__:
            if named in self.reject_on:
                return False
            if named in self.retry_on:
                return True
        return not self.retry_on

    def delay(self, attempt: int, chance: float = 0.0) -> float:
        """Seconds to wait after the *attempt*-th try failed, before they are rounded up to a tier.

        chance: at random in [0, 1), for the jitter.
        """
        delay = self.delays[min(attempt, len(self.delays)) - 1]
        return spread(delay, chance) if self.jitter else delay


def exponential(
    attempts: int = 5,
    first: str | float = "1s",
    cap: str | float = "5m",
    *,
    jitter: bool = False,
    retry_on: Errors = (),
    reject_on: Errors = (),
    give_up_after: str | float | None = None,
) -> RetryPolicy:
    """Retry after *first*, then twice as long each time, *cap* at most; *attempts* tries in all.

    The keywords are explained at `RetryPolicy`. Raises `ConfigurationError`.
    """
    most = seconds(cap)
    delays = [min(seconds(first), most)]
    while 0 < delays[-1] < most:
        delays.append(min(delays[-1] * 2, most))
    return _policy(attempts, tuple(delays), jitter, retry_on, reject_on, give_up_after)


def fixed(
    attempts: int = 5,
    delay: str | float = "5s",
    *,
    jitter: bool = False,
    retry_on: Errors = (),
    reject_on: Errors = (),
    give_up_after: str | float | None = None,
) -> RetryPolicy:
    """Retry after the same *delay* each time; *attempts* tries in all.

    The keywords are explained at `RetryPolicy`. Raises `ConfigurationError`.
    """
    return _policy(attempts, (seconds(delay),), jitter, retry_on, reject_on, give_up_after)


def schedule(
    delays: Sequence[str | float],
    *,
    jitter: bool = False,
    retry_on: Errors = (),
    reject_on: Errors = (),
    give_up_after: str | float | None = None,
) -> RetryPolicy:
    """Retry after each of *delays* in turn, so one more try than there are delays.

    The keywords are explained at `RetryPolicy`. Raises `ConfigurationError`.
    """
    waits = tuple(map(seconds, delays))
    return _policy(len(waits) + 1, waits, jitter, retry_on, reject_on, give_up_after)


def _policy(
    attempts: int,
    delays: tuple[float, ...],
    jitter: bool,
    retry_on: Errors,
    reject_on: Errors,
    give_up_after: str | float | None,
) -> RetryPolicy:
    return RetryPolicy(
        attempts,
        delays,
        jitter,
        retry_on if isinstance(retry_on, tuple) else (retry_on,),
        reject_on if isinstance(reject_on, tuple) else (reject_on,),
        None if give_up_after is None else seconds(give_up_after),
    )


def spread(delay: float, chance: float) -> float:
    """Seconds to wait instead of *delay*, so that what failed together does not all come back together.

    A wait is one of the tiers, so this chooses a tier: half of the messages wait in the one that *delay* is rounded up
    to, half in the next shorter one; where there is none, in the next longer. A delay beyond the longest tier becomes
    any between its half and its whole. chance: at random in [0, 1).
    """
    tiers = [waits for _, waits in RETRY_TIERS]
    if delay > tiers[-1]:
        return delay * (1 - chance / 2)
    own = tiers.index(retry_tier(delay)[1])
    other = own - 1 if own else 1
    return float(tiers[own if chance < 0.5 else other])
