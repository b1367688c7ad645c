"""What the desk's services raise, as answers: problems (RFC 9457), and 202 for what waits for a second person."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from ackline.dlq.errors import (
    AmbiguousMessageId,
    Forbidden,
    Invalid,
    NeedsApproval,
    NotFound,
    NotSignedIn,
    Refused,
    Throttled,
)
from ackline.infra.errors import AcklineError, ConfigurationError
from ackline.infra.link import BrokerRefused, BrokerUnreachable
from ackline.producer.gateway import problems
from ackline.producer.gateway.problems import Refusal

_STATUSES: dict[type[AcklineError], HTTPStatus] = {
    NotFound: HTTPStatus.NOT_FOUND,
    AmbiguousMessageId: HTTPStatus.CONFLICT,
    Refused: HTTPStatus.CONFLICT,
    Invalid: HTTPStatus.UNPROCESSABLE_ENTITY,
    NotSignedIn: HTTPStatus.UNAUTHORIZED,
    Throttled: HTTPStatus.TOO_MANY_REQUESTS,
    Forbidden: HTTPStatus.FORBIDDEN,
    # Of what asks the broker: it is away, or not as it is configured here. Nothing is wrong with the request.
    BrokerUnreachable: HTTPStatus.SERVICE_UNAVAILABLE,
    BrokerRefused: HTTPStatus.SERVICE_UNAVAILABLE,
    ConfigurationError: HTTPStatus.SERVICE_UNAVAILABLE,
}


class Waiting(BaseModel):
    """Nothing was done yet: it waits until a second person approves the request."""

    approval: int = Field(description="Id of the request.")
    rule: str = Field(description="Why it waits.")
    detail: str
    url: str = Field(description="Where the request is, relative to this server.")


#: For OpenAPI: of a route whose action may have to wait for a second person.
WAITS: dict[int | str, dict[str, Any]] = {
    202: {"model": Waiting, "description": "It waits for a second person."},
}


def install(app: FastAPI) -> None:
    """Let *app* answer every error with a problem."""
    problems.install(app)
    for kind in _STATUSES:
        app.add_exception_handler(kind, _refused)
    app.add_exception_handler(NeedsApproval, _waits)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    status = next(_STATUSES[kind] for kind in type(error).__mro__ if kind in _STATUSES)
    errors, headers = None, {}
    if isinstance(error, Invalid) and error.faults:
        errors = [{"field": fault.path, "message": fault.message} for fault in error.faults]
    if isinstance(error, Throttled):
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    elif status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(problems.RETRY_AFTER)
    elif isinstance(error, NotSignedIn):
        headers["WWW-Authenticate"] = "Bearer"
    detail = str(error)
    return problems.answer(Refusal(status, detail if detail.endswith((".", "?")) else f"{detail}.", errors, headers))


async def _waits(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, NeedsApproval)  # noqa: S101
    url = f"/api/approvals/{error.approval}"
    found = Waiting(approval=error.approval, rule=error.rule, detail=str(error), url=url)
    return JSONResponse(found.model_dump(), HTTPStatus.ACCEPTED, headers={"Location": url})
