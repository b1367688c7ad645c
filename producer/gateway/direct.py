"""The way of a message past the framework's routing, which takes longer than everything else that it needs.

FastAPI finds a route, and enters exit stacks, dependencies and error handlers for it, in three times the time that it
takes to check a message and have it confirmed. Publishing uses none of that. The routes stay FastAPI's, for OpenAPI and
as what serves every other address; this middleware only goes to their endpoints by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from fastapi.routing import APIRoute, APIRouter
from starlette.types import ASGIApp, Receive, Scope, Send

from ackline.infra.database import DatabaseUnavailable
from ackline.producer.gateway.problems import Refusal, answer, database_away

_BATCH = "/v1/messages"
_SINGLE = "/v1/messages/"


class Direct:
    """ASGI middleware that serves `POST /v1/messages` and `POST /v1/messages/{type}`. The innermost one."""

    def __init__(self, app: ASGIApp, single: APIRouter, batch: APIRouter) -> None:
        """single, batch: the routers whose first route it is."""
        self._app = app
        self._single = _first(single)
        self._batch = _first(batch)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        route = self._route(scope)
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        endpoint: Callable[[Request], Awaitable[Response]] = route.endpoint
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request)
        except Refusal as refusal:
            response = answer(refusal)
        except DatabaseUnavailable as error:
            response = await database_away(request, error)
        await response(scope, receive, send)

    def _route(self, scope: Scope) -> APIRoute | None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return None
        path: str = scope["path"]
        if path == _BATCH:
            return self._batch
        if not path.startswith(_SINGLE):
            return None
        name = path[len(_SINGLE) :]
        if not name or "/" in name:
            return None
        scope["path_params"] = {"type": name}
        return self._single


def _first(router: APIRouter) -> APIRoute:
    route = router.routes[0]
    assert isinstance(route, APIRoute)  # noqa: S101
    return route
