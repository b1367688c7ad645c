"""The mail sink's server: takes mail, sends none, and refuses whom it is told to refuse."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session

from ackline.infra.errors import AcklineError
from ackline.infra.mailbox import Mailbox
from ackline.infra.ports import LOOPBACK, free_port, is_free
from ackline.infra.refusals import Refusals

#: Names the port that the sink had last, in its folder.
_PORT_FILE = "port"


class SinkServer:
    """A mail server on *port* of *host* that keeps mail under *folder*; a context manager.

    It asks nobody for a password: another *host* than the loopback address is for a network of containers.

    It runs on a thread of its own. `start` returns when it listens, and raises `AcklineError` when it cannot.
    """

    def __init__(self, folder: Path, *, port: int, host: str = LOOPBACK) -> None:
        self.host = host
        self.port = port
        self.mailbox = Mailbox(folder)
        self.refusals = Refusals(folder)
        self._listening = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="mail-sink", daemon=True)

    @property
    def url(self) -> str:
        """What `ACKLINE_SMTP_URL` has to be."""
        return f"smtp://{self.host}:{self.port}"

    def start(self) -> None:
        """Begin to take mail."""
        self._thread.start()
        self._listening.wait()
        if self._failure is not None:
            self._thread.join()
            raise AcklineError(f"The mail sink cannot listen on {self.host}:{self.port}: {self._failure.strerror}.")

    def stop(self) -> None:
        """End, and wait for it. What was answered with 250 is kept."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def __enter__(self) -> SinkServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        handler = _Handler(self.mailbox, self.refusals)
        try:
            server = await self._loop.create_server(lambda: _protocol(handler), self.host, self.port)
        except OSError as error:
            self._failure = error
            return
        finally:
            self._listening.set()
        await self._stop.wait()
        server.close()  # `asyncio.run` then ends the sessions that are open


class _Handler:
    """What aiosmtpd calls. The files it writes are small, so it may do so on the event loop."""

    def __init__(self, mailbox: Mailbox, refusals: Refusals) -> None:
        self._mailbox = mailbox
        self._refusals = refusals

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        try:
            refusal = self._refusals.take(address)
        except AcklineError as error:
            return f"451 {error}"
        if refusal is not None:
            return refusal.reply
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        content = envelope.original_content or b""
        try:
            self._mailbox.keep(content, sender=envelope.mail_from or "", recipients=list(envelope.rcpt_tos))
        except OSError as error:
            return f"452 the mail sink cannot keep it: {error.strerror}"
        return "250 OK"


def _protocol(handler: _Handler) -> Any:
    # hostname: else aiosmtpd asks the DNS for this machine's name, which can take seconds.
    return SMTP(handler, hostname="localhost", ident="Ackline mail sink", enable_SMTPUTF8=True)


def settle_port(folder: Path) -> int:
    """The port that the sink of *folder* had last if it is free, else a new one, which is remembered."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / _PORT_FILE
    try:
        port = int(file.read_text())
    except (OSError, ValueError):
        port = 0
    if not 0 < port < 65536 or not is_free(port):
        port = free_port()
        file.write_text(f"{port}\n")
    return port
