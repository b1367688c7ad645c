"""Every error of the gateway and the desk is a problem (RFC 9457, `application/problem+json`): a helpful sentence."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from ackline.infra.database import DatabaseUnavailable

log = logging.getLogger(__name__)

PROBLEM = "application/problem+json"
#: Seconds after which a client that got 503 may try again.
RETRY_AFTER = 2


class Problem(BaseModel):
    """What went wrong (RFC 9457). `errors` names each field that is wrong."""

    title: str
    status: int
    detail: str
    errors: list[dict[str, Any]] | None = None


class Refusal(Exception):
    """A request that is answered with a problem: `raise` it anywhere below a route."""

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

    def problem(self) -> dict[str, Any]:
        """As JSON."""
        shape = Problem(title=self.status.phrase, status=self.status, detail=self.detail, errors=self.errors)
        return shape.model_dump(exclude_none=True)


def unavailable(detail: str) -> Refusal:
    """503: nothing is wrong with the request, and it may be tried again soon."""
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": str(RETRY_AFTER)})


def faults(error: ValidationError | RequestValidationError) -> list[dict[str, str]]:
    """What does not fit, field by field; the values themselves are left out, they may be secret."""
    found = (
        error.errors(include_url=False, include_input=False, include_context=False)
        if isinstance(error, ValidationError)
        else error.errors()
    )
    return [{"field": ".".join(map(str, fault["loc"])), "message": fault["msg"]} for fault in found]


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: that a request may be answered with a problem of one of *statuses*."""
    content = {PROBLEM: {"schema": Problem.model_json_schema()}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Let *app* answer every error with a problem."""
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(DatabaseUnavailable, database_away)
    app.add_exception_handler(Exception, _failed)


def answer(refusal: Refusal) -> JSONResponse:
    """The refusal as a response."""
    return JSONResponse(refusal.problem(), refusal.status, media_type=PROBLEM, headers=refusal.headers or None)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)  # noqa: S101
    return answer(error)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101
    detail = f"{request.method} {request.url.path}: {error.detail}. See /docs."
    return answer(Refusal(HTTPStatus(error.status_code), detail, headers=error.headers))


async def _malformed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    return answer(Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "A parameter of the request is wrong.", faults(error)))


async def database_away(request: Request, error: Exception) -> JSONResponse:
    """The answer when the database does not."""
    log.error("%s %s: %s", request.method, request.url.path, error)
    return answer(unavailable("The database does not answer. Nothing was done; try again soon."))


async def _failed(request: Request, error: Exception) -> JSONResponse:
    log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
    return answer(
        Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "This failed; the server's log says why. The outcome is unknown.")
    )
