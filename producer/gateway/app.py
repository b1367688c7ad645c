"""The gateway as an ASGI app. What it answers is in the modules beside this one, a router each."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import entry_points

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware

from ackline.infra import database
from ackline.infra.errors import ConfigurationError
from ackline.infra.hosts import is_loopback
from ackline.infra.ready import ready
from ackline.infra.secrets import secret
from ackline.infra.settings import Settings
from ackline.producer.gateway import (
    batch,
    contracts,
    documentation,
    files,
    messages,
    metrics,
    problems,
    status,
    uploads,
)
from ackline.producer.gateway.acceptance import Acceptance
from ackline.producer.gateway.direct import Direct
from ackline.producer.gateway.idempotency import Idempotency
from ackline.producer.gateway.keys import Keys
from ackline.producer.gateway.service import Service, service
from ackline.producer.gateway.signing import Signer
from ackline.producer.gateway.upload_storage import UploadStorage
from ackline.producer.publisher import Publisher
from ackline.producer.stamp import Stamps

#: Headers that a web page may send, beside those that need no permission.
_CORS_HEADERS = ("Authorization", "Idempotency-Key", "X-Correlation-Id", "traceparent", "tracestate")


def check_address(settings: Settings) -> None:
    """Raise `ConfigurationError` when the gateway would be open to other hosts without credentials.

    The database must have been upgraded: the keys in it count. Raises `DatabaseUnavailable`.
    """
    if settings.api_keys or is_loopback(settings.gateway_host):
        return
    engine = database.connect(settings.database)
    try:
        is_open = Keys(engine, settings.api_keys).is_open
    finally:
        engine.dispose()
    if is_open:
        raise ConfigurationError(
            f"The gateway does not listen on {settings.gateway_host} without credentials, since any host could "
            "publish: make a key with `ackline keys create NAME`, set ACKLINE_API_KEYS, or set "
            "ACKLINE_GATEWAY_HOST=127.0.0.1."
        )


def create_app(settings: Settings) -> FastAPI:
    """The gateway as an ASGI app. The contracts must have been imported (`load_app`), the database upgraded.

    It connects to the broker while it runs, and reconnects by itself.
    """
    storage = UploadStorage(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = database.connect(settings.database)
        keys = Keys(engine, settings.api_keys)
        keys.start()
        publisher = Publisher(settings.broker, name="gateway", app_id=settings.service)
        publisher.start()
        acceptance = Acceptance(publisher, engine, settings.outbox_most)
        idempotency = Idempotency(engine)
        app.state.watchings = []  # whose streams end first when it stops
        cleaning = asyncio.create_task(idempotency.keep_clean())
        try:
            await acceptance.start()
            app.state.service = Service(
                settings=settings,
                publisher=publisher,
                stamps=Stamps(settings.service),
                engine=engine,
                acceptance=acceptance,
                idempotency=idempotency,
                keys=keys,
                uploads=storage,
                signer=Signer(secret(engine, "status")),
            )
            # What is there now stays: else each full collection would go through it, and hold everybody up meanwhile.
            gc.collect()
            gc.freeze()
            ready()  # the socket listens already
            yield
        finally:
            cleaning.cancel()
            await acceptance.close()
            await publisher.aclose()
            keys.close()
            storage.close()
            engine.dispose()

    app = FastAPI(
        title="Ackline gateway",
        description="Publishes messages. 202 means that the message is durable: RabbitMQ has it, or the outbox.",
        lifespan=lifespan,
        docs_url=None,  # see `documentation`
        redoc_url=None,
        redirect_slashes=False,  # another address is another resource, and says so
        # Errors are problems, which the routes name themselves; FastAPI's own 422 shape does not occur.
        responses=problems.documented(400, 401, 403, 404, 409, 413, 415, 422, 429, 503),
    )
    problems.install(app)
    app.add_middleware(Direct, single=messages.router, batch=batch.router)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=_CORS_HEADERS,
            expose_headers=("Retry-After",),
        )
    metrics.install(app)
    documentation.install(app)
    documentation.describe_contracts(app)
    app.include_router(messages.router)
    app.include_router(batch.router)
    app.include_router(uploads.router)
    app.include_router(files.router)
    app.include_router(contracts.router)
    app.include_router(status.router)
    for point in entry_points(group="ackline.routes"):
        router = point.load()(settings)
        if router is not None:
            app.include_router(router)
    app.get("/healthz", summary="The process is alive", include_in_schema=False)(healthz)
    app.get("/readyz", summary="Messages are accepted", include_in_schema=False)(readyz)
    return app


async def healthz() -> dict[str, str]:
    """Alive."""
    return {"status": "alive"}


async def readyz(request: Request) -> JSONResponse:
    """Whether a message that is sent now would be accepted, and whether it would go straight to the broker."""
    problem = service(request).publisher.problem
    broker = {"broker": "connected" if problem is None else problem}
    if problem is not None:
        why = await service(request).acceptance.cannot_store()
        if why is not None:
            return JSONResponse({"status": "not ready", "reason": why} | broker, HTTPStatus.SERVICE_UNAVAILABLE)
    return JSONResponse({"status": "ready"} | broker)
