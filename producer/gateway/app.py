"""The gateway as an ASGI app. What it answers is in the modules beside this one, a router each."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from ackline.infra import database
from ackline.infra.errors import ConfigurationError
from ackline.infra.ready import ready
from ackline.infra.secrets import secret
from ackline.infra.settings import Settings
from ackline.producer.gateway import contracts, messages, problems
from ackline.producer.gateway.keys import Keys
from ackline.producer.gateway.service import Service, service
from ackline.producer.gateway.signing import Signer
from ackline.producer.publisher import Publisher


def check_address(settings: Settings) -> None:
    """Raise `ConfigurationError` when the gateway would be open to other hosts without credentials."""
    if not settings.api_keys and not _is_loopback(settings.gateway_host):
        raise ConfigurationError(
            f"The gateway does not listen on {settings.gateway_host} without credentials, since any host could "
            "publish: set ACKLINE_API_KEYS, or ACKLINE_GATEWAY_HOST=127.0.0.1."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def create_app(settings: Settings) -> FastAPI:
    """The gateway as an ASGI app. The contracts must have been imported (`load_app`), the database upgraded.

    It connects to the broker while it runs, and reconnects by itself.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = database.connect(settings.database)
        publisher = Publisher(settings.broker, name="gateway", app_id=settings.service)
        publisher.start()
        try:
            app.state.service = Service(
                settings=settings,
                publisher=publisher,
                engine=engine,
                keys=Keys(settings.api_keys),
                signer=Signer(secret(engine, "status")),
            )
            ready()  # the socket listens already
            yield
        finally:
            await asyncio.to_thread(publisher.close)
            engine.dispose()

    app = FastAPI(
        title="Ackline gateway",
        description="Publishes messages. 202 means that RabbitMQ has the message on disk.",
        lifespan=lifespan,
        # Errors are problems, which the routes name themselves; FastAPI's own 422 shape does not occur.
        responses={status: {"model": problems.Problem} for status in (401, 404, 413, 415, 422, 503)},
    )
    problems.install(app)
    app.include_router(messages.router)
    app.include_router(contracts.router)
    app.get("/healthz", summary="The process is alive", include_in_schema=False)(healthz)
    app.get("/readyz", summary="The broker takes messages", include_in_schema=False)(readyz)
    return app


async def healthz() -> dict[str, str]:
    """Alive."""
    return {"status": "alive"}


async def readyz(request: Request) -> JSONResponse:
    """Whether a message that is sent now would be confirmed."""
    problem = service(request).publisher.problem
    if problem is not None:
        return JSONResponse({"status": "not ready", "reason": problem}, HTTPStatus.SERVICE_UNAVAILABLE)
    return JSONResponse({"status": "ready"})
