"""A bound on what requests bring."""

from __future__ import annotations

from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BoundedBodies:
    """ASGI middleware: a body of more than *most* bytes is refused (413) while it is read.

    apart: bounds of paths that have another one.
    """

    def __init__(self, app: ASGIApp, most: int, apart: dict[str, int]) -> None:
        self._app = app
        self._most = most
        self._apart = apart

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._apart.get(scope["path"], self._most)
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                detail = f"The body has more than {most:,} bytes"
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
            return message

        await self._app(scope, bounded, send)
