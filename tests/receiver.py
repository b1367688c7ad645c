"""HTTP servers on loopback that are called by what a test runs."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from ackline.infra.ports import LOOPBACK


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes
    method: str = "POST"


@dataclass(frozen=True)
class Answering:
    """What is answered."""

    status: int = 204
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


Answers = Callable[[Received], Answering]


class Receiver:
    """Keeps every request in `received`, and answers what *answers* says, on a thread of its own for each."""

    def __init__(self, answers: Answers = lambda request: Answering(), port: int = 0) -> None:
        self.received: list[Received] = []
        kept = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                request = Received(self.path, dict(self.headers.items()), body, self.command)
                kept.append(request)
                answer = answers(request)
                self.send_response(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            do_GET = do_PUT = do_POST  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *arguments: object) -> None:
                """A caller that was killed, or did not wait, is no fault."""

        self._server = Server((LOOPBACK, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/hook?a=1&b=%20"

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.socket.close()
        self._thread.join()


@contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that takes one connection and has *serve* do with it what it likes, until it is closed."""
    listening = socket.create_server((LOOPBACK, 0))
    failed: queue.SimpleQueue[Exception] = queue.SimpleQueue()

    def run() -> None:
        connection, _ = listening.accept()
        with connection:
            try:
                serve(connection)
            except OSError:  # the caller hung up
                pass
            except Exception as error:
                failed.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
        socket.create_connection(listening.getsockname()).close()  # in case that nobody called
        thread.join(60)
        assert not thread.is_alive(), "the caller has not hung up"
        assert failed.empty(), failed.get()
    finally:
        listening.close()
