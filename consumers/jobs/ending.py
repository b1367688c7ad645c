"""How a job ends, as a `Settlement`: what is published and reported before its delivery is acked.

| what happened | ends |
| --- | --- |
| it returned; `Ignore` | acked; `handled` is reported of tracked and redriven ones |
| it is to be tried again | published by its process before; `retried` is reported; acked |
| it raised, and is not to be tried again; `Reject` | in review |
| it ran into its hard limit, or its process died | in review, after this one run |
| nobody has a job of its name; no job at all; expired | in review, without a run |
| `Reject(requeue=True)` | once more in a second, as a further attempt, as often as the broker would deliver it |
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celery.exceptions import BackendStoreError
from celery.exceptions import Reject as CeleryReject
from kombu.exceptions import EncodeError

from ackline.consumers.decision import Failure, Reject, decide
from ackline.consumers.handling import HANDLED, Settlement, report_of, said_of_dead, settle_by_publishing
from ackline.consumers.jobs.message import DELIVERIES, JobMessage
from ackline.consumers.retry import RetryPolicy
from ackline.infra import wire
from ackline.infra.names import DEAD, RETRY_TIERS, tier_within
from ackline.infra.topology import DELIVERY_LIMIT

#: Seconds after which it is asked again whether another worker has brought a job to its end.
_ASK_SECONDS = 15.0


def handled(message: JobMessage) -> Settlement:
    """It succeeded."""
    trail = message.trail
    if not trail.track and trail.redrive is None:
        return HANDLED
    return Settlement(report=report_of("handled", message.worker, message.delivery, trail))


def retried(message: JobMessage, error: BaseException, due: datetime) -> Settlement:
    """It waits for another try, as which its process has published it."""
    if not message.trail.track:
        return HANDLED
    said = f"{type(error).__name__}: {error}"
    return Settlement(report=report_of("retried", message.worker, message.delivery, message.trail, error=said, due=due))


def parked(message: JobMessage, seconds: float) -> Settlement:
    """It is not due for so many seconds."""
    return settle_by_publishing(message.delivery, message.trail, tier_within(seconds), message.queue)


def awaiting_another(message: JobMessage) -> Settlement:
    """Another worker runs it: parked, to ask again. A job that ends its worker, over and over, goes to review."""
    if message.deliveries > DELIVERY_LIMIT:
        error = WorkerLostError("the worker was lost, over and over")
        return dead(message, error, f"its worker died or lost it {message.deliveries} times")
    extra = {DELIVERIES: message.deliveries}
    return settle_by_publishing(message.delivery, message.trail, tier_within(_ASK_SECONDS), message.queue, extra)


def requeued(message: JobMessage, error: BaseException) -> Settlement:
    """It asks to be delivered again."""
    if message.trail.attempt > DELIVERY_LIMIT:
        return dead(message, error, f"asked to be delivered again {DELIVERY_LIMIT} times")
    trail = message.trail.failed(wire.attempt_of(message.trail.attempt, message.worker, error))
    trail = replace(trail, attempt=trail.attempt + 1)
    return settle_by_publishing(message.delivery, trail, RETRY_TIERS[0][0], message.queue)


def dead(message: JobMessage, error: BaseException, reason: str, traceback: str | None = None) -> Settlement:
    """To review, with the *error* as the last of its history and the *traceback* of its process."""
    trail = message.trail.failed(wire.attempt_of(message.trail.attempt, message.worker, error))
    extra = said_of_dead(reason, traceback)
    report = None
    if trail.track:
        report = report_of("dead", message.worker, message.delivery, trail, error=extra[wire.REASON])
    return settle_by_publishing(message.delivery, trail, DEAD, message.queue, extra, report)


def reason_of(error: BaseException, attempt: int, policy: RetryPolicy | None, failing_for: float = 0.0) -> str:
    """Why a job whose try ended so goes to review, for a person. policy: its own, if it has one."""
    if isinstance(error, Reject):
        return error.reason
    if isinstance(error, CeleryReject):
        return f"rejected: {error.reason}"
    if isinstance(error, TimeLimitExceeded):
        return f"it ran for longer than its time limit of {error.args[0] if error.args else '?'} s, and was killed"
    if isinstance(error, WorkerLostError):
        return f"its process died while it ran: {error}"
    if isinstance(error, EncodeError | BackendStoreError):
        return f"it ran to its end, but its result cannot be stored: {error}"
    if policy is not None:
        decision = decide(Failure(error, attempt, failing_for), policy)
        if isinstance(decision, Reject):
            return decision.reason
    if isinstance(error, SoftTimeLimitExceeded):
        said = "it ran for longer than its soft time limit"
    else:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return said if attempt == 1 else f"failed after {attempt} attempts: {said}"
