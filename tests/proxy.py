"""A network between a client and the broker that a test can cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from ackline.infra.link import address
from ackline.infra.ports import LOOPBACK

_PIECE = 64 * 1024


class Proxy:
    """Passes connections on to the broker at *url*. While it is cut nothing arrives, in either direction, and nobody is
    told: connections are half open, as when packets are lost. A context manager."""

    def __init__(self, url: str) -> None:
        host, _, port = address(url).rpartition(":")
        self._broker = (host, int(port))
        self._listener = socket.create_server((LOOPBACK, 0))
        self._sockets: list[socket.socket] = []
        self._passing = threading.Event()
        self._passing.set()
        parts = urlsplit(url)
        credentials = parts.netloc.rpartition("@")[0]
        own = f"{credentials}@{LOOPBACK}:{self._listener.getsockname()[1]}"
        #: Where clients connect instead.
        self.url = urlunsplit(parts._replace(netloc=own))
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def cut(self) -> None:
        """Let nothing through, until `mend`."""
        self._passing.clear()

    def mend(self) -> None:
        """Let everything through again, and what was held up first."""
        self._passing.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                theirs, _ = self._listener.accept()
                self._passing.wait()
                try:
                    ours = socket.create_connection(self._broker)
                except OSError:  # the broker is away
                    theirs.close()
                    continue
                self._sockets += [theirs, ours]
                for pair in ((theirs, ours), (ours, theirs)):
                    threading.Thread(target=self._pass_on, args=pair, name="proxy", daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                self._passing.wait()
                target.sendall(piece)
        self._passing.wait()
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.close()
        self.mend()
        for each in self._sockets:
            each.close()
