"""The desk as an ASGI app. What it answers is in the modules beside this one, a router for each topic."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ackline.dlq.api import (
    approvals,
    audit,
    edits,
    events,
    groups,
    ledger,
    letters,
    metrics,
    people,
    redrives,
    refusals,
    session,
    transfer,
)
from ackline.dlq.api.access import PROTECTED
from ackline.dlq.api.bodies import BoundedBodies
from ackline.dlq.api.service import Served, Service
from ackline.dlq.api.watching import Watching
from ackline.dlq.contracts import Contracts
from ackline.dlq.desk import Desk
from ackline.dlq.people import People
from ackline.infra import database
from ackline.infra.errors import ConfigurationError
from ackline.infra.hosts import is_loopback
from ackline.infra.ready import ready
from ackline.infra.settings import Settings
from ackline.producer.gateway import documentation, problems

#: Bytes of a request beside the payload of an edit: its JSON may have six for each of the payload.
_ROOM = 64 * 1024
_ESCAPED = 6


def check_address(settings: Settings) -> None:
    """Raise `ConfigurationError` when the desk would be open to other hosts without people.

    The database must have been upgraded: the people are in it. Raises `DatabaseUnavailable`.
    """
    if is_loopback(settings.desk_host):
        return
    engine = database.connect(settings.database)
    try:
        is_open = not People(engine).exist()
    finally:
        engine.dispose()
    if is_open:
        raise ConfigurationError(
            f"The desk does not listen on {settings.desk_host} without people, since anybody could read, change and "
            "discard dead letters: add somebody with `ackline people add NAME --role admin`, or set "
            "ACKLINE_DESK_HOST=127.0.0.1."
        )


def create_app(settings: Settings) -> FastAPI:
    """The desk as an ASGI app. The database must have been upgraded; it is connected to when it is first used.

    Raises `ConfigurationError`, and what the modules of the application raise.
    """
    engine = database.connect(settings.database)
    desk = Desk(engine, settings, Contracts.of(settings))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = Watching(lambda: events.look(desk))
        app.state.watchings = [watching]
        app.state.service = Service(settings, engine, desk, watching)
        try:
            ready()  # the socket listens already
            yield
        finally:
            watching.close()
            engine.dispose()

    app = FastAPI(
        title="Ackline desk",
        description="Works through dead letters. Every error is a problem (RFC 9457); what waits for a second person "
        "is answered with 202.",
        lifespan=lifespan,
        docs_url=None,  # see `documentation`
        redoc_url=None,
        redirect_slashes=False,  # another address is another resource, and says so
        responses=problems.documented(400, 401, 403, 404, 409, 413, 422, 429, 503),
    )
    refusals.install(app)
    documentation.install(app)
    largest = _ESCAPED * settings.max_body_bytes + _ROOM
    app.add_middleware(BoundedBodies, most=largest, apart={transfer.IMPORT: transfer.MAX_IMPORT_BYTES})
    app.add_middleware(Guarded)
    for topic in (letters, edits, groups, redrives, approvals, audit, ledger, people, transfer, events):
        app.include_router(topic.router, dependencies=PROTECTED)
    app.include_router(session.router)
    app.include_router(metrics.router, dependencies=PROTECTED)
    app.get("/healthz", summary="The process is alive", include_in_schema=False)(healthz)
    app.get("/readyz", summary="The desk can be used", include_in_schema=False)(readyz)
    return app


async def healthz() -> dict[str, str]:
    """Alive."""
    return {"status": "alive"}


def readyz(served: Served) -> JSONResponse:
    """Whether the database answers; nothing else is needed. Raises `DatabaseUnavailable`, which is 503."""
    served.desk.people.exist()
    return JSONResponse({"status": "ready"})


class Guarded:
    """ASGI middleware: what is below `/api/` is data, to no browser anything else, and kept by nobody."""

    _HEADERS = (
        (b"cache-control", b"no-store"),
        (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox"),
        (b"cross-origin-resource-policy", b"same-origin"),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    )

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        if scope["type"] != "http" or not scope["path"].startswith("/api/"):
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._HEADERS]
            await send(message)

        await self._app(scope, receive, guarded)
