"""The folder in which the mail sink keeps what it accepted, one `.eml` file for each mail."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from email import policy
from email.parser import BytesHeaderParser
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail that was received: its envelope's recipients, its subject, when and where it is kept."""

    file: Path
    received: datetime
    recipients: tuple[str, ...]
    subject: str


class Mailbox:
    """The mails in a *folder*. A reader never sees half a mail; names never come from a message."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def keep(self, content: bytes, *, sender: str, recipients: list[str]) -> Path:
        """Keep one mail, with its envelope as its first headers. Raises `OSError` when there is no room."""
        envelope = [f"Return-Path: <{sender}>", *(f"Delivered-To: {address}" for address in recipients)]
        now = datetime.now(UTC)
        file = self.folder / f"{now:%Y%m%dT%H%M%S.%f}Z-{uuid.uuid4().hex}.eml"
        temporary = file.with_suffix(".part")
        try:
            temporary.write_bytes("".join(f"{line}\r\n" for line in envelope).encode() + content)
            temporary.rename(file)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return file

    def files(self) -> list[Path]:
        """The mails' files, oldest first."""
        return sorted(self.folder.glob("*.eml"))

    def mails(self, *, last: int | None = None) -> list[Mail]:
        """The mails, oldest first; only the *last* so many if given."""
        files = self.files()
        return [_read(file) for file in (files if last is None else files[-last:] if last else [])]


def _read(file: Path) -> Mail:
    with file.open("rb") as content:
        headers = BytesHeaderParser(policy=policy.default).parse(content)
    received = datetime.strptime(file.name.partition("-")[0], "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC)
    recipients = tuple(_printable(address) for address in headers.get_all("Delivered-To", []))
    return Mail(file, received, recipients, _printable(headers.get("Subject", "")))


def _printable(text: object) -> str:
    """One line without control characters: a subject may hold what rewrites a terminal."""
    return "".join(character if character.isprintable() else " " for character in str(text)).strip()
