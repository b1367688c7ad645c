"""What has become of a message: asked for once, or watched until it is final; and calling one off that is not due yet.

A `status_url` proves with its signature that the message was accepted. That is enough to read the status, also without
a key: a browser's EventSource can send none. And it makes the difference between a message of which nothing has been
reported yet, which is waiting, and one that nobody knows.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple, TypeVar
from uuid import UUID

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import Engine
from starlette.types import Receive, Scope, Send

from ackline.infra import database
from ackline.producer import outbox
from ackline.producer.gateway.problems import Refusal, documented, unavailable
from ackline.producer.gateway.service import Served, Service
from ackline.producer.gateway.watching import Watched, Watcher, Watching
from ackline.producer.status import Asked, Consumers, State, Status, expected, status, statuses, waiting

#: Milliseconds after which a client whose stream broke comes again.
RETRY_MILLISECONDS = 2000
_DAY = 86_400

Known = TypeVar("Known", bound=Watched)


class Reading:
    """What is known of messages, for one running gateway. Its methods block."""

    def __init__(self, engine: Engine, consumers: Consumers) -> None:
        self._engine = engine
        self.consumers = consumers

    def one(self, asked: Asked) -> Status | None:
        """What is known of one message. Raises `DatabaseUnavailable`."""
        with database.reading(self._engine) as connection:
            return status(connection, asked[0], type=asked[1], consumers=self.consumers)

    def all(self, asked: Collection[Asked]) -> dict[Asked, Status]:
        """What is known of many messages. Raises `DatabaseUnavailable`."""
        with database.reading(self._engine) as connection:
            return statuses(connection, asked, consumers=self.consumers)

    def cancel(self, question: Question) -> tuple[bool, Status | None]:
        """Cancel a message that is not due yet. Whether that was done, and what is known of it then.

        Raises `DatabaseUnavailable`.
        """
        with database.writing(self._engine) as connection:
            found = outbox.find(connection, question.id)
            cancelled = found is not None and question.may_use(found.type) and outbox.cancel(connection, question.id)
            return cancelled, status(connection, question.id, type=question.proven, consumers=self.consumers)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    served: Service = app.state.service
    reading = app.state.reading = Reading(served.engine, expected(served.settings))
    watching = app.state.watching = Watching(reading.all)
    app.state.watchings.append(watching)
    try:
        yield
    finally:
        watching.close()


router = APIRouter(
    lifespan=_lifespan,
    responses=documented(403, 404),
)


class Question(NamedTuple):
    """Which message somebody asks for, and what they may know."""

    id: str
    #: Its type, where a signature proves that it was accepted.
    proven: str | None
    may_use: Callable[[str], bool]

    @property
    def asked(self) -> Asked:
        return self.id, self.proven


def _question(
    request: Request,
    served: Served,
    id: str,  # noqa: A002 - the name of the path parameter, which clients see
    type: Annotated[str | None, Query(description="With the signature: of a status_url.")] = None,  # noqa: A002
    signature: Annotated[str | None, Query(description="Of a status_url: proves that it was accepted.")] = None,
) -> Question:
    if "\x00" in id:  # what no database takes names no message
        raise _unknown(id)
    if signature is None:
        return Question(id, None, served.keys.caller(request).may_use)
    if type is None or not served.signer.proves(signature, id, type):
        raise Refusal(
            HTTPStatus.FORBIDDEN, "The signature is not the one of this message: use its status_url as it was given."
        )
    return Question(id, type, type.__eq__)


Asking = Annotated[Question, Depends(_question)]


def _reading(request: Request) -> Reading:
    found: Reading = request.app.state.reading
    return found


Read = Annotated[Reading, Depends(_reading)]


# --- the routes -------------------------------------------------------------------------------------------------------


@router.get("/v1/messages/{id}", response_model=Status, summary="The status of a message")
async def show(question: Asking, served: Served, reading: Read) -> Response:
    """The state of each of its deliveries, with attempts, times and the last error.

    Of messages that are tracked, and of those that are in review or were scheduled. With the signature of a status_url
    no key is needed.
    """
    return _json(await _present(question, served, reading))


@router.get(
    "/v1/messages/{id}/events",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "An event `status` at once, and for each change."},
        204: {"description": "The client has seen the final status (its Last-Event-ID), and need not come again."},
    },
    summary="The status of a message, until it is final",
)
async def watch(
    question: Asking,
    request: Request,
    served: Served,
    reading: Read,
    last_event_id: Annotated[str | None, Header(description="Sent by a browser that comes again.")] = None,
) -> Response:
    """Server-sent events. The data of each is what `GET /v1/messages/{id}` answers; the last one is final."""
    present = await _present(question, served, reading)
    watching: Watching[Status] = request.app.state.watching
    return stream(watching, question.asked, present, last_event_id)


@router.delete(
    "/v1/messages/{id}",
    response_model=Status,
    responses=documented(409),
    summary="Cancel a message that is not due yet",
)
async def cancel(question: Asking, request: Request, served: Served, reading: Read) -> Response:
    """Have a scheduled message not published. A key is needed: a status_url lets others look, not act."""
    if question.proven is not None:
        served.keys.caller(request).require(question.proven)
    cancelled, found = await asyncio.to_thread(reading.cancel, question)
    if found is not None and not question.may_use(found.type):
        found = None
    if found is None and question.proven is None:
        raise _unknown(question.id)
    if found is not None and (cancelled or found.state is State.CANCELLED):
        return _json(found)
    state = State.WAITING if found is None else found.state
    raise Refusal(
        HTTPStatus.CONFLICT,
        f"The message {question.id!r} is {state}: only one that is scheduled, and not due yet, can be cancelled.",
    )


# --- below the routes -------------------------------------------------------------------------------------------------


async def _present(question: Question, served: Service, reading: Reading) -> Status:
    """What is known of the message now. Raises `Refusal`."""
    found = await asyncio.to_thread(reading.one, question.asked)
    if found is not None and question.may_use(found.type):
        return found
    if question.proven is None:
        raise _unknown(question.id)
    if is_older_than(question.id, served.settings.status_keep_days):
        days = f"{served.settings.status_keep_days:g}"
        raise Refusal(
            HTTPStatus.NOT_FOUND,
            f"The message {question.id!r} was accepted, and its status is forgotten: it is kept for {days} days.",
        )
    return waiting(question.id, question.proven, reading.consumers)


def _unknown(message_id: str) -> Refusal:
    return Refusal(
        HTTPStatus.NOT_FOUND,
        f"Nothing is known of a message {message_id!r}. If it was accepted just now, ask with its status_url; "
        "of a message that is not tracked nothing is known unless it fails.",
    )


def is_older_than(message_id: str, days: float) -> bool:
    """Whether the id, if it tells its time, was made longer ago."""
    try:
        made = UUID(message_id)
    except ValueError:
        return False
    return made.version == 7 and (made.int >> 80) / 1000 < time.time() - days * _DAY


def _json(found: Status) -> Response:
    return Response(found.model_dump_json(), media_type="application/json", headers={"Cache-Control": "no-store"})


def stream(watching: Watching[Known], asked: Asked, present: Known, last_event_id: str | None) -> Response:
    """The events of somebody who watches what is *present* now, and has seen *last_event_id*. Raises `Refusal`."""
    if present.is_final and last_event_id == _event_id(present.model_dump_json()):
        return Response(status_code=HTTPStatus.NO_CONTENT)  # else a browser would come again for ever
    if watching.is_full:
        raise unavailable("This gateway has as many open streams as it can hold. Ask for the status instead.")
    return _Stream(watching, watching.add(asked, present))


class _Stream(StreamingResponse):
    """The server-sent events of one watcher, who is gone when this ends, however that comes."""

    media_type = "text/event-stream"

    def __init__(self, watching: Watching[Any], watcher: Watcher[Any]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second: nginx would collect them
        super().__init__(_events(watching, watcher), headers=headers)
        self._watching = watching
        self._watcher = watcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._watching.remove(self._watcher)


async def _events(watching: Watching[Any], watcher: Watcher[Any]) -> AsyncIterator[str]:
    yield f"retry: {RETRY_MILLISECONDS}\n\n"
    async for changed in watching.changes(watcher):
        if changed is None:
            yield ": nothing new\n\n"
        else:
            data = changed.model_dump_json()
            yield f"id: {_event_id(data)}\nevent: status\ndata: {data}\n\n"


def _event_id(data: str) -> str:
    """The same for the same status, whichever gateway tells it."""
    return base64.urlsafe_b64encode(hashlib.sha256(data.encode()).digest()[:9]).decode()
