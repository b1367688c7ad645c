"""What has become of a job: one state, whoever asks: HTTP, the command line, or `AsyncResult`.

Four tables know, each what the others do not, and they are read together:

- `job_results`, or another result backend: what became of its last try;
- `dead_letters`: what is in review, redriving or discarded, a job that never ran as well;
- `deliveries`: what workers report of tracked jobs;
- `ackline_outbox`: what is scheduled.

| state | Celery's | when |
| --- | --- | --- |
| scheduled, accepted | PENDING | it is in the outbox: until it is due, or until the relay has published it |
| waiting | PENDING | RabbitMQ has it; nobody knows it but whoever submitted it |
| running | STARTED, or what `update_state` was given, such as PROGRESS | |
| waiting for a retry | RETRY | |
| succeeded | SUCCESS | |
| in review | FAILURE | a person decides |
| redriving | RETRY | a person has sent it again, and it has not begun |
| discarded | REVOKED | by a person, in review or by `revoke` |
| cancelled | REVOKED | before it was due |
| failed | FAILURE | it never ran: what it was to follow failed, or it cannot be published |
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, NamedTuple, TypeGuard
from uuid import UUID

from celery import states
from kombu.utils.json import loads
from pydantic import BaseModel, ConfigDict, PlainSerializer
from sqlalchemy import Connection, select

from ackline.infra.names import is_job_queue
from ackline.infra.properties import Properties
from ackline.infra.table import TOO_DEEP, text
from ackline.infra.tables import job_results, outbox
from ackline.producer import status as messages
from ackline.producer.status import Delivery
from ackline.producer.status import State as Message

#: Results are shown to this depth; pydantic writes no more than 255.
_DEPTH = 100
#: Names in one `IN (...)`.
_CHUNK = 500


class State(StrEnum):
    """Where a job is."""

    SCHEDULED = "scheduled"
    ACCEPTED = "accepted"
    CANCELLED = "cancelled"
    FAILED = "failed"
    WAITING = "waiting"
    RUNNING = "running"
    WAITING_FOR_RETRY = "waiting for a retry"
    SUCCEEDED = "succeeded"
    IN_REVIEW = "in review"
    REDRIVING = "redriving"
    DISCARDED = "discarded"


#: A job in one of these is over.
FINAL = (State.SUCCEEDED, State.DISCARDED, State.CANCELLED)

#: What `AsyncResult` says of each.
CELERY = {
    State.SCHEDULED: states.PENDING,
    State.ACCEPTED: states.PENDING,
    State.WAITING: states.PENDING,
    State.RUNNING: states.STARTED,
    State.WAITING_FOR_RETRY: states.RETRY,
    State.REDRIVING: states.RETRY,
    State.SUCCEEDED: states.SUCCESS,
    State.IN_REVIEW: states.FAILURE,
    State.FAILED: states.FAILURE,
    State.DISCARDED: states.REVOKED,
    State.CANCELLED: states.REVOKED,
}
#: As what Celery's states are told here. FAILURE depends; all others are a job's own, which it has while it runs.
_STORED = {
    states.SUCCESS: State.SUCCEEDED,
    states.RETRY: State.WAITING_FOR_RETRY,
    states.REVOKED: State.DISCARDED,
}
#: A job is a delivery to one consumer. What it calls otherwise:
_DELIVERED = {Message.BEING_HANDLED: State.RUNNING, Message.HANDLED: State.SUCCEEDED}


def _shown(value: Any, depth: int = _DEPTH) -> Any:
    """*value* with escapes for what is no UTF-8, as in the name of a file, and without what is nested too deep."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_shown(key): _shown(each, depth - 1) for key, each in value.items()} if depth else TOO_DEEP
    if isinstance(value, list | tuple):
        return [_shown(each, depth - 1) for each in value] if depth else TOO_DEEP
    return value


_Text = Annotated[str | None, PlainSerializer(_shown, return_type=str | None, when_used="json")]


