"""The HTTP server of a gateway: uvicorn, which tells the app first when it is asked to stop."""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI


class Server(uvicorn.Server):
    """Ends the streams before it waits for what is under way: they would last until their messages are final."""

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, in order."""
        self._app.state.watching.close()
        await super().shutdown(sockets)
