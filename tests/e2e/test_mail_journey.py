"""One mail's whole way: HTTP, worker, SMTP, retries, review, redrive, with every role as a process of its own."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from ackline.infra.settings import Settings
from tests.amqp import connect
from tests.doors import wait_connected
from tests.mail import MailSink
from tests.roles import RoleProcess, listening, role, run
from tests.waiting import until

MAILS = 20


@dataclass(frozen=True)
class Running:
    """Gateway, relay, worker, reviewer and a mail sink."""

    settings: Settings
    sink: MailSink
    gateway: httpx.Client
    worker: RoleProcess

    def send(self, to: str) -> str:
        """Send a mail over HTTP; the id of its message."""
        answer = self.gateway.post("/v1/messages/email.send", json={"to": to, "subject": "Hello", "body": "Hi"})
        assert answer.status_code == httpx.codes.ACCEPTED, answer.text
        return str(answer.json()["id"])

    def arrived(self, to: str) -> bool:
        return any(mail["To"] == to for mail in self.sink.mails())

    def list(self) -> list[dict[str, Any]]:
        """What `ackline dlq list --json` prints, a document each line."""
        done = run(self.settings, "dlq", "list", "--json")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def show(self, row: dict[str, Any]) -> dict[str, Any]:
        """What `ackline dlq show --json` prints."""
        done = run(self.settings, "dlq", "show", str(row["id"]), "--json")
        assert done.returncode == 0, done.stderr
        shown: dict[str, Any] = json.loads(done.stdout)
        return shown

    def in_review(self, message_id: str) -> dict[str, Any]:
        """The dead letter of that message, once it is in review."""

        def find() -> list[dict[str, Any]]:
            return [row for row in self.list() if row["message_id"] == message_id and row["state"] == "in review"]

        return until(find, what="the dead letter")[0]


@pytest.fixture
def running(ackline_settings: Settings, tmp_path: Path) -> Iterator[Running]:
    with ExitStack() as stack:
        sink = stack.enter_context(MailSink(tmp_path / "mail"))
        settings = ackline_settings.model_copy(update={"smtp_url": sink.url})
        stack.enter_context(role(settings, "reviewer"))
        stack.enter_context(role(settings, "relay"))  # for what a slow broker has not confirmed in time
        worker = stack.enter_context(role(settings, "worker"))
        address = listening(stack.enter_context(role(settings, "gateway", "--port", "0")))
        gateway = stack.enter_context(httpx.Client(base_url=address, timeout=60, trust_env=False))
        wait_connected(gateway)
        yield Running(settings, sink, gateway, worker)


def test_a_mail_is_in_the_sink_within_a_second(running: Running, say: Callable[[str], None]) -> None:
    """The quickest of them is: nothing on the way waits for a second. The others may meet whatever else runs here."""
    took = []
    for number in range(MAILS):
        to = f"ada-{number}@example.test"
        began = time.monotonic()
        running.send(to)
        until(lambda to=to: running.arrived(to), what=f"the mail to {to}")  # type: ignore[misc]
        took.append(time.monotonic() - began)
    median = statistics.median(took)
    say(f"{MAILS} mails, HTTP to sink: median {median:.3f} s, longest {max(took):.3f} s")
    assert min(took) < 1.0


def test_an_address_that_is_busy_twice_gets_its_mail_on_the_third_attempt(running: Running) -> None:
    running.sink.refuse("busy@example.test", code=451, times=2)
    began = time.monotonic()
    running.send("busy@example.test")
    until(lambda: running.arrived("busy@example.test"), what="the mail")
    # The tiers of 1 s and 5 s lie between the three attempts.
    assert time.monotonic() - began >= 6.0
    log = running.worker.log.read_text()
    assert log.count("failed, retry in 1s") == 1
    assert log.count("failed, retry in 5s") == 1
    assert running.list() == []


def test_an_address_that_does_not_exist_is_tried_once_and_shown_with_the_servers_words(running: Running) -> None:
    running.sink.refuse("gone@example.test", code=550, text="5.1.1 No such mailbox here")
    message_id = running.send("gone@example.test")
    row = running.in_review(message_id)
    assert row["attempts"] == 1
    assert row["consumer"] == "email"
    assert "550 5.1.1 No such mailbox here" in row["error_message"]
    assert datetime.fromisoformat(row["first_failed_at"]) <= datetime.fromisoformat(row["received_at"])

    shown = run(running.settings, "dlq", "show", str(row["id"])).stdout
    for part in (
        "550 5.1.1 No such mailbox here",
        "Traceback",
        "SMTPRecipientsRefused",
        "attempt 1",
        "gone@example.test",
    ):
        assert part in shown
    assert "ackline-consumer" in shown
    assert message_id in shown


def test_a_retried_dead_letter_is_handled_when_the_worker_says_so_and_not_before(running: Running) -> None:
    running.sink.refuse("gone@example.test", code=550)
    row = running.in_review(running.send("gone@example.test"))

    # Sent back too early: in review again, with a redrive more, and a worker that is away confirms nothing.
    again = run(running.settings, "dlq", "retry", str(row["id"]))
    assert again.returncode != 0
    assert "in review again" in again.stdout + again.stderr
    running.worker.kill()
    running.sink.accept("gone@example.test")
    assert run(running.settings, "dlq", "retry", "--no-wait", str(row["id"])).returncode == 0
    until(lambda: _messages(running, "email") == 1, what="the broker to have it")
    assert running.show(row)["state"] == "redriving"
    assert not running.arrived("gone@example.test")

    running.worker.start()
    until(lambda: running.show(row)["state"] == "handled", what="the row to be handled")
    assert running.arrived("gone@example.test")


def _messages(running: Running, queue: str) -> int:
    with closing(connect(running.settings.broker)) as connection:
        return int(connection.channel().queue_declare(queue, passive=True).method.message_count)


def test_a_discard_needs_a_reason_and_keeps_it(running: Running) -> None:
    running.sink.refuse("gone@example.test", code=550)
    row = running.in_review(running.send("gone@example.test"))
    for missing in ([], ["--reason", "  "]):
        refused = run(running.settings, "dlq", "discard", str(row["id"]), *missing)
        assert refused.returncode != 0
        assert "reason" in refused.stderr
    assert running.show(row)["state"] == "in review"

    done = run(running.settings, "dlq", "discard", str(row["id"]), "--reason", "left in 2019", ACKLINE_ACTOR="Ada")
    assert done.returncode == 0, done.stderr
    shown = running.show(row)
    assert (shown["state"], shown["discard_reason"], shown["discarded_by"]) == ("discarded", "left in 2019", "Ada")