class JobStatus(BaseModel):
    """What is known of a job. Times are in UTC; what is not known is null.

    attempts: recorded tries, one that goes on included. due_at: not before then, while it is scheduled or waits for a
    retry. started_at: of the last try. progress: from 0 to 1, with a text, while it runs and tells. result: what it
    returned, until that is forgotten (ACKLINE_RESULTS_KEEP_HOURS). error: why it failed, or its last try did.
    is_final: nothing changes any more.
    """

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", ser_json_inf_nan="null")

    id: str
    name: str | None
    state: State
    is_final: bool
    attempts: int = 0
    submitted_at: datetime | None = None
    due_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    progress: float | None = None
    progress_text: _Text = None
    result: Annotated[Any, PlainSerializer(_shown, when_used="json")] = None
    error: _Text = None
    status_url: str | None = None


class Stored(NamedTuple):
    """What a result backend knows of a job. worker: where it ran; None when it never did."""

    id: str
    name: str | None
    state: str
    attempt: int
    result: Any
    traceback: str | None = None
    children: Any = None
    group_id: str | None = None
    parent_id: str | None = None
    worker: str | None = None
    submitted_at: datetime | None = None
    started_at: datetime | None = None
    changed_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def where(self) -> State:
        """Its state, as far as the backend knows."""
        if self.state == states.FAILURE:
            return State.FAILED if self.worker is None else State.IN_REVIEW
        return _STORED.get(self.state, State.RUNNING)


# --- reading ----------------------------------------------------------------------------------------------------------


def stored(connection: Connection, ids: Iterable[str]) -> dict[str, Stored]:
    """What our own result backend knows of jobs, by id."""
    columns = [job_results.c[name] for name in Stored._fields]
    found = {}
    wanted = list(ids)
    for start in range(0, len(wanted), _CHUNK):
        rows = connection.execute(select(*columns).where(job_results.c.id.in_(wanted[start : start + _CHUNK])))
        for row in map(Stored._make, rows):
            decoded = {name: _decoded(getattr(row, name)) for name in ("result", "children")}
            found[row.id] = row._replace(**decoded)
    return found


def from_meta(id_: str, meta: Mapping[str, Any]) -> Stored | None:
    """What another of Celery's result backends knows of a job, with `result_extended`; None when that is nothing."""
    if meta["status"] == states.PENDING:
        return None
    told = {name: meta.get(name) for name in ("name", "traceback", "children", "group_id", "parent_id", "worker")}
    done = meta.get("date_done")
    finished_at = done if isinstance(done, datetime) else moment(done)
    return Stored(
        id_,
        state=meta["status"],
        attempt=(meta.get("retries") or 0) + 1,
        result=meta.get("result"),
        changed_at=finished_at,
        finished_at=finished_at,
        **told,
    )


def moment(at: Any) -> datetime | None:
    """The time that a text tells in ISO 8601, if it does."""
    try:
        found = datetime.fromisoformat(at)
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    except (TypeError, ValueError):
        return None


def _decoded(value: str | None) -> Any:
    return None if value is None else loads(value)


def statuses(
    connection: Connection, ids: Iterable[str], known: Mapping[str, Stored], names: Container[str] = ()
) -> dict[str, JobStatus]:
    """What is known of jobs, by id; those of which nothing is, and ids that are a message's, are left out.

    known: what the result backend has of them. names: of jobs, by which one is known whose queue does not exist.
    """
    wanted = list(dict.fromkeys(ids))
    told = messages.statuses(connection, [(id_, None) for id_ in wanted], consumers={})
    found = {}
    for id_ in wanted:
        about = told.get((id_, None))
        delivery = (
            None if about is None else next((each for each in about.deliveries if _is_job(about, each, names)), None)
        )
        if delivery is not None or id_ in known:
            name = None if about is None or delivery is None else about.type
            found[id_] = combined(id_, name, known.get(id_), delivery)
        elif about is not None and is_job_queue(about.type):
            found[id_] = _unpublished(about, _name(connection, id_))
    return found


def _is_job(about: messages.Status, delivery: Delivery, names: Container[str]) -> bool:
    return about.type in names if delivery.consumer is None else is_job_queue(delivery.consumer)


def _name(connection: Connection, id_: str) -> str | None:
    """The name of a job in the outbox, where its type is its queue."""
    newest = select(outbox.c.properties).where(outbox.c.message_id == id_).order_by(outbox.c.id.desc()).limit(1)
    properties = Properties.from_wire(connection.execute(newest).scalar_one())
    return text(properties.type) if properties.type else None


