"""`email.send`: a mail through SMTP (`ACKLINE_SMTP_URL`).

What the server says decides: 4xx, a refused connection and a timeout are retried; 5xx goes to review at once, with the
server's words (RFC 5321, 4.2.1: a 5yz answer says that the same request will fail again).
"""

from __future__ import annotations

import contextlib
import re
import smtplib
import ssl
from email.errors import HeaderParseError, MessageDefect
from email.message import EmailMessage
from email.utils import formatdate
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ackline.consumers import Context, Reject, consumer, exponential
from ackline.infra.errors import ConfigurationError
from ackline.infra.settings import settings
from ackline.producer import message

#: Seconds that the mail server may take for each answer.
SMTP_TIMEOUT = 10.0

_SPECIAL = r"@\s<>,;:\\\"()\[\]\x00-\x1f\x7f"
_ADDRESS = re.compile(rf"[^{_SPECIAL}]+@[^.{_SPECIAL}]+(\.[^.{_SPECIAL}]+)*\Z")
#: RFC 2047. `email` decodes such words where they stand in a header, and what comes out may be a comma or a line break:
#: a second recipient, or a header of the writer's choice.
_ENCODED_WORD = re.compile(r"=\?.*\?=")


def _is_address(value: str) -> bool:
    return _ADDRESS.match(value) is not None and not _ENCODED_WORD.search(value)


def _check_address(value: str) -> str:
    if not _is_address(value):
        raise ValueError("is no mail address such as ada@example.test")
    return value


def _check_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be one line of printable characters")
    if _ENCODED_WORD.search(value):
        raise ValueError("must be plain text, without =?…?= words")
    return value


#: A mail address.
Address = Annotated[str, Field(max_length=254), AfterValidator(_check_address)]
#: Text that can stand in a header.
Line = Annotated[str, Field(max_length=998), AfterValidator(_check_line)]


@message("email.send")
class SendEmail(BaseModel):
    """One mail to one address."""

    model_config = ConfigDict(extra="forbid")

    to: Address = Field(description="address, such as ada@example.test")
    subject: Line
    body: str = Field(description="plain text")
    html: str | None = Field(default=None, description="the same as HTML")
    sender: Address | None = Field(default=None, description="address; ACKLINE_MAIL_FROM when not given")


class MailServerBusy(Exception):
    """The mail server did not take the mail now; it may later."""


@consumer("email", retry=exponential(attempts=5, first="1s", cap="5m"))
def send_email(mail: SendEmail, ctx: Context) -> None:
    """Send the mail. A repeated delivery sends it again, under the same Message-ID."""
    configured = settings()
    if configured.smtp_url is None:
        raise ConfigurationError("ACKLINE_SMTP_URL is not set: smtp://host:port of the server that sends mails.")
    try:
        _send(configured.smtp_url, mail.to, compose(mail, configured.mail_from, ctx.id))
    except smtplib.SMTPRecipientsRefused as error:
        _by_code(*next(iter(error.recipients.values())), error)
    except smtplib.SMTPResponseException as error:
        _by_code(error.smtp_code, error.smtp_error, error)
    except (smtplib.SMTPServerDisconnected, OSError) as error:
        raise MailServerBusy(f"the mail server cannot be reached: {error}") from error


def _by_code(code: int, words: bytes | str, error: Exception) -> None:
    said = f"{code} {words.decode('utf-8', 'replace') if isinstance(words, bytes) else words}"
    if 500 <= code <= 599:
        raise Reject(f"the mail server refused it: {said}") from error
    raise MailServerBusy(said) from error


def compose(mail: SendEmail, default_sender: str, id_: str | None) -> EmailMessage:
    """The mail as it is sent, under the Message-ID `<id_@ackline>` where *id_* can stand in one.

    Raises `Reject` when no mail can be made of it.
    """
    composed = EmailMessage()
    try:
        composed["From"] = mail.sender or default_sender
        composed["To"] = mail.to
        composed["Subject"] = mail.subject
        composed["Date"] = formatdate()
        if id_ is not None and _is_address(f"{id_}@ackline"):
            composed["Message-ID"] = f"<{id_}@ackline>"
        composed.set_content(mail.body)
        if mail.html is not None:
            composed.add_alternative(mail.html, subtype="html")
    except (ValueError, HeaderParseError, MessageDefect, LookupError) as error:
        raise Reject(f"no mail can be made of it: {error}") from error
    return composed


def _send(url: str, to: str, composed: EmailMessage) -> None:
    parts = urlsplit(url)
    where = (parts.hostname or "127.0.0.1", parts.port or 0)
    server: smtplib.SMTP
    if parts.scheme == "smtps":  # smtplib by itself would take any certificate
        server = smtplib.SMTP_SSL(*where, timeout=SMTP_TIMEOUT, context=ssl.create_default_context())
    else:
        server = smtplib.SMTP(*where, timeout=SMTP_TIMEOUT)
    try:
        if parts.username:
            server.login(unquote(parts.username), unquote(parts.password or ""))
        try:
            server.send_message(composed, to_addrs=[to])
        except (UnicodeEncodeError, smtplib.SMTPNotSupportedError) as error:
            raise Reject(f"the mail server cannot take it: {error}") from error
    finally:
        # What the server says to QUIT decides nothing: before it, the mail is either taken or refused.
        with contextlib.suppress(OSError):
            server.quit()
        server.close()
