"""`email.send` against mail servers: aiosmtpd's, and one that misbehaves as it is told."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from ackline.consumers import Context, registered
from ackline.consumers.consumer import Consumer
from ackline.consumers.delivery import Delivery
from ackline.consumers.handlers import email as handler
from ackline.consumers.handlers.email import SendEmail, send_email
from ackline.consumers.handling import Settlement, Way, handle
from ackline.infra import wire
from ackline.infra.names import DEAD, MESSAGES
from ackline.infra.ports import LOOPBACK, free_port
from ackline.infra.properties import Properties
from ackline.infra.settings import settings
from ackline.producer import Publisher
from tests.amqp import Client
from tests.broker import Vhost
from tests.mail import MailSink
from tests.waiting import until
from tests.working import working

MAIL = {"to": "ada@example.test", "subject": "Hello", "body": "Hi Ada"}


@pytest.fixture(autouse=True)
def _fresh_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The handler reads the settings of its process once: begin and end without any."""
    monkeypatch.setenv("ACKLINE_DATA_DIR", str(tmp_path / "data"))
    for name in ("ACKLINE_SMTP_URL", "ACKLINE_MAIL_FROM"):
        monkeypatch.delenv(name, raising=False)
    settings.cache_clear()
    yield
    settings.cache_clear()


