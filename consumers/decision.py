"""What becomes of a delivery: one pure function from what the handler did to a decision."""

from __future__ import annotations

from dataclasses import dataclass

from ackline.consumers.retry import RetryPolicy
from ackline.infra.durations import seconds


class RetryLater(Exception):
    """Raise it in a handler to have the message again after *delay* ("30s", "5m", or seconds). Counts as an attempt."""

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


@dataclass(frozen=True, slots=True)
class Ack:
    """The delivery is handled."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The delivery comes back after *delay* seconds, rounded up to a retry tier."""

    delay: float


@dataclass(frozen=True, slots=True)
class Failure:
    """A try of the handler that raised *error*; it was the *attempt*-th, counted from 1."""

    error: BaseException
    attempt: int


Decision = Ack | Retry | Reject


def decide(failure: Failure | None, policy: RetryPolicy) -> Decision:
    """What becomes of a delivery whose handler failed so, or did not (None)."""
    if failure is None:
        return Ack()
    error = failure.error
    if isinstance(error, Reject):
        return error
    if failure.attempt >= policy.attempts:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        tries = "1 attempt" if failure.attempt == 1 else f"{failure.attempt} attempts"
        return Reject(f"failed after {tries}: {said}")
    if isinstance(error, RetryLater) and error.delay is not None:
        return Retry(error.delay)
    return Retry(policy.delay(failure.attempt))
