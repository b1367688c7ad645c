"""`@job`: a function that Celery runs, and what becomes of it when it raises."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial, wraps
from typing import Any, overload

from celery import Task
from celery import exceptions as celery_exceptions
from celery.utils.time import maybe_make_aware

from ackline.consumers.decision import Failure, Park, Retry, RetryLater, decide
from ackline.consumers.retry import RetryPolicy, exponential
from ackline.infra import wire
from ackline.infra.durations import seconds

#: Celery's own ways to say what is to become of a job.
_SAID = (celery_exceptions.Ignore, celery_exceptions.Reject, celery_exceptions.Retry)
#: What a `Retry` says of a job that comes back as if it had not been tried. Of what there is in one, that gets to the
#: worker's main process.
PARKED = "parked"


class Job(Task):  # type: ignore[misc]
    """A Celery task that keeps to a retry policy.

    retry_policy: what becomes of it when it raises; None: it goes to review at once, unless it raises `RetryLater`, or
    has Celery's own `autoretry_for`. job_queue: the name of its queue; None: `ackline.jobs`. track: whether its
    deliveries are accounted for by id. unique_for: seconds within which an equal one is not submitted again.
    """

    abstract = True
    Request = "ackline.consumers.jobs.request:JobRequest"
    retry_policy: RetryPolicy | None = None
    job_queue: str | None = None
    track = False
    unique_for: float | None = None

    def apply_async(self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any) -> Any:
        """Celery's. A job with `unique_for` gets the id of an equal one that was submitted within that time.

        Not where the caller gives the id, as a group, a chain and a retry do.
        """
        if self.unique_for is None or task_id is not None or self.app.conf.task_always_eager:
            return super().apply_async(args, kwargs, task_id=task_id, **options)
        from ackline.consumers.jobs import unique
        from ackline.consumers.jobs.database import engine

        return self.AsyncResult(unique.submit(engine(), self, args or (), kwargs or {}, wire.uuid7(), options))

    def progress(self, done: float, text: str = "") -> None:
        """Tell whoever watches the job that runs now how far it is: *done* from 0 to 1, and *text* for a person.

        Call it as often as you like: what comes within a second of the last is left out.
        """
        request = self.request
        if request.called_directly or time.monotonic() - vars(request).get("told_at", -1.0) < 1.0:
            return
        try:
            self.update_state(state="PROGRESS", meta={"progress": max(0.0, min(done, 1.0)), "progress_text": text})
        finally:
            request.told_at = time.monotonic()  # the second begins here, however long the database took

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """As `delay`, once the transaction of Django's default connection is committed; see `apply_async_on_commit`."""
        self.apply_async_on_commit(args, kwargs)

    def apply_async_on_commit(self, *args: Any, **options: Any) -> None:
        """As `apply_async`, once the transaction of Django's default connection is committed.

        A process that dies in between publishes nothing: `ackline.consumers.django.add` is for what must not be lost.
        """
        from django.db import transaction

        transaction.on_commit(partial(self.apply_async, *args, **options))


@overload
def job(function: Callable[..., Any], /) -> Job: ...


@overload
def job(**options: Any) -> Callable[[Callable[..., Any]], Job]: ...


def job(*function: Callable[..., Any], **options: Any) -> Any:
    """Make a function, plain or async, a job: `@job`, or `@job(...)` with options. Returns a Celery task.

    name: of the job; the function's with its module when not given. retry: a policy of `exponential`, `fixed` or
    `schedule`; without one a job that raises goes to review at once. soft_time_limit, time_limit: how long one try may
    run ("30s", or seconds): the first raises `SoftTimeLimitExceeded` in it, the second kills its process, and it goes
    to review. queue: `"video"` has jobs of their own in the queue `ackline.jobs.video`. track: each delivery is
    accounted for by id. unique_for: how long an equal job, of the same arguments, is not submitted again ("10m"): who
    tries gets the id of the first; such a job is published by `ackline relay`. All else is as in Celery's `app.task`:
    `bind`, `autoretry_for`, `ignore_result`, `rate_limit`.

    It may raise `RetryLater(delay)`, `Reject(reason)`, and Celery's `Retry`, `Reject` and `Ignore`.
    """
    from ackline.consumers.jobs.app import app

    for duration in ("soft_time_limit", "time_limit", "unique_for"):
        if options.get(duration) is not None:
            options[duration] = seconds(options[duration])
    # Not for every Celery app of the process, as is Celery's default: others do not know what a policy is.
    return app.task(*function, shared=False, **options)


def policy_of(task: Any) -> RetryPolicy:
    """The policy of *task*. Without one only what asks for it is retried, as often as Celery's `max_retries` says."""
    policy: RetryPolicy | None = getattr(task, "retry_policy", None)
    if policy is not None:
        return policy
    most = wire.MAX_ATTEMPT if task.max_retries is None else task.max_retries + 1
    return exponential(attempts=most, retry_on=RetryLater)


def failing_for(headers: Mapping[str, Any]) -> float:
    """Seconds since a job failed for the first time, as its *headers* tell."""
    try:
        first = datetime.fromisoformat(headers[wire.FIRST_FAILED_AT])
        return max((wire.now() - first).total_seconds(), 0.0)
    except (KeyError, ValueError, TypeError, OverflowError):
        return 0.0


def make_job(task: Any) -> None:
    """Have *task*, of whichever class, retried as its policy says, and settled by how it ends."""
    if hasattr(task, "_tried"):  # it was declared before
        return
    task.Request = Job.Request
    task._tried = task.run

    @wraps(task.run)
    def run(*args: Any, **kwargs: Any) -> Any:
        task.request.began = wire.now()
        try:
            return _tried(task, args, kwargs)
        except _SAID:
            raise
        except Exception as error:
            request = task.request
            if request.called_directly or request.is_eager:
                raise
            told = vars(request)
            policy = policy_of(task).at_most(told.get(wire.ATTEMPTS))
            failure = Failure(error, request.retries + 1, failing_for(told))
            decision = decide(failure, policy, random.random())  # noqa: S311
            if isinstance(decision, Retry):
                raise _again(task, error, decision.delay, request.retries + 1) from error
            if isinstance(decision, Park):
                raise _again(task, error, decision.delay, request.retries, PARKED) from error
            raise

    task.run = run


def _tried(task: Any, args: Any, kwargs: Any) -> Any:
    """Run *task*. A `Retry` that was raised by hand becomes ours: unlike `self.retry`, that publishes nothing."""
    try:
        return task._tried(*args, **kwargs)
    except celery_exceptions.Retry as asked:
        request, when = task.request, asked.when
        if asked.sig is not None or request.called_directly or request.is_eager:
            raise
        if isinstance(when, datetime):
            when = (maybe_make_aware(when) - wire.now()).total_seconds()
        delay = task.default_retry_delay if when is None else max(when, 0.0)
        raise RetryLater(delay, str(asked)) from asked


def _again(task: Any, error: BaseException, delay: float, retries: int, said: str | None = None) -> Any:
    """Publish the job that runs now again, to come back after *delay* seconds; what to raise then.

    retries: what its next try is counted as; no more than now for one that was no failure.
    """
    try:
        signature = task.signature_from_request(countdown=delay, retries=retries)
        signature.apply_async()
    except Exception as failed:
        return celery_exceptions.Reject(failed, requeue=False)
    return celery_exceptions.Retry(said, exc=error, when=delay, sig=signature)
