"""The HTTP server of a gateway or a desk: uvicorn, which tells the app first when it is asked to stop."""

from __future__ import annotations

import logging
import signal
import socket
import sys

import uvicorn
from fastapi import FastAPI

from ackline.infra.errors import ConfigurationError


class Server(uvicorn.Server):
    """Ends the streams before it waits for what is under way: they would last as long as somebody watches."""

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, in order."""
        for watching in self._app.state.watchings:
            watching.close()
        await super().shutdown(sockets)


def listen(role: str, host: str, port: int) -> socket.socket:
    """A listening socket. Raises `ConfigurationError` with a sentence when it cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]  # Python adds the address, which is there already
        raise ConfigurationError(
            f"The {role} cannot listen on {host}:{port}: {why}. Choose another with ACKLINE_{role.upper()}_PORT."
        ) from None


def serve(app: FastAPI, listening: socket.socket, grace_seconds: float) -> None:
    """Serve *app* until SIGTERM or Ctrl-C, and what is under way then for *grace_seconds* at most."""
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=int(grace_seconds) or 1)
    host, port = listening.getsockname()[:2]
    logging.getLogger(__name__).info("listening on http://%s:%s", host, port)
    # uvicorn raises the signal that stopped it again when it is done: a role that was asked to stop ends with 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    Server(app, config).run(sockets=[listening])
