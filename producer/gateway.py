"""The HTTP door for upstream services: an answer of 202 means that RabbitMQ has the message.

Errors are `application/problem+json` (RFC 9457). The app checks the payload against the contract, so what gets in by
this door fits its type; what a contract does not accept is refused here, with the fields that are wrong.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from ackline.infra.errors import ConfigurationError
from ackline.infra.ready import ready
from ackline.infra.settings import Settings
from ackline.producer.errors import InvalidMessage, MessageTooLarge, NotPermitted, PublishError
from ackline.producer.message import contracts
from ackline.producer.publisher import Publisher

log = logging.getLogger(__name__)

#: Seconds that a request waits for the broker's confirm before it is told that the outcome is unknown.
CONFIRM_SECONDS = 5.0
#: Seconds after which a client that got 503 may try again.
RETRY_AFTER = 2

PROBLEM = "application/problem+json"


class Accepted(BaseModel):
    """The broker has the message."""

    id: str
    type: str
    state: str = "waiting"


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    title: str
    status: int
    detail: str
    errors: list[dict[str, Any]] | None = None


class Refusal(Exception):
    """A request that is answered with a problem."""

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        errors: list[dict[str, Any]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors
        self.headers = dict(headers or {})


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
    """The gateway as an ASGI app. The contracts must have been imported (`load_app`).

    It connects to the broker while it runs, and reconnects by itself; until then it answers 503.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        publisher = Publisher(settings.broker, name="gateway", app_id=settings.service)
        publisher.start()
        app.state.publisher = publisher
        ready()  # the socket listens already
        yield
        await asyncio.to_thread(publisher.close)

    app = FastAPI(
        title="Ackline gateway",
        description="Publishes messages. 202 means that RabbitMQ has the message on disk.",
        lifespan=lifespan,
        # Errors are problems, which the routes name themselves; FastAPI's own 422 shape does not occur.
        responses={status: {"model": Problem} for status in (401, 404, 413, 415, 422, 503)},
    )
    app.state.settings = settings
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failed)
    app.post("/v1/messages/{type}", status_code=202, response_model=Accepted, summary="Publish one message")(publish)
    app.get("/v1/types", summary="The message types and their JSON Schemas")(types)
    app.get("/healthz", summary="The process is alive", include_in_schema=False)(healthz)
    app.get("/readyz", summary="The broker takes messages", include_in_schema=False)(readyz)
    return app


def _problem(status: HTTPStatus, detail: str, errors: Any = None, headers: Mapping[str, str] | None = None) -> Any:
    problem = Problem(title=status.phrase, status=status, detail=detail, errors=errors)
    return JSONResponse(
        problem.model_dump(exclude_none=True), status, media_type=PROBLEM, headers=dict(headers) if headers else None
    )


async def _refused(request: Request, error: Exception) -> Any:
    assert isinstance(error, Refusal)  # noqa: S101
    return _problem(error.status, error.detail, error.errors, error.headers)


async def _http_error(request: Request, error: Exception) -> Any:
    assert isinstance(error, HTTPException)  # noqa: S101
    detail = f"{request.method} {request.url.path}: {error.detail}. See /docs."
    return _problem(HTTPStatus(error.status_code), detail, headers=error.headers)


async def _failed(request: Request, error: Exception) -> Any:
    log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
    return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "The gateway failed; its log says why. The outcome is unknown.")


def require_key(request: Request, authorization: Annotated[str | None, Header()] = None) -> None:
    """Refuse a request without one of the configured keys, if there are any."""
    keys = request.app.state.settings.api_keys
    if not keys:
        return
    scheme, _, given = (authorization or "").partition(" ")
    known = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys]
    if scheme.lower() != "bearer" or not any(known):
        raise Refusal(
            HTTPStatus.UNAUTHORIZED,
            "This gateway wants a key: Authorization: Bearer KEY.",
            headers={"WWW-Authenticate": "Bearer"},
        )


async def publish(
    type: str,  # noqa: A002 - the name of the path parameter, which clients see
    request: Request,
    _: Annotated[None, Depends(require_key)],
    x_correlation_id: Annotated[str | None, Header()] = None,
    traceparent: Annotated[str | None, Header()] = None,
) -> Accepted:
    """Publish the body as a message of the type in the path, and answer when RabbitMQ has confirmed it."""
    model = contracts().get(type)
    if model is None:
        known = ", ".join(sorted(contracts())) or "none"
        raise Refusal(HTTPStatus.NOT_FOUND, f"There is no message type {type!r}; this gateway has: {known}.")
    body = await _body(request)
    try:
        message = model.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        named = [{"field": ".".join(map(str, fault["loc"])), "message": fault["msg"]} for fault in faults]
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"The body is no {type}.", named) from None
    publisher: Publisher = request.app.state.publisher
    if publisher.problem is not None:
        raise _unavailable(publisher.problem + " The message was not sent.")
    try:
        receipt = await publisher.apublish(
            message,
            correlation_id=x_correlation_id,
            headers={"traceparent": traceparent} if traceparent else None,
            timeout=CONFIRM_SECONDS,
        )
    except (MessageTooLarge, InvalidMessage) as error:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from None
    except NotPermitted as error:
        raise Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, str(error)) from None
    except PublishError as error:
        raise _unavailable(str(error)) from None
    return Accepted(id=receipt.message_id, type=receipt.type)


def _unavailable(detail: str) -> Refusal:
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": str(RETRY_AFTER)})


async def _body(request: Request) -> bytes:
    """The request's body, read no further than the configured bound."""
    most = request.app.state.settings.max_body_bytes
    # It must be said: a web page may send a body without a type to any address, this machine's own included, but one
    # that says JSON only where CORS permits it.
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        named = content_type or "without a content type"
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"The body must be application/json, not {named}.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body has more than {most:,} bytes (ACKLINE_MAX_BODY_BYTES)."
            )
    return bytes(body)


async def types(_: Annotated[None, Depends(require_key)]) -> list[dict[str, Any]]:
    """Every message type with the JSON Schema of its payload."""
    return [{"type": name, "schema": model.model_json_schema()} for name, model in sorted(contracts().items())]


async def healthz() -> dict[str, str]:
    """Alive."""
    return {"status": "alive"}


async def readyz(request: Request) -> JSONResponse:
    """Whether a message that is sent now would be confirmed."""
    problem = request.app.state.publisher.problem
    if problem is not None:
        return JSONResponse({"status": "not ready", "reason": problem}, HTTPStatus.SERVICE_UNAVAILABLE)
    return JSONResponse({"status": "ready"})
