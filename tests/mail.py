"""The mail sink as tests see it."""

from __future__ import annotations

from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

from ackline.infra.ports import free_port
from ackline.infra.refusals import Refusal
from ackline.infra.sink_server import SinkServer


class MailSink:
    """Runs `ackline sink`'s server in this process."""

    def __init__(self, folder: Path) -> None:
        self._server = SinkServer(folder, port=free_port())

    @property
    def url(self) -> str:
        """What `ACKLINE_SMTP_URL` has to be."""
        return self._server.url

    def mails(self) -> list[EmailMessage]:
        """What was accepted, oldest first; `Delivered-To` headers hold the envelope's recipients."""
        found = []
        for file in self._server.mailbox.files():
            message = message_from_bytes(file.read_bytes(), policy=policy.default)
            assert isinstance(message, EmailMessage)
            found.append(message)
        return found

    def refuse(self, address: str, *, code: int = 451, text: str = "Mailbox busy", times: int | None = None) -> None:
        """Refuse mail to *address*, *times* times or until `accept`."""
        self._server.refusals.refuse(Refusal(address, code, text, times))

    def accept(self, address: str) -> None:
        """Accept mail to *address* again."""
        self._server.refusals.accept(address)

    def stop(self) -> None:
        """Stop listening, as a mail server that is down."""
        self._server.stop()

    def __enter__(self) -> MailSink:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
