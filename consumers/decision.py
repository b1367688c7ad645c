"""What becomes of a delivery: one pure function from what the handler did to a decision."""

from __future__ import annotations

from dataclasses import dataclass

from ackline.consumers.retry import RetryPolicy
from ackline.infra.durations import seconds, written
from ackline.infra.names import retry_tier


class RetryLater(Exception):
    """Raise it in a handler to have the message again after *delay* ("30s", "5m", or seconds).

    Counts as an attempt, and ends where the policy's attempts and its `give_up_after` do.
    """

    #: Seconds; None in a subclass that sets none: as the policy says.
    delay: float | None = None

    def __init__(self, delay: str | float, reason: str = "asked to be retried later") -> None:
        super().__init__(reason)
        self.delay = seconds(delay)


class Reject(Exception):
    """The delivery goes to review, at once. Raise it in a handler with a *reason* that a person understands."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)

    @property
    def reason(self) -> str:
        """Why, for a person."""
        return str(self) or type(self).__name__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reject) and self.reason == other.reason

    def __hash__(self) -> int:
        return hash(self.reason)


class InvalidBody(Reject):
    """The body is not what the contract says, or no contract of the consumer is for its type: no handler was run."""


class AlreadyHandled(Exception):
    """Raised by middleware for a message that has been handled before: it is acked, and no handler is run."""


class Park(Exception):
    """The delivery comes back after *delay*, rounded up to a retry tier, as if it had not been tried.

    Raised by middleware when now is not the time to run the handler, or by a handler that breaks off as the worker
    stops. No attempt is counted or recorded, and nothing bounds how often, so the cause must be one that passes.
    """

    def __init__(self, delay: str | float, reason: str = "parked") -> None:
        super().__init__(reason)
        self.delay = seconds(delay)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Park) and self.delay == other.delay

    def __hash__(self) -> int:
        return hash(self.delay)


@dataclass(frozen=True, slots=True)
class Ack:
    """The delivery is handled."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The delivery comes back after *delay* seconds, rounded up to a retry tier."""

    delay: float


@dataclass(frozen=True, slots=True)
class Failure:
    """A try of the handler that raised *error*; it was the *attempt*-th, counted from 1.

    failing_for: seconds since the first one failed; 0 when this is the first.
    """

    error: BaseException
    attempt: int
    failing_for: float = 0.0


Decision = Ack | Retry | Reject | Park


def decide(failure: Failure | None, policy: RetryPolicy, chance: float = 0.0) -> Decision:
    """What becomes of a delivery whose handler failed so, or did not (None).

    chance: at random in [0, 1), for the jitter of the policy.
    """
    if failure is None:
        return Ack()
    error = failure.error
    if isinstance(error, AlreadyHandled):
        return Ack()
    if isinstance(error, Reject | Park):
        return error
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if not isinstance(error, RetryLater) and not policy.retries(error):
        return Reject(f"not retried: {said}")
    tries = "1 attempt" if failure.attempt == 1 else f"{failure.attempt} attempts"
    if failure.attempt >= policy.attempts:
        return Reject(f"failed after {tries}: {said}")
    asked = error.delay if isinstance(error, RetryLater) else None
    delay = policy.delay(failure.attempt, chance) if asked is None else asked
    budget = policy.give_up_after
    if budget is not None and failure.failing_for + max(delay, retry_tier(delay)[1]) > budget:
        return Reject(f"given up after {tries}, for another would be later than {written(budget)}: {said}")
    return Retry(delay)