def _through(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACKLINE_SMTP_URL", url)


def _email() -> Consumer:
    return registered()["email"]


def _settled(**changes: Any) -> Settlement:
    """What follows from the first delivery of a mail."""
    delivery = Delivery(MESSAGES, "email.send", Properties(message_id="m-1"), json.dumps(MAIL | changes).encode())

    return handle(Way(_email(), "here:1", _email().handler, wants_context=True), delivery)


def _retried(settlement: Settlement) -> str:
    """The message of the error that a delivery is retried after, in the first tier."""
    (outgoing,) = settlement.outgoing
    assert outgoing.exchange == "ackline.retry.1s"
    (attempt,) = json.loads(outgoing.properties.headers.text(wire.HISTORY) or "")
    assert attempt["error"] == "MailServerBusy"
    return str(attempt["message"])


def _reason(settlement: Settlement) -> str | None:
    (outgoing,) = settlement.outgoing
    assert outgoing.exchange == DEAD
    return outgoing.properties.headers.text(wire.REASON)


class _Script:
    """A mail server that says "250 OK" but to the verbs in *replies*; None ends the connection instead.

    `greeting` is said first, and `.` is the verb of the line that ends a mail. A verb in *silent* is never answered.
    """

    def __init__(self, replies: dict[str, str | None] | None = None, *, silent: str | None = None) -> None:
        self._replies: dict[str, str | None] = {"greeting": "220 hello", "DATA": "354 go on", "QUIT": "221 bye"}
        self._replies |= replies or {}
        self._silent = silent
        self._listener = socket.create_server((LOOPBACK, 0))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self.url = f"smtp://{LOOPBACK}:{self._listener.getsockname()[1]}"

    def __enter__(self) -> _Script:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while not self._over.is_set():
                connection, _ = self._listener.accept()
                with connection, connection.makefile("rwb") as stream:
                    self._talk(stream)

    def _talk(self, stream: Any) -> None:
        with contextlib.suppress(OSError):
            verb = "greeting"
            while verb:
                if verb == self._silent:
                    self._over.wait(30)
                    return
                reply = self._replies.get(verb, "250 OK")
                if reply is None:
                    return
                stream.write(reply.encode() + b"\r\n")
                stream.flush()
                verb = self._read(stream, in_mail=verb == "DATA" and reply.startswith("354"))

    def _read(self, stream: Any, *, in_mail: bool) -> str:
        while line := stream.readline().decode():
            if not in_mail:
                return str(line).split()[0].upper()
            if line == ".\r\n":
                return "."
        return ""


# --- what a mail server says, and what follows -------------------------------------------------------------


def test_an_accepted_mail_is_in_the_servers_hands_as_it_was_written(
    smtp_sink: MailSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    _through(smtp_sink.url, monkeypatch)
    assert _settled(subject="Grüße 🎉", body="Hi\n.dot\nBcc: eve@example.test\n", html="<p>Hi</p>") == Settlement()
    (mail,) = smtp_sink.mails()
    assert (mail["Subject"], mail["To"], mail["From"]) == ("Grüße 🎉", "ada@example.test", "ackline@localhost")
    assert mail.get_all("Delivered-To") == ["ada@example.test"]
    assert mail["Message-ID"] == "<m-1@ackline>"
    plain, html = mail.iter_parts()
    assert plain.get_content().replace("\r\n", "\n") == "Hi\n.dot\nBcc: eve@example.test\n"
    assert html.get_content_type() == "text/html"


def test_a_mail_has_the_sender_that_it_names_and_the_configured_one_otherwise(
    smtp_sink: MailSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    _through(smtp_sink.url, monkeypatch)
    monkeypatch.setenv("ACKLINE_MAIL_FROM", "Shop <shop@example.test>")
    assert _settled() == Settlement()
    assert _settled(sender="bob@example.test") == Settlement()
    assert [(mail["From"], mail["Return-Path"]) for mail in smtp_sink.mails()] == [
        ("Shop <shop@example.test>", "<shop@example.test>"),
        ("bob@example.test", "<bob@example.test>"),
    ]


def test_a_refusal_for_now_is_retried_with_the_servers_words(
    smtp_sink: MailSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    _through(smtp_sink.url, monkeypatch)
    smtp_sink.refuse("ada@example.test", code=451, text="Mailbox busy")
    assert _retried(_settled()) == "451 Mailbox busy"


def test_a_refusal_for_ever_goes_to_review_at_once_with_the_servers_words(
    smtp_sink: MailSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    _through(smtp_sink.url, monkeypatch)
    smtp_sink.refuse("ada@example.test", code=550, text="No such mailbox here")
    assert _reason(_settled()) == "the mail server refused it: 550 No such mailbox here"


@pytest.mark.parametrize("verb", ["greeting", "MAIL", "RCPT", "DATA", "."])
def test_wherever_the_server_says_no_its_code_decides(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with _Script({verb: "554 we do not like you"}) as server:
        _through(server.url, monkeypatch)
        assert _reason(_settled()) == "the mail server refused it: 554 we do not like you"
    settings.cache_clear()
    with _Script({verb: "421 come again"}) as server:
        _through(server.url, monkeypatch)
        assert _retried(_settled()) == "421 come again"


@pytest.mark.parametrize("verb", ["greeting", "EHLO", "MAIL", "RCPT", "DATA", "."])
def test_a_server_that_hangs_up_is_tried_again(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with _Script({verb: None}) as server:
        _through(server.url, monkeypatch)
        assert _retried(_settled()).startswith("the mail server cannot be reached: Connection unexpectedly closed")


@pytest.mark.parametrize("verb", ["greeting", "EHLO", "RCPT", "."])
def test_a_server_that_does_not_answer_is_tried_again(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "SMTP_TIMEOUT", 0.2)
    with _Script(silent=verb) as server:
        _through(server.url, monkeypatch)
        # Had it waited for the server, that would have closed the connection after half a minute.
        assert "timed out" in _retried(_settled())


@pytest.mark.parametrize("reply", ["421 leaving", "500 what?", None])
def test_what_the_server_says_to_quit_decides_nothing(reply: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    with _Script({"QUIT": reply}) as server:
        _through(server.url, monkeypatch)
        assert _settled() == Settlement()
    settings.cache_clear()
    with _Script({"QUIT": reply, "RCPT": "550 no such mailbox"}) as server:
        _through(server.url, monkeypatch)
        assert _reason(_settled()) == "the mail server refused it: 550 no such mailbox"


def test_a_server_that_is_not_there_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _through(f"smtp://{LOOPBACK}:1", monkeypatch)
    said = _retried(_settled())
    assert said.startswith("the mail server cannot be reached: ")
    assert said.endswith("Connection refused")


def test_a_server_that_takes_no_such_password_refuses_every_mail_with_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with _Script({"EHLO": "250-hello\r\n250 AUTH PLAIN", "AUTH": "535 wrong password"}) as server:
        _through(server.url.replace("smtp://", "smtp://user:s3cr3t-word@"), monkeypatch)
        settlement = _settled()
    assert _reason(settlement) == "the mail server refused it: 535 wrong password"
    (outgoing,) = settlement.outgoing
    assert b"s3cr3t-word" not in outgoing.properties.wire


def test_without_a_mail_server_the_history_says_which_setting_is_missing() -> None:
    (outgoing,) = _settled().outgoing
    assert outgoing.exchange == "ackline.retry.1s"
    assert "ACKLINE_SMTP_URL is not set" in (outgoing.properties.headers.text(wire.HISTORY) or "")


# --- addresses beyond ASCII, and injections ----------------------------------------------------------------


def test_an_address_beyond_ascii_arrives_where_the_server_takes_it(
    smtp_sink: MailSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    _through(smtp_sink.url, monkeypatch)
    assert _settled(to="grüße@exämple.test") == Settlement()
    (mail,) = smtp_sink.mails()
    assert (mail["To"], mail["Delivered-To"]) == ("grüße@exämple.test", "grüße@exämple.test")


class _Keeps:
    """What aiosmtpd asks, for a server that keeps what it gets."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        self.kept.append(envelope.content)
        return "250 OK"


def test_an_address_beyond_ascii_is_in_review_where_the_server_does_not_take_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keeps = _Keeps()
    controller: Any = Controller(
        keeps, hostname=LOOPBACK, port=free_port(), enable_SMTPUTF8=False, server_hostname="localhost"
    )
    controller.start()
    try:
        _through(f"smtp://{LOOPBACK}:{controller.port}", monkeypatch)
        assert (_reason(_settled(to="grüße@example.test")) or "").startswith("the mail server cannot take it: ")
        assert keeps.kept == []
        assert _settled(subject="Grüße") == Settlement()
        assert len(keeps.kept) == 1
    finally:
        controller.stop()


@pytest.mark.parametrize(
    "changes",
    [
        {"to": "ada@example.test\r\nRCPT TO:<eve@example.test>"},
        {"to": "ada@example.test, eve@example.test"},
        {"to": "=?utf-8?q?eve=40example.test=2C?=ada@example.test"},
        {"sender": "ada@example.test>\r\nRCPT TO:<eve@example.test"},
        {"subject": "Hello\r\nBcc: eve@example.test"},
        {"subject": "=?utf-8?q?Hello=0D=0ABcc:_eve=40example.test?="},
        {"bcc": "eve@example.test"},
    ],
)
def test_an_injection_is_in_review_and_reaches_no_server(
    smtp_sink: MailSink, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]
) -> None:
    _through(smtp_sink.url, monkeypatch)
    assert (_reason(_settled(**changes)) or "").startswith(f"the body is no email.send: {next(iter(changes))}: ")
    assert smtp_sink.mails() == []


def test_a_body_that_speaks_smtp_is_a_body(smtp_sink: MailSink, monkeypatch: pytest.MonkeyPatch) -> None:
    _through(smtp_sink.url, monkeypatch)
    body = "Hi\r\n.\r\nMAIL FROM:<eve@example.test>\r\nRCPT TO:<eve@example.test>\r\nDATA\r\nBcc: eve\r\n.\r\n"
    assert _settled(body=body) == Settlement()
    (mail,) = smtp_sink.mails()
    assert mail.get_all("Delivered-To") == ["ada@example.test"]
    assert mail.get_content().splitlines() == body.splitlines()


# --- the whole way -----------------------------------------------------------------------------------------


def test_an_address_that_is_busy_twice_gets_its_mail_on_the_third_attempt_after_the_tiers_delays(
    vhost: Vhost, smtp_sink: MailSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    _through(smtp_sink.url, monkeypatch)
    smtp_sink.refuse("ada@example.test", code=451, text="Mailbox busy", times=2)
    contexts: list[Context] = []

    def send(mail: SendEmail, ctx: Context) -> None:
        contexts.append(ctx)
        send_email(mail, ctx)

    with (
        working(vhost.amqp_url, dataclasses.replace(_email(), handler=send)),
        Publisher(vhost.amqp_url) as publisher,
        Client(vhost.amqp_url) as client,
    ):
        publisher.publish(SendEmail.model_validate(MAIL), timeout=60)
        until(smtp_sink.mails, what="the mail")
        arrived = time.time()
        assert [client.ready(queue) for queue in ("email", DEAD)] == [0, 0]
    assert [ctx.attempt for ctx in contexts] == [1, 2, 3]
    history = json.loads(contexts[2].headers[wire.HISTORY])
    assert [entry["message"] for entry in history] == ["451 Mailbox busy"] * 2
    first, second = (datetime.fromisoformat(entry["at"]).timestamp() for entry in history)
    assert second - first >= 1.0  # 1 s, the tier of the policy's first delay
    assert arrived - second >= 5.0  # 2 s, rounded up to the next tier
    assert len(smtp_sink.mails()) == 1


def test_an_address_that_does_not_exist_is_one_attempt_and_a_dead_letter_with_the_servers_words(
    vhost: Vhost, smtp_sink: MailSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    _through(smtp_sink.url, monkeypatch)
    smtp_sink.refuse("ada@example.test", code=550, text="No such mailbox here")
    with (
        working(vhost.amqp_url, _email()),
        Publisher(vhost.amqp_url) as publisher,
        Client(vhost.amqp_url) as client,
    ):
        receipt = publisher.publish(SendEmail.model_validate(MAIL), timeout=60)
        dead = until(lambda: client.take(DEAD), what="the dead letter")
    assert dead.properties.message_id == receipt.message_id
    assert dead.headers[wire.REASON] == "the mail server refused it: 550 No such mailbox here"
    assert [entry["attempt"] for entry in json.loads(dead.headers[wire.HISTORY])] == [1]
    assert "SMTPRecipientsRefused" in dead.headers[wire.TRACEBACK]
    assert json.loads(dead.body)["to"] == "ada@example.test"


def test_a_mail_server_that_comes_back_gets_the_mail(
    vhost: Vhost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = MailSink(tmp_path / "mail")
    _through(sink.url, monkeypatch)
    attempts: list[int] = []

    def send(mail: SendEmail, ctx: Context) -> None:
        try:
            send_email(mail, ctx)
        finally:
            attempts.append(ctx.attempt)

    with working(vhost.amqp_url, dataclasses.replace(_email(), handler=send)):
        with Publisher(vhost.amqp_url) as publisher:
            publisher.publish(SendEmail.model_validate(MAIL), timeout=60)
        until(lambda: attempts, what="the first attempt, in vain")
        with sink:
            until(sink.mails, what="the mail")
    assert len(sink.mails()) == 1
    assert attempts == list(range(1, len(attempts) + 1))
    assert len(attempts) > 1
