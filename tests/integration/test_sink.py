"""The mail sink, spoken to as a mail client does, and its commands."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import socket
import subprocess
import sys
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.mail import MailSink
from tests.waiting import until


def _send(url: str, to: str, subject: str = "Hello", body: str = "Hi") -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "ackline@localhost", to, subject
    message.set_content(body)
    address = urlsplit(url)
    with smtplib.SMTP(address.hostname or "", address.port or 0, timeout=60) as client:
        client.send_message(message)


def _sink(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ackline.infra", "sink", *arguments],
        env=os.environ | {"ACKLINE_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_an_accepted_mail_is_one_file_with_its_envelope(smtp_sink: MailSink) -> None:
    _send(smtp_sink.url, "ada@example.test", subject="Grüße", body="Hi\n.dot\n")
    (mail,) = smtp_sink.mails()
    assert (mail["Subject"], mail["Delivered-To"], mail["Return-Path"]) == (
        "Grüße",
        "ada@example.test",
        "<ackline@localhost>",
    )
    assert mail.get_content().replace("\r\n", "\n") == "Hi\n.dot\n"


def test_a_refused_recipient_hears_the_code_and_text_and_nothing_is_kept(smtp_sink: MailSink) -> None:
    smtp_sink.refuse("ada@example.test", code=451, text="Mailbox busy", times=1)
    with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
        _send(smtp_sink.url, "ada@example.test")
    assert refused.value.recipients == {"ada@example.test": (451, b"Mailbox busy")}
    assert smtp_sink.mails() == []
    _send(smtp_sink.url, "ada@example.test")
    assert len(smtp_sink.mails()) == 1


def test_the_sink_listens_on_one_loopback_address_only(smtp_sink: MailSink) -> None:
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", urlsplit(smtp_sink.url).port or 0), timeout=1).close()


def test_a_stopped_sink_ends_a_client_that_is_still_connected(smtp_sink: MailSink) -> None:
    address = urlsplit(smtp_sink.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as client:
        assert client.recv(100).startswith(b"220 localhost")
        smtp_sink.stop()
        assert client.recv(100) == b""


def test_a_full_disk_is_answered_as_try_again_later(smtp_sink: MailSink, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(smtplib.SMTPDataError) as refused:
        _send(smtp_sink.url, "ada@example.test")
    assert refused.value.smtp_code == 452


def test_the_commands_refuse_accept_and_list_in_words(tmp_path: Path) -> None:
    refuse = ["refuse", "ada@example.test", "--code", "550", "--text", "No such mailbox", "--times", "3"]
    assert (
        "Mail to ada@example.test is refused the next 3 times: 550 No such mailbox" in _sink(tmp_path, *refuse).stdout
    )
    listed = _sink(tmp_path, "list").stdout
    assert f"No mail in {tmp_path / 'mail'} yet." in listed
    assert "Refused: ada@example.test with 550 No such mailbox (3 more times)" in listed
    assert "is accepted again" in _sink(tmp_path, "accept", "ada@example.test").stdout
    assert "was not refused" in _sink(tmp_path, "accept", "ada@example.test").stdout
    assert _sink(tmp_path, "refuse", "ada@example.test", "--code", "250").returncode == 2


def test_a_listed_subject_cannot_move_the_cursor(tmp_path: Path) -> None:
    with MailSink(tmp_path / "mail") as running:
        _send(running.url, "ada@example.test", subject="red \x1b[31m alert")
    listed = _sink(tmp_path, "list").stdout
    assert "alert" in listed
    assert "\x1b" not in listed
    assert f"1 mail in {tmp_path / 'mail'}." in listed


def test_the_command_serves_until_sigterm_and_comes_back_on_the_same_port(tmp_path: Path) -> None:
    ports = {_serve_once(tmp_path), _serve_once(tmp_path)}
    assert len(ports) == 1


def test_a_busy_port_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = _sink(tmp_path, "run", "--port", str(port))
    assert done.returncode == 1
    assert re.fullmatch(rf"ackline: The mail sink cannot listen on 127.0.0.1:{port}: .*\n", done.stderr)


def _serve_once(data_dir: Path) -> int:
    """Run `ackline sink` until it has taken one mail; returns its port."""
    output = data_dir / "output"
    with output.open("wb") as sink_output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ackline.infra", "sink"],
            env=os.environ | {"ACKLINE_DATA_DIR": str(data_dir), "PYTHONUNBUFFERED": "1"},
            stdout=sink_output,
            stderr=subprocess.STDOUT,
        )
    try:
        said = until(lambda: re.search(r"smtp://127.0.0.1:(\d+)", output.read_text()), what="the sink to listen")
        _send(said[0], "ada@example.test")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    return int(said[1])
