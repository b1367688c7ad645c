"""Results of jobs in Ackline's own database: a result backend of Celery's, on SQLite and PostgreSQL.

A process writes the end of its job before the job is acked, so a result is there when the job is over; a job that is
delivered again writes its end again, and the first success stays. What `AsyncResult` says comes from the same place as
the status over HTTP (`status`), so it knows what no process could write: that a person discarded a job, for instance.

Whoever waits for a result asks again and again, less and less often, up to twice a second: `AsyncResult.get()` is for
scripts and tests, not for requests of a web server.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import bootsteps, states
from celery.backends.base import BaseBackend
from celery.exceptions import TimeoutError as NotInTime
from celery.result import result_from_tuple
from celery.worker import state as worker_state
from sqlalchemy import Connection, Table, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from ackline.consumers.jobs import status
from ackline.consumers.jobs.database import engine
from ackline.consumers.jobs.status import CELERY, JobStatus, State, Stored
from ackline.infra.database import DatabaseUnavailable, reading, writing
from ackline.infra.errors import AcklineError
from ackline.infra.settings import settings
from ackline.infra.table import text
from ackline.infra.tables import job_chords, job_groups, job_results, unique_jobs
from ackline.infra.wire import now

log = logging.getLogger(__name__)

#: Seconds between two looks for a result: at first, and at most where nothing else is said.
_LOOK_FIRST, _LOOK_MOST = 0.02, 0.5
#: Seconds for which a database that is away is waited for, and between two tries. Meanwhile a job has its process.
_PATIENCE_SECONDS, _RETRY_SECONDS = 20.0, 0.5
#: Seconds that a job runs before that is written down, and between two looks.
_STARTED_SECONDS, _MARK_SECONDS = 0.1, 0.2
#: Seconds between two looks for what is to be forgotten; rows of one transaction at most.
_FORGET_SECONDS, _FORGET_MOST = 60.0, 500


class InReview(AcklineError):
    """The job failed, and a person decides what becomes of it. It may still succeed."""


class Results(BaseBackend):  # type: ignore[misc]
    """Keeps results in the database of `ACKLINE_DATABASE_URL`, for `ACKLINE_RESULTS_KEEP_HOURS` after a job's end."""

    supports_autoexpire = True  # `Keeping`, in every worker
    supports_native_join = True

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        self.thread_safe = True
        self._is_away = False

    def _ensure_retryable(
        self,
        func: Callable[..., Any],
        *args: Any,
        fallback_exc: Callable[[str], Exception] | None = None,
        fallback_msg: str | None = None,
        max_retries: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call *func*, and again while the database is away; once only where nobody can wait, or who did was in vain.

        max_retries: given by Celery where nobody can wait.
        """
        deadline = time.monotonic() + (0.0 if self._is_away or max_retries is not None else _PATIENCE_SECONDS)
        while True:
            try:
                found = func(*args, **kwargs)
                self._is_away = False
                return found
            except DatabaseUnavailable as error:
                if time.monotonic() > deadline:
                    self._is_away = True
                    if fallback_exc is None:
                        raise
                    raise fallback_exc(str(error)) from error
            time.sleep(_RETRY_SECONDS)

    # --- what a process writes -------------------------------------------------------------------------

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **_: Any,
    ) -> Any:
        told = {} if request is None else vars(request)
        at = now()
        is_over = state in states.READY_STATES
        row = {
            "id": task_id,
            "name": told.get("task"),
            "state": state,
            "attempt": (told.get("retries") or 0) + 1,
            "result": self.encode(result),
            "traceback": None if traceback is None else text(str(traceback).encode("utf-8", "backslashreplace")),
            "children": self.encode(self.current_task_children(request)),
            "group_id": told.get("group"),
            "parent_id": told.get("parent_id"),
            "worker": told.get("hostname"),
            "submitted_at": status.moment(told.get("submitted_at")),
            "started_at": told.get("began"),
            "changed_at": at,
            "finished_at": at if is_over else None,
            "expires_at": at + (_kept() if is_over else _kept_unfinished()),
        }
        with writing(engine()) as connection:
            connection.execute(_STORES[connection.dialect.name], row)
        return result

    def _forget(self, task_id: str) -> None:
        with writing(engine()) as connection:
            connection.execute(delete(job_results).where(job_results.c.id == task_id))

    # --- what others ask -------------------------------------------------------------------------------

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        return self._metas([task_id])[task_id]

    def _metas(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        with reading(engine()) as connection:
            known = status.stored(connection, ids)
            # What has succeeded stays so, and nobody else need be asked.
            open_ = [id_ for id_ in ids if id_ not in known or known[id_].state != states.SUCCESS]
            found = status.statuses(connection, open_, known) if open_ else {}
        return {id_: self.meta_from_decoded(meta(id_, known.get(id_), found.get(id_))) for id_ in ids}

    def get_many(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        interval: float | None = _LOOK_MOST,
        no_ack: bool = True,
        on_message: Callable[[Any], None] | None = None,
        on_interval: Callable[[], None] | None = None,
        max_iterations: int | None = None,
        READY_STATES: Iterable[str] = states.READY_STATES,  # noqa: N803 - Celery's
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The results of jobs as they are over, each with its id. Raises Celery's `TimeoutError` after *timeout* s."""
        left = set(task_ids)
        deadline = None if timeout is None else time.monotonic() + timeout
        pause, rounds = _LOOK_FIRST, 0
        while left:
            for id_, found in self._ensure_retryable(self._metas, sorted(left)).items():
                if found["status"] in READY_STATES:
                    left.discard(id_)
                    if on_message is not None:
                        on_message(found)
                    yield id_, found
            rounds += 1
            if not left or rounds == max_iterations:
                return
            if on_interval is not None:
                on_interval()
            if deadline is not None and time.monotonic() >= deadline:
                raise NotInTime(f"{len(left)} results are not there after {timeout:g} s.")
            time.sleep(pause if deadline is None else max(min(pause, deadline - time.monotonic()), 0))
            pause = min(pause * 1.5, _LOOK_MOST if interval is None else max(interval, _LOOK_FIRST))

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float | None = _LOOK_MOST,
        no_ack: bool = True,
        on_interval: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """The result of a job when it is over."""
        self._ensure_not_eager()
        return next(found for _, found in self.get_many([task_id], timeout, interval, on_interval=on_interval))

    # --- groups ----------------------------------------------------------------------------------------

    def _save_group(self, group_id: str, result: Any) -> Any:
        row = {"id": group_id, "result": self.encode(result.as_tuple()), "expires_at": now() + _kept_unfinished()}
        with writing(engine()) as connection:
            connection.execute(_GROUPS[connection.dialect.name], row)
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        with reading(engine()) as connection:
            found = connection.scalar(select(job_groups.c.result).where(job_groups.c.id == group_id))
        return None if found is None else {"result": result_from_tuple(self.decode(found), self.app)}

    def _delete_group(self, group_id: str) -> None:
        with writing(engine()) as connection:
            connection.execute(delete(job_groups).where(job_groups.c.id == group_id))


def find(app: Any, connection: Connection, ids: Collection[str]) -> dict[str, JobStatus]:
    """The statuses of jobs by id, wherever *app* has its results; those of which nothing is known are left out."""
    backend = app.backend
    if isinstance(backend, Results):
        known = status.stored(connection, ids)
    else:
        told = {id_: status.from_meta(id_, backend.get_task_meta(id_, cache=False)) for id_ in ids}
        known = {id_: found for id_, found in told.items() if found is not None}
    return status.statuses(connection, ids, known, app.tasks)


def meta(id_: str, known: Stored | None, found: JobStatus | None) -> dict[str, Any]:
    """What `AsyncResult` is told of a job, in Celery's form: what the backend knows, unless *found* is something else.

    known: of the backend. found: its status, as everybody else is told; None: nothing more is known.
    """
    state = states.PENDING if found is None else CELERY[found.state]
    if known is not None and (found is None or _is_said(known, found.state)):
        return {
            "task_id": id_,
            "status": known.state,
            "result": known.result,
            "traceback": known.traceback,
            "children": known.children,
            "date_done": known.finished_at,
            "group_id": known.group_id,
            "parent_id": known.parent_id,
            "name": known.name,
            "worker": known.worker,
            "retries": known.attempt - 1,
        }
    result = None
    if found is not None and state in states.EXCEPTION_STATES:
        kind = "TaskRevokedError" if state == states.REVOKED else InReview.__name__
        module = "celery.exceptions" if state == states.REVOKED else InReview.__module__
        result = {"exc_type": kind, "exc_module": module, "exc_message": [found.error or str(found.state)]}
    return {
        "task_id": id_,
        "status": state,
        "result": result,
        "traceback": None,
        "children": [],
        "date_done": None if found is None else found.finished_at,
        "name": None if found is None else found.name,
    }


def _is_said(known: Stored, state: State) -> bool:
    """Whether what the backend knows says *state*; a job's own state says that it runs."""
    return known.state == CELERY[state] or (state is State.RUNNING and known.where is State.RUNNING)


def _kept() -> timedelta:
    return timedelta(hours=settings().results_keep_hours)


def _kept_unfinished() -> timedelta:
    """How long is known of a job that it began, and how it is made up: longer than most take."""
    return max(_kept(), timedelta(days=settings().status_keep_days))


# --- statements -------------------------------------------------------------------------------------------------------


def _stores(insert: Any) -> Any:
    """Writes how a job is; the first success stays, and what was once known of where it came from."""
    statement = insert(job_results)
    old, new = job_results.c, statement.excluded
    known = {name: func.coalesce(new[name], old[name]) for name in ("name", "submitted_at", "started_at")}
    told = ("state", "attempt", "result", "traceback", "children", "group_id", "parent_id", "worker")
    return statement.on_conflict_do_update(
        index_elements=[old.id],
        set_={name: new[name] for name in (*told, "changed_at", "finished_at", "expires_at")} | known,
        where=old.state != states.SUCCESS,
    )


def _starts(insert: Any) -> Any:
    """Writes that jobs run; not of one of which anything was written since this try began."""
    statement = insert(job_results)
    old, new = job_results.c, statement.excluded
    return statement.on_conflict_do_update(
        index_elements=[old.id],
        set_={name: new[name] for name in _STARTED} | dict.fromkeys(("result", "traceback", "children", "finished_at")),
        where=(old.state != states.SUCCESS) & (old.changed_at < new.started_at),
    )


def _groups(insert: Any) -> Any:
    statement = insert(job_groups)
    return statement.on_conflict_do_update(
        index_elements=[job_groups.c.id],
        set_={name: statement.excluded[name] for name in ("result", "expires_at")},
    )


_STARTED = ("name", "state", "attempt", "worker", "submitted_at", "started_at", "changed_at", "expires_at")
_INSERTS = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_STORES = {name: _stores(insert) for name, insert in _INSERTS.items()}
_STARTS = {name: _starts(insert) for name, insert in _INSERTS.items()}
_GROUPS = {name: _groups(insert) for name, insert in _INSERTS.items()}


def started(connection: Connection, requests: Iterable[Any]) -> None:
    """Write down that jobs run: Celery's *requests*, in the worker's main process."""
    at = now()
    rows = [
        {
            "id": request.id,
            "name": request.name,
            "state": states.STARTED,
            "attempt": request._context.retries + 1,
            "worker": request.hostname,
            "submitted_at": status.moment(vars(request._context).get("submitted_at")),
            "started_at": datetime.fromtimestamp(request.time_start, UTC),
            "changed_at": at,
            "expires_at": at + _kept_unfinished(),
        }
        # In the order of their ids, so that two workers never wait for each other's rows in a circle.
        for request in sorted(requests, key=lambda request: str(request.id))
    ]
    connection.execute(_STARTS[connection.dialect.name], rows)


def forget(connection: Connection, before: datetime, limit: int) -> bool:
    """Delete what has expired, *limit* rows of each kind at most. Whether there may be more."""
    tables = (job_results, job_groups, job_chords, unique_jobs)
    counts = [_forget_some(connection, table, before, limit) for table in tables]
    return max(counts) >= limit


def _forget_some(connection: Connection, table: Table, before: datetime, limit: int) -> int:
    (key,) = table.primary_key
    old = select(key).where(table.c.expires_at < before).limit(limit)
    return connection.execute(delete(table).where(key.in_(old))).rowcount


# --- in a worker ------------------------------------------------------------------------------------------------------


class Keeping(bootsteps.StartStopStep):  # type: ignore[misc]
    """In a worker's main process: writes down which jobs run, once they do so for a moment, and forgets old results.

    Most jobs are over before anybody could see them run, and to write that would cost as much as their results.
    """

    def __init__(self, c: Any, **_: Any) -> None:
        super().__init__(c)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._forget_at = 0.0
        self._marked: Mapping[str, float] = {}
        self._fails = False

    def start(self, c: Any) -> None:
        """Begin, at the first start: another one is of a lost control connection."""
        if self._thread is None and isinstance(c.app.backend, Results):
            self._thread = threading.Thread(target=self._run, name="results", daemon=True)
            self._thread.start()

    def shutdown(self, c: Any) -> None:
        """End; what is under way is not waited for, it can be done another time."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(_MARK_SECONDS):
            try:
                self._mark()
                if time.monotonic() > self._forget_at:
                    self._forget()
                self._fails = False
            except DatabaseUnavailable as error:
                if not self._fails:
                    log.warning("Which jobs run is not written down: %s", error)
                self._fails = True
            except Exception:  # nobody else would do it
                log.exception("Which jobs run could not be written down")

    def _mark(self) -> None:
        latest = time.time() - _STARTED_SECONDS
        active = tuple(worker_state.active_requests)
        running = {
            request.id: request
            for request in active
            if request.time_start
            and request.time_start < latest
            and not (request.acknowledged or request.ignore_result)
        }
        fresh = [request for id_, request in running.items() if self._marked.get(id_) != request.time_start]
        if fresh:
            with writing(engine()) as connection:
                started(connection, fresh)
        self._marked = {id_: request.time_start for id_, request in running.items()}

    def _forget(self) -> None:
        with writing(engine()) as connection:
            if not forget(connection, now(), _FORGET_MOST):
                self._forget_at = time.monotonic() + _FORGET_SECONDS