# --- what the tables say ----------------------------------------------------------------------------------------------


def combined(id_: str, name: str | None, known: Stored | None, delivery: Delivery | None) -> JobStatus:
    """The status of a job of which the backend, a worker or the reviewer has told; one of the two is not None."""
    state = _state(known, delivery)
    tries = max(known.attempt if known is not None else 0, delivery.attempts if delivery is not None else 0)
    told: dict[str, Any] = {"attempts": tries, "submitted_at": made_at(id_)}
    if known is not None:
        told |= {"name": known.name, "started_at": known.started_at, "finished_at": known.finished_at}
        told["submitted_at"] = known.submitted_at or told["submitted_at"]
        if state is State.SUCCEEDED and known.state == states.SUCCESS:
            told["result"] = known.result
        elif known.state in states.EXCEPTION_STATES:
            told["error"] = said(known.result)
        elif state is State.RUNNING:
            told["progress"], told["progress_text"] = _progress(known.result)
    if delivery is not None:
        told["name"] = name or told.get("name")
        told["due_at"] = delivery.due_at
        if delivery.error is not None and state is not State.SUCCEEDED:
            told["error"] = delivery.error
        if state in (*FINAL, State.IN_REVIEW):
            told["finished_at"] = told.get("finished_at") or delivery.changed_at
    if state not in (*FINAL, State.IN_REVIEW, State.FAILED):
        told["finished_at"] = None
    return JobStatus(id=id_, state=state, is_final=state in FINAL, **{"name": None} | told)


def _state(known: Stored | None, delivery: Delivery | None) -> State:
    if delivery is None:
        assert known is not None  # noqa: S101
        return known.where
    kept = _DELIVERED.get(delivery.state) or State(delivery.state)
    if known is None or kept is State.SUCCEEDED:
        return kept
    if known.state == states.SUCCESS:  # what else there is of it is a late duplicate's
        return State.SUCCEEDED
    if kept in (State.IN_REVIEW, State.DISCARDED):
        return kept
    if kept is State.REDRIVING and not _is_later(known, delivery):
        return kept
    return known.where


def _is_later(known: Stored, delivery: Delivery) -> bool:
    """Whether the backend tells of something that happened since the reviewer got the dead letter."""
    if known.changed_at is None or delivery.changed_at is None:
        return False
    return known.changed_at > delivery.changed_at


def _unpublished(about: messages.Status, name: str | None) -> JobStatus:
    state = State(about.state)
    return JobStatus(
        id=about.id,
        name=name,
        state=state,
        is_final=state in FINAL,
        submitted_at=made_at(about.id),
        due_at=about.due_at,
        error=about.error,
    )


def waiting(id_: str, name: str) -> JobStatus:
    """The status of a job that was accepted, and of which nothing is known yet."""
    return JobStatus(id=id_, name=name, state=State.WAITING, is_final=False, submitted_at=made_at(id_))


def made_at(id_: str) -> datetime | None:
    """When an id was made, if it tells: the gateway's do."""
    try:
        made = UUID(id_)
    except ValueError:
        return None
    return datetime.fromtimestamp((made.int >> 80) / 1000, UTC) if made.version == 7 else None


def said(error: Any) -> str | None:
    """An exception, as a backend gives it, as people read it: `ValueError: no such file`."""
    if isinstance(error, BaseException):
        kind, words = type(error).__name__, str(error)
    elif isinstance(error, Mapping) and "exc_type" in error:
        message = error.get("exc_message")
        words = ", ".join(map(str, message)) if isinstance(message, list | tuple) else str(message or "")
        kind = str(error["exc_type"])
    else:
        return None if error is None else str(error)
    return f"{kind}: {words}" if words else kind


def _progress(meta: Any) -> tuple[float | None, str | None]:
    """How far a job is, as it gave it to `progress`; or to `update_state`, in the way of Celery's tutorials."""
    if not isinstance(meta, Mapping):
        return None, None
    done = meta.get("progress")
    if done is None and _is_number(meta.get("current")) and _is_number(meta.get("total")) and meta["total"]:
        done = meta["current"] / meta["total"]
    words = meta.get("progress_text", meta.get("status"))
    return max(0.0, min(float(done), 1.0)) if _is_number(done) else None, None if words is None else str(words)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
