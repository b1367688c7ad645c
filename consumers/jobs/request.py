"""A job in the worker's main process: what Celery says of it becomes a settlement of its delivery."""

from __future__ import annotations

import threading
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import Terminated, WorkerLostError
from celery import exceptions as celery_exceptions
from celery.utils.serialization import get_pickled_exception
from celery.worker import state
from celery.worker.request import Request

from ackline.consumers.handling import HANDLED, Settlement, nameable
from ackline.consumers.jobs import ending
from ackline.consumers.jobs.job import PARKED, failing_for, policy_of
from ackline.consumers.jobs.message import JobMessage
from ackline.infra import wire

_LEFT = (celery_exceptions.Ignore, celery_exceptions.Retry, Terminated)
#: So that one of two threads answers a delivery: the main one, or that which ends what runs beyond the grace.
_answering = threading.Lock()


def active() -> list[JobRequest]:
    """What runs now and has no answer yet. For any thread: to iterate over Celery's set is for the main one alone."""
    found = [reference() for reference in list(state.active_requests.data)]
    return [request for request in found if request is not None and not request.acknowledged]


class JobRequest(Request):  # type: ignore[misc]
    """Settles its delivery once: what Celery's own code wants to ack or reject after that has no effect."""

    _message: JobMessage
    acknowledged: bool

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Its process begins with it."""
        self._message.began = time_accepted
        super().on_accepted(pid, time_accepted)

    def adopt(self, message: JobMessage) -> bool:
        """Take what RabbitMQ delivered again for its delivery, if it is the same try; whether it did."""
        mine = self._message
        if self.acknowledged or mine.queue != message.queue or mine.try_ != message.try_:
            return False
        before, mine.delivery = mine.delivery, message.delivery
        if before.is_current:  # the broker has lost its patience with it (4.3 keeps the channel), or it came twice
            before.source.finish(before)
        return True

    def cannot_begin(self, error: BaseException) -> None:
        """No process can be given it."""
        self._settle(ending.dead(self._message, nameable(error), f"it cannot be begun: {nameable(error)!r}"))
        state.task_ready(self)

    def acknowledge(self) -> None:
        """It is over, and well."""
        self._settle(ending.handled(self._message))

    def reject(self, requeue: bool = False) -> None:
        """It is over, and was not to be run."""
        error = celery_exceptions.Reject("rejected by the worker", requeue)
        if requeue:
            self._settle(ending.requeued(self._message, error))
        else:
            self._settle(ending.dead(self._message, error, "rejected by the worker"))

    def give_back(self) -> None:
        """It returns to its queue, and whatever becomes of it here is of no account."""
        if self._is_first_answer():
            self._already_cancelled = True
            delivery = self._message.delivery
            delivery.source.give_back(delivery)

    def on_retry(self, exc_info: Any) -> None:
        """Its process has published it once more."""
        retry = _raised(exc_info)
        left = retry.when if isinstance(retry.when, int | float) else 0.0
        error = nameable(retry.exc or retry)
        self._message.goes_on = retry.message == PARKED
        self._settle(ending.retried(self._message, error, wire.due_in(left)))
        super().on_retry(exc_info)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """It raised, ran into its hard limit, or lost its process."""
        if self._already_cancelled or self._already_revoked:
            return
        error = _raised(exc_info)
        if isinstance(error, SystemExit | KeyboardInterrupt):
            exc_info = self._worker_lost_info(error)
            error = _raised(exc_info)
        if isinstance(error, celery_exceptions.Reject) and error.requeue:
            self._settle(ending.requeued(self._message, nameable(error)))
        elif not isinstance(error, _LEFT) and not (isinstance(error, WorkerLostError) and self._success_was_stored()):
            self._fail(nameable(error), str(exc_info.traceback))
        if isinstance(error, MemoryError | celery_exceptions.BackendStoreError):
            # Celery would end the worker for the first, and wait for the database once more for the other.
            state.task_ready(self)
            if isinstance(error, MemoryError):
                self.task.backend.mark_as_failure(self.id, error, request=self._context, store_result=self.store_errors)
        else:
            if isinstance(error, celery_exceptions.Reject) and not error.requeue:  # of which Celery stores nothing
                self.task.backend.mark_as_failure(
                    self.id, nameable(error), request=self._context, store_result=self.store_errors
                )
            super().on_failure(exc_info, send_failed_event, return_ok)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Somebody revoked it, which is a discarding by a person; or it expired here."""
        error = celery_exceptions.TaskRevokedError(reason)
        trail = self._message.trail
        if expired or trail.redrive is not None or trail.track:  # whose end somebody waits for
            self._settle(ending.dead(self._message, error, f"it was {reason} before it ended"))
        else:
            self._settle(HANDLED)
        if expired:  # Celery would refuse it when it is sent again, too
            state.revoked.discard(self.id)
        super()._announce_revoked(reason, terminated, signum, expired)

    def _fail(self, error: BaseException, traceback: str) -> None:
        headers = self._request_dict
        attempt = self._message.trail.attempt
        policy = self.task.retry_policy if hasattr(self.task, "retry_policy") else None
        if policy is not None:
            policy = policy_of(self.task).at_most(headers.get(wire.ATTEMPTS))
        reason = ending.reason_of(error, attempt, policy, failing_for(headers))
        self._settle(ending.dead(self._message, error, reason, traceback))

    def _settle(self, settlement: Settlement) -> None:
        if self._is_first_answer():
            self._message.settle(self._message, settlement)

    def _is_first_answer(self) -> bool:
        with _answering:
            answered, self.acknowledged = self.acknowledged, True
        return not answered


def _raised(exc_info: Any) -> Any:
    """What was raised, out of how it came from another process."""
    error = exc_info.exception
    return get_pickled_exception(error.exc if isinstance(error, ExceptionWithTraceback) else error)
