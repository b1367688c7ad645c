"""Jobs over HTTP, in the gateway: submitted as messages are, and watched until their result is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from kombu.exceptions import EncodeError
from pydantic import BaseModel, ValidationError
from sqlalchemy import Engine

from ackline.consumers.jobs import arguments, unique
from ackline.consumers.jobs.app import app as jobs
from ackline.consumers.jobs.publishing import publishing_to
from ackline.consumers.jobs.queues import jobs_of
from ackline.consumers.jobs.results import find
from ackline.consumers.jobs.status import JobStatus, State, waiting
from ackline.infra import database, wire
from ackline.infra.names import is_job_queue
from ackline.infra.unknown import unknown
from ackline.producer import outbox
from ackline.producer.envelope import Entry
from ackline.producer.errors import PublishError
from ackline.producer.gateway import parameters
from ackline.producer.gateway.messages import answer
from ackline.producer.gateway.parameters import IDEMPOTENCY_KEY, OPTIONS, TRAVELLING, Options
from ackline.producer.gateway.problems import Refusal, documented, faults
from ackline.producer.gateway.service import Served, Service, service
from ackline.producer.gateway.signing import Signer
from ackline.producer.gateway.status import is_older_than, stream
from ackline.producer.gateway.watching import Watching
from ackline.producer.status import Asked

#: The query parameters of a submission; the first of those that messages have.
_OPTIONS = ("delay", "deliver_at", "track")


class Accepted(BaseModel):
    """The job is durable.

    state: `waiting` (RabbitMQ has it), `accepted` (the outbox has it: it is due later, or the broker is away), or where
    the equal one is that was submitted before. repeated: whether there was one, of a job that is unique for a time.
    status_url: where its state and its result are; a path, and itself the permission to look. None of a job that keeps
    neither.
    """

    id: str
    name: str
    state: State
    repeated: bool
    status_url: str | None


def status_url(signer: Signer, job_id: str, name: str) -> str:
    """Where the status of an accepted job is, as a path with its proof."""
    signature = signer.signature(job_id, name)
    return f"/v1/jobs/{quote(job_id, safe='')}?name={quote(name, safe='')}&signature={signature}"


class Reading:
    """What is known of jobs, for one running gateway. Its methods block, and raise `DatabaseUnavailable`."""

    def __init__(self, engine: Engine, signer: Signer) -> None:
        self._engine = engine
        self._signer = signer

    def one(self, asked: Asked) -> JobStatus | None:
        """What is known of one job."""
        return self.all([asked]).get(asked)

    def all(self, asked: Collection[Asked]) -> Mapping[Asked, JobStatus]:
        """What is known of many jobs."""
        with database.reading(self._engine) as connection:
            found = find(jobs, connection, [id_ for id_, _ in asked])
        return {(id_, proven): self.signed(found[id_], proven) for id_, proven in asked if id_ in found}

    def signed(self, status: JobStatus, proven: str | None) -> JobStatus:
        """*status* with its address, and the name that was proven when it has none itself."""
        name = status.name or proven
        url = None if name is None else status_url(self._signer, status.id, name)
        return status.model_copy(update={"name": name, "status_url": url})

    def cancel(self, question: Question) -> tuple[bool, JobStatus | None]:
        """Cancel a job that is not due yet. Whether that was done, and what is known of it then."""
        found = self.one(question.asked)
        if found is None or not question.may_use(found):
            return False, None
        with database.writing(self._engine) as connection:
            row = outbox.find(connection, question.id)
            cancelled = row is not None and is_job_queue(row.type) and outbox.cancel(connection, question.id)
            if cancelled:
                unique.release(connection, question.id)
        return cancelled, self.one(question.asked)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    served: Service = app.state.service
    reading = app.state.job_reading = Reading(served.engine, served.signer)
    watching = app.state.job_watching = Watching(reading.all)
    app.state.watchings.append(watching)
    try:
        yield
    finally:
        watching.close()


router = APIRouter(lifespan=_lifespan, responses=documented(403, 404))


# --- submitting -------------------------------------------------------------------------------------------------------

_DOCUMENTED: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
    "parameters": [
        {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}},
        *(option for option in OPTIONS if option["name"] in _OPTIONS),
        IDEMPOTENCY_KEY,
        *TRAVELLING,
    ],
}


@router.post(
    "/v1/jobs/{name}",
    status_code=202,
    response_model=Accepted,
    summary="Submit a job",
    openapi_extra=_DOCUMENTED,
)
async def submit(request: Request) -> Response:
    """Submit the job of that name with the body, a JSON object, as its arguments, and answer when it is durable."""
    served = service(request)
    caller = served.keys.caller(request)
    name: str = request.path_params["name"]
    caller.require(name)
    task = None if name.startswith("celery.") else jobs.tasks.get(name)
    if task is None:
        raise Refusal(HTTPStatus.NOT_FOUND, unknown("job", name, filter(caller.may_use, jobs_of(jobs))))
    options = parameters.options(request, served.settings, _OPTIONS)
    travelling = parameters.travelling(request)
    body = await parameters.body(request, served.settings.max_body_bytes, "ACKLINE_MAX_BODY_BYTES")
    try:
        kwargs = arguments.read(task, body)
    except ValidationError as error:
        raise Refusal(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"The body does not have the arguments of {name}.", faults(error)
        ) from None
    headers = {name: value for name, value in travelling.items() if name != "correlation_id"}
    tracked = task.track or task.ignore_result if options.track is None else options.track

    async def work(job_id: str, again: bool = False) -> dict[str, Any]:
        submission = _Submission(served, task, kwargs, job_id, options, headers | {wire.TRACK: tracked})
        if task.unique_for is not None:
            found = await asyncio.to_thread(submission.once)
        else:
            entry = submission.entry()
            if again and entry.due_at is not None and await asyncio.to_thread(submission.is_stored):
                state = State.ACCEPTED  # a second row would be another time
            else:
                state = State(await served.acceptance.accept(entry))
            found = Submitted(job_id, state, False)
        has_status = tracked or not task.ignore_result or options.due_at is not None
        url = status_url(served.signer, found.id, name) if has_status else None
        return {"id": found.id, "name": name, "state": found.state, "repeated": found.repeated, "status_url": url}

    key = request.headers.get("idempotency-key")
    if key is None:
        return answer(await work(wire.uuid7()))
    asked = repr(("job", name, request.scope["query_string"], travelling.get("correlation_id"))).encode() + body
    return answer(*await served.idempotency.once(caller.name, key, asked, work))


class Submitted(NamedTuple):
    """A job that was accepted, now or before."""

    id: str
    state: State
    repeated: bool


class _Submission(NamedTuple):
    """A job that somebody submits, by one of two ways."""

    served: Service
    task: Any
    kwargs: dict[str, Any]
    id: str
    options: Options
    headers: dict[str, Any]

    def entry(self) -> Entry:
        """It, as it will be sent. Raises `Refusal`."""
        entries: list[Entry] = []
        try:
            with publishing_to(entries.append):
                self.task.apply_async(kwargs=self.kwargs, task_id=self.id, headers=self.headers, add_to_parent=False)
        except (PublishError, EncodeError, TypeError) as error:
            raise _unsendable(error) from None
        return entries[0]._replace(due_at=self.options.due_at)

    def is_stored(self) -> bool:
        """Whether the outbox has it already. Blocks."""
        with database.reading(self.served.engine) as connection:
            return outbox.find(connection, self.id) is not None

    def once(self) -> Submitted:
        """Put it into the outbox, or find the equal one. Blocks; raises `Refusal`, `DatabaseUnavailable`."""
        options = {"headers": self.headers, "eta": self.options.due_at}
        try:
            standing = unique.submit(self.served.engine, self.task, (), self.kwargs, self.id, options)
        except (PublishError, EncodeError, TypeError) as error:
            raise _unsendable(error) from None
        if standing == self.id:
            return Submitted(standing, State.ACCEPTED, False)
        with database.reading(self.served.engine) as connection:
            found = find(jobs, connection, [standing]).get(standing)
        return Submitted(standing, State.WAITING if found is None else found.state, True)


def _unsendable(error: Exception) -> Refusal:
    return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"This job cannot be sent: {str(error).removesuffix('.')}.")


# --- asking -----------------------------------------------------------------------------------------------------------


class Question(NamedTuple):
    """Which job somebody asks for, and what they may know."""

    id: str
    #: Its name, where a signature proves that it was accepted.
    proven: str | None
    may_use_name: Callable[[str], bool]

    @property
    def asked(self) -> Asked:
        return self.id, self.proven

    def may_use(self, status: JobStatus) -> bool:
        """Whether they may know of the job. One whose name nobody knows is for those who may use all."""
        return self.may_use_name(status.name or "")


def _question(
    request: Request,
    served: Served,
    id: str,  # noqa: A002 - the name of the path parameter, which clients see
    name: Annotated[str | None, Query(description="With the signature: of a status_url.")] = None,
    signature: Annotated[str | None, Query(description="Of a status_url: proves that it was accepted.")] = None,
) -> Question:
    if "\x00" in id:  # what no database takes names no job
        raise _unknown(id)
    if signature is None:
        return Question(id, None, served.keys.caller(request).may_use)
    if name is None or not served.signer.proves(signature, id, name):
        raise Refusal(
            HTTPStatus.FORBIDDEN, "The signature is not the one of this job: use its status_url as it was given."
        )
    return Question(id, name, name.__eq__)


Asking = Annotated[Question, Depends(_question)]


def _reading(request: Request) -> Reading:
    found: Reading = request.app.state.job_reading
    return found


Read = Annotated[Reading, Depends(_reading)]


@router.get("/v1/jobs/{id}", response_model=JobStatus, summary="The status of a job, and its result")
async def show(question: Asking, served: Served, reading: Read) -> Response:
    """Where it is, its attempts and times, how far it is while it runs, and its result or its error when it is over.

    With the signature of a status_url no key is needed.
    """
    return _json(await _present(question, served, reading))


@router.get(
    "/v1/jobs/{id}/events",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "An event `status` at once, and for each change."},
        204: {"description": "The client has seen the final status (its Last-Event-ID), and need not come again."},
    },
    summary="The status of a job, until it is final",
)
async def watch(
    question: Asking,
    request: Request,
    served: Served,
    reading: Read,
    last_event_id: Annotated[str | None, Header(description="Sent by a browser that comes again.")] = None,
) -> Response:
    """Server-sent events. The data of each is what `GET /v1/jobs/{id}` answers; the last one is final."""
    present = await _present(question, served, reading)
    watching: Watching[JobStatus] = request.app.state.job_watching
    return stream(watching, question.asked, present, last_event_id)


@router.delete(
    "/v1/jobs/{id}",
    response_model=JobStatus,
    responses=documented(409),
    summary="Cancel a job that is not due yet",
)
async def cancel(question: Asking, request: Request, served: Served, reading: Read) -> Response:
    """Have a scheduled job not run. A key is needed: a status_url lets others look, not act."""
    if question.proven is not None:
        served.keys.caller(request).require(question.proven)
    cancelled, found = await asyncio.to_thread(reading.cancel, question)
    if found is None and question.proven is None:
        raise _unknown(question.id)
    if found is not None and (cancelled or found.state is State.CANCELLED):
        return _json(found)
    state = State.WAITING if found is None else found.state
    raise Refusal(
        HTTPStatus.CONFLICT,
        f"The job {question.id!r} is {state}: only one that is scheduled, and not due yet, can be cancelled.",
    )


async def _present(question: Question, served: Service, reading: Reading) -> JobStatus:
    """What is known of the job now. Raises `Refusal`."""
    found = await asyncio.to_thread(reading.one, question.asked)
    if found is not None and question.may_use(found):
        return found
    if question.proven is None:
        raise _unknown(question.id)
    hours = served.settings.results_keep_hours
    if is_older_than(question.id, hours / 24):
        raise Refusal(
            HTTPStatus.NOT_FOUND,
            f"Nothing is known of the job {question.id!r}, which was accepted more than {hours:g} hours ago: it has "
            "not begun, or its result is forgotten.",
        )
    return reading.signed(waiting(question.id, question.proven), question.proven)


def _unknown(job_id: str) -> Refusal:
    return Refusal(
        HTTPStatus.NOT_FOUND,
        f"Nothing is known of a job {job_id!r}. If it was accepted just now, ask with its status_url; "
        "else it has not begun, or its result is forgotten.",
    )


def _json(found: JobStatus) -> Response:
    return Response(found.model_dump_json(), media_type="application/json", headers={"Cache-Control": "no-store"})
