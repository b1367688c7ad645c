"""Callbacks over real HTTP: where a call goes, when it is made, how it is signed, and what happens when it fails."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, delete, insert, select, update

from ackline.infra import database
from ackline.infra.ports import LOOPBACK, free_port
from ackline.infra.settings import Settings
from ackline.infra.tables import CallbackState, DeliveryState, OutboxState, callbacks, deliveries, outbox
from ackline.infra.wire import now
from ackline.producer import webhook
from ackline.producer.callback_sender import WAITING_PER_HOST, CallbackSender
from ackline.producer.callbacks import GIVE_UP, PAUSES, Callback, owe
from ackline.producer.outbound import Answer, NoAnswer, Outbound
from ackline.producer.outbox import cancel
from tests.mail import MailSink
from tests.receiver import Answering, Received, Receiver, raw_server
from tests.roles import ROOT, environment, listening, role, run
from tests.waiting import until

NAME = "hooks.example.com"
TYPE = "order.placed"


# --- where a call goes ------------------------------------------------------------------------------------------------


def to_loopback(name: str) -> list[str]:
    assert name == NAME
    return [LOOPBACK]


def outbound(**options: Any) -> Outbound:
    return Outbound([NAME, LOOPBACK], **({"resolve": to_loopback} | options))


def test_the_call_goes_to_the_address_that_was_checked_under_the_name_of_the_url() -> None:
    with Receiver(lambda request: Answering(503, (("Retry-After", "7"),))) as receiver:
        answer = outbound().post(f"http://{NAME}:{receiver.port}/a/b?c=d&e=%20", b"body", {"X-One": "1"})
    assert answer == Answer(503, "7")
    [received] = receiver.received
    assert received.path == "/a/b?c=d&e=%20"
    assert received.headers == {
        "Host": f"{NAME}:{receiver.port}",
        "Content-Length": "4",
        "Connection": "close",
        "X-One": "1",
    }
    assert received.body == b"body"


def test_a_name_that_changes_its_address_after_the_check_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([[LOOPBACK], ["169.254.169.254"]])
    asked: list[tuple[Any, ...]] = []
    getaddrinfo = socket.getaddrinfo

    def watched(host: Any, *arguments: Any, **options: Any) -> Any:
        asked.append((host, *arguments))
        return getaddrinfo(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", watched)
    with Receiver() as receiver:
        assert outbound(resolve=lambda name: next(answers)).post(f"http://{NAME}:{receiver.port}/", b"", {})
    assert len(receiver.received) == 1
    assert next(answers) == ["169.254.169.254"]
    assert {host for host, *_ in asked} <= {LOOPBACK}  # a number, which needs no resolver


def test_the_next_address_of_a_name_is_called_when_the_first_refuses() -> None:
    with Receiver() as receiver:
        caller = Outbound([NAME, "127.0.0.0/8"], resolve=lambda name: ["127.0.0.9", LOOPBACK])
        assert caller.post(f"http://{NAME}:{receiver.port}/", b"", {}).status == 204


def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    with Receiver() as elsewhere, Receiver(lambda request: Answering(307, (("Location", elsewhere.url),))) as receiver:
        assert outbound().post(receiver.url, b"", {}).status == 307
    assert elsewhere.received == []


def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as proxy, Receiver() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{LOOPBACK}:{proxy.port}")
        assert outbound().post(receiver.url, b"", {}).status == 204
    assert proxy.received == []


def head(connection: socket.socket) -> None:
    """Read a request's head."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += (piece := connection.recv(65536))
        if not piece:
            raise ConnectionResetError


def test_the_status_is_the_answer_and_an_endless_body_is_not_read() -> None:
    def serve(connection: socket.socket) -> None:
        head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n")

    with raw_server(serve) as port:
        assert outbound().post(f"http://{LOOPBACK}:{port}/", b"", {}).status == 200


@pytest.mark.parametrize(
    "endless",
    [b"x", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, b"220 mail.example ESMTP\r\n"],
    ids=["a byte", "continue", "a header", "another protocol"],
)
def test_an_answer_that_never_ends_or_is_no_http_is_no_answer(endless: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        head(connection)
        while True:
            connection.sendall(endless)

    with raw_server(serve) as port, pytest.raises(NoAnswer, match=r"\.$"):
        outbound().post(f"http://{LOOPBACK}:{port}/", b"", {}, seconds=1)


def test_one_deadline_holds_for_all_of_a_call_however_slowly_the_answer_drips() -> None:
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not over.wait(0.05):
            connection.sendall(b"x")

    with raw_server(serve) as port:
        try:
            with pytest.raises(NoAnswer, match=rf"{LOOPBACK}:{port} did not answer within 0.5 s\.$"):
                outbound().post(f"http://{LOOPBACK}:{port}/", b"", {}, seconds=0.5)
        finally:
            over.set()


def test_silence_is_no_answer() -> None:
    def serve(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass

    with raw_server(serve) as port, pytest.raises(NoAnswer, match=r"did not answer within 0\.5 s"):
        outbound().post(f"http://{LOOPBACK}:{port}/", b"x" * 10_000_000, {}, seconds=0.5)


def test_a_resolver_that_is_silent_is_no_answer() -> None:
    over = threading.Event()

    def resolve(name: str) -> list[str]:
        over.wait(60)
        return [LOOPBACK]

    try:
        with pytest.raises(NoAnswer, match=r"did not answer within 0\.5 s"):
            outbound(resolve=resolve).post(f"http://{NAME}/", b"", {}, seconds=0.5)
    finally:
        over.set()


def test_nobody_there_is_no_answer() -> None:
    with pytest.raises(NoAnswer, match=r"gave no answer: .*Connection refused\.$"):
        outbound().post(f"http://{LOOPBACK}:{free_port()}/", b"", {})


def certificate(folder: Path, name: str) -> Path:
    """A key and a certificate for *name*, signed by itself, in one file."""
    made = folder / f"{name}.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(made), "-out", str(folder / "certificate"), "-subj", f"/CN={name}", "-days", "2"]
    command += ["-addext", f"subjectAltName=DNS:{name}"]
    subprocess.run(command, check=True, capture_output=True)
    made.write_text(made.read_text() + (folder / "certificate").read_text())
    return made


@contextmanager
def tls_server(file: Path, names: list[str | None]) -> Iterator[int]:
    """The port of an HTTPS server with the certificate in *file*; the name that the caller asks for goes to *names*."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    context.sni_callback = lambda _socket, name, _context: names.append(name)

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            head(secured)
            secured.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with raw_server(serve) as port:
        yield port


def test_the_certificate_must_be_that_of_the_name_in_the_url(tmp_path: Path) -> None:
    names: list[str | None] = []
    right, wrong = certificate(tmp_path, NAME), certificate(tmp_path, "other.example.com")
    trusting = ssl.create_default_context()
    for file in (right, wrong):
        trusting.load_verify_locations(file)
    with tls_server(right, names) as port:
        assert outbound(tls=trusting).post(f"https://{NAME}:{port}/", b"", {}).status == 204
    with (
        tls_server(wrong, names) as port,
        pytest.raises(NoAnswer, match="certificate verify failed: Hostname mismatch"),
    ):
        outbound(tls=trusting).post(f"https://{NAME}:{port}/", b"", {})
    with tls_server(right, names) as port, pytest.raises(NoAnswer, match="certificate verify failed: self-signed"):
        outbound().post(f"https://{NAME}:{port}/", b"", {})
    assert names == [NAME] * 3


# --- when a call is made ----------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a database and no broker: calling back needs none."""
    return Settings(
        amqp_url="amqp://127.0.0.1:1",
        data_dir=tmp_path,
        database_url=f"sqlite:///{tmp_path / 'data' / 'ackline.db'}",
        callback_hosts=(LOOPBACK,),
        grace_seconds=30.0,
    )


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    database.upgrade(settings.database)
    made = database.connect(settings.database)
    yield made
    made.dispose()


@contextmanager
def sender(engine: Engine, settings: Settings) -> Iterator[CallbackSender]:
    """A sender while the block runs. It must end by itself when it is told to."""
    stopping = threading.Event()
    found = CallbackSender(engine, settings, stopping)
    thread = threading.Thread(target=found.run)
    thread.start()
    try:
        yield found
    finally:
        stopping.set()
        thread.join(90)
        assert not thread.is_alive()


def note(engine: Engine, message_id: str, url: str) -> None:
    with database.writing(engine) as connection:
        owe(connection, message_id, TYPE, url)


def report(engine: Engine, *message_ids: str, consumer: str = "billing", state: str = DeliveryState.HANDLED) -> None:
    """What the reviewer stores when a worker reports."""
    at = now()
    rows = [
        {
            "message_id": message_id,
            "consumer": consumer,
            "type": TYPE,
            "state": state,
            "attempts": 1,
            "first_at": at,
            "changed_at": at,
            "worker": "host:1",
        }
        for message_id in message_ids
    ]
    with database.writing(engine) as connection:
        connection.execute(insert(deliveries), rows)


def row(engine: Engine, message_id: str) -> Callback:
    columns = [callbacks.c[name] for name in Callback.__dataclass_fields__]
    with database.reading(engine) as connection:
        found = connection.execute(select(*columns).where(callbacks.c.message_id == message_id)).one()
    return Callback(**found._mapping)


def change(engine: Engine, message_id: str, **values: Any) -> None:
    with database.writing(engine) as connection:
        connection.execute(update(callbacks).where(callbacks.c.message_id == message_id).values(**values))


def states(engine: Engine) -> set[str]:
    with database.reading(engine) as connection:
        return set(connection.scalars(select(callbacks.c.state)))


def verify() -> Callable[[str, dict[str, str], bytes], bool]:
    """The receiver's function in docs/publishing.md, as it stands there."""
    section = (ROOT / "docs" / "publishing.md").read_text().partition("\n## Callbacks\n")[2].partition("\n## ")[0]
    [program] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, Any] = {}
    exec(program, names)
    found: Callable[[str, dict[str, str], bytes], bool] = names["verify"]
    return found


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_final_message_is_told_to_who_asked_in_a_call_that_can_be_verified(
    kind: str, tmp_path: Path, settings: Settings, request: pytest.FixtureRequest
) -> None:
    if kind == "postgresql":
        settings = settings.model_copy(update={"database_url": request.getfixturevalue("postgresql_url")})
    database.upgrade(settings.database)
    engine = database.connect(settings.database)
    try:
        report(engine, "m-1", "m-2")
        report(engine, "m-1", consumer="shipping", state=DeliveryState.WAITING_FOR_RETRY)
        with Receiver() as receiver, sender(engine, settings):
            for message_id in ("m-1", "m-2"):
                note(engine, message_id, receiver.url)
            until(lambda: row(engine, "m-2").state == CallbackState.DELIVERED, what="the call")
            looked_at = row(engine, "m-1").next_at
            until(lambda: row(engine, "m-1").next_at > looked_at, what="another look at what is not final")
            assert row(engine, "m-1").attempts == 0
            assert [call.headers["Webhook-Id"] for call in receiver.received] == ["m-2"]
            with database.writing(engine) as connection:
                handled = update(deliveries).where(deliveries.c.consumer == "shipping")
                connection.execute(handled.values(state=DeliveryState.HANDLED))
            until(lambda: row(engine, "m-1").state == CallbackState.DELIVERED, what="the other call")
            secret = webhook.shown(webhook.key(settings, engine))
    finally:
        engine.dispose()
    second = receiver.received[1]
    told = json.loads(second.body)
    assert (told["id"], told["type"], told["state"], told["is_final"]) == ("m-1", TYPE, "handled", True)
    assert [(found["consumer"], found["state"]) for found in told["deliveries"]] == [
        ("billing", "handled"),
        ("shipping", "handled"),
    ]
    assert second.path == "/hook?a=1&b=%20"
    assert second.headers["Content-Type"] == "application/json"
    assert re.fullmatch(r"ackline/\d+\.\d+.*", second.headers["User-Agent"])
    verified = verify()
    assert verified(secret, second.headers, second.body)
    assert not verified(webhook.shown(bytes(32)), second.headers, second.body)
    assert not verified(secret, second.headers, second.body + b" ")
    assert not verified(secret, second.headers | {"Webhook-Id": "m-2"}, second.body)
    assert not verified(secret, second.headers | {"Webhook-Timestamp": "1614265330"}, second.body)


def attempted(engine: Engine, message_id: str, times: int) -> Callback:
    """The callback once *times* attempts have been noted."""
    until(lambda: row(engine, message_id).attempts == times, what=f"attempt {times}")
    return row(engine, message_id)


def test_what_fails_is_called_again_later_under_the_same_id(engine: Engine, settings: Settings) -> None:
    answers = iter([Answering(500), Answering(302, (("Location", "/elsewhere"),)), Answering(202)])
    report(engine, "m-1")
    with Receiver(lambda request: next(answers)) as receiver, sender(engine, settings):
        before = now()
        note(engine, "m-1", receiver.url)
        first = attempted(engine, "m-1", 1)
        assert (first.state, first.error) == ("waiting", "It answered 500 Internal Server Error.")
        assert first.next_at >= before + timedelta(seconds=PAUSES[0])
        change(engine, "m-1", next_at=now())
        second = attempted(engine, "m-1", 2)
        assert (second.state, second.error) == ("waiting", "It answered 302 Found.")
        change(engine, "m-1", next_at=now())
        third = attempted(engine, "m-1", 3)
    assert (third.state, third.error) == ("delivered", None)
    assert third.finished_at is not None
    assert [(call.path, call.headers["Webhook-Id"]) for call in receiver.received] == [("/hook?a=1&b=%20", "m-1")] * 3


def test_a_receiver_that_is_away_is_called_when_it_is_back(engine: Engine, settings: Settings) -> None:
    port = free_port()
    report(engine, "m-1")
    with sender(engine, settings):
        note(engine, "m-1", f"http://{LOOPBACK}:{port}/")
        assert "Connection refused" in str(attempted(engine, "m-1", 1).error)
        with Receiver(port=port) as receiver:
            change(engine, "m-1", next_at=now())
            until(lambda: row(engine, "m-1").state == "delivered", what="the call")
    assert len(receiver.received) == 1


def test_after_the_last_attempt_it_has_failed_until_a_person_begins_anew(engine: Engine, settings: Settings) -> None:
    report(engine, "m-1", "m-2", "m-3")
    bad = {"m-1", "m-2"}

    def answers(request: Received) -> Answering:
        return Answering(410 if request.headers["Webhook-Id"] == "m-2" else 500) if bad else Answering()

    with Receiver(answers) as receiver, contextlib.ExitStack() as stack:
        for message_id in ("m-1", "m-2", "m-3"):
            note(engine, message_id, receiver.url)
        change(engine, "m-1", attempts=len(PAUSES))
        stack.enter_context(sender(engine, settings))
        until(lambda: row(engine, "m-1").state == row(engine, "m-2").state == "failed", what="the end")
        attempted(engine, "m-3", 1)
        assert command(settings, "list", "--state", "failed", "--json").count("\n") == 2
        listed = command(settings, "list")
        assert "It answered 410 Gone." in listed
        assert len(listed.splitlines()) == 4
        assert "\x1b" not in listed
        bad.clear()
        assert command(settings, "retry", "m-1", "m-2", "m-3") == "".join(
            f"{message_id}: will be called\n" for message_id in ("m-1", "m-2", "m-3")
        )
        until(lambda: states(engine) == {"delivered"}, what="the calls")
    assert command(settings, "list") == ""
    delivered = [json.loads(line) for line in command(settings, "list", "--state", "all", "--json").splitlines()]
    assert {(found["message_id"], found["attempts"], found["error"]) for found in delivered} == {
        ("m-1", 1, None),
        ("m-2", 1, None),
        ("m-3", 1, None),
    }


def command(settings: Settings, *arguments: str) -> str:
    """What `ackline callbacks` prints."""
    done = run(settings, "callbacks", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_shows_the_secret_and_refuses_what_is_not_owed(engine: Engine, settings: Settings) -> None:
    assert command(settings, "secret") == webhook.shown(webhook.key(settings, engine)) + "\n"
    own = webhook.shown(bytes(range(32)))
    assert run(settings, "callbacks", "secret", ACKLINE_CALLBACK_SECRET=own).stdout == own + "\n"
    refused = run(settings, "callbacks", "secret", ACKLINE_CALLBACK_SECRET="hunter2")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    unknown = run(settings, "callbacks", "retry", "m-9")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr == (
        "ackline: No callback is owed for a message 'm-9'; `ackline callbacks list` shows what there is.\n"
    )
    wrong = run(settings, "callbacks", "list", ACKLINE_CALLBACK_HOSTS="https://hooks.example.com")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "ACKLINE_CALLBACK_HOSTS" in wrong.stderr


def test_a_call_is_owed_once_for_each_message(engine: Engine) -> None:
    note(engine, "m-1", "https://first.example.com/")
    note(engine, "m-1", "https://second.example.com/")
    assert row(engine, "m-1").url == "https://first.example.com/"


def test_an_address_that_is_not_allowed_any_more_is_not_called(engine: Engine, settings: Settings) -> None:
    report(engine, "m-1")
    with Receiver() as receiver, sender(engine, settings.model_copy(update={"callback_hosts": ("10.0.0.0/8",)})):
        note(engine, "m-1", receiver.url)
        assert "may not be called" in str(attempted(engine, "m-1", 1).error)
    assert receiver.received == []


def test_a_message_of_which_nothing_is_known_is_given_up_and_one_in_review_is_not(
    engine: Engine, settings: Settings
) -> None:
    report(engine, "in review", state=DeliveryState.IN_REVIEW)
    for message_id in ("in review", "unknown"):
        note(engine, message_id, f"http://{LOOPBACK}:9999/")
        change(engine, message_id, created_at=now() - GIVE_UP, next_at=now())
    with sender(engine, settings):
        until(lambda: row(engine, "unknown").state == "failed", what="the end")
        until(lambda: row(engine, "in review").next_at > now(), what="a look")
    assert (row(engine, "unknown").attempts, row(engine, "unknown").error) == (
        0,
        "Nothing is known of the message after 30 days.",
    )
    assert (row(engine, "in review").attempts, row(engine, "in review").state) == (0, "waiting")


def test_a_scheduled_message_is_as_old_as_the_time_since_it_was_due_and_a_cancelled_one_is_told(
    engine: Engine, settings: Settings
) -> None:
    due_at = now() + timedelta(days=400)
    with database.writing(engine) as connection:
        scheduled = {
            "message_id": "m-1",
            "type": TYPE,
            "properties": b"",
            "payload": b"",
            "created_at": now(),
            "due_at": due_at,
            "state": OutboxState.WAITING,
        }
        connection.execute(insert(outbox).values(scheduled))
    with Receiver() as receiver, sender(engine, settings):
        note(engine, "m-1", receiver.url)
        until(lambda: row(engine, "m-1").created_at == due_at, what="a look")
        with database.writing(engine) as connection:
            assert cancel(connection, "m-1")
        change(engine, "m-1", next_at=now())
        until(lambda: row(engine, "m-1").state == "delivered", what="the call")
    assert json.loads(receiver.received[0].body)["state"] == "cancelled"


def test_what_is_told_is_kept_when_the_status_is_forgotten_between_two_attempts(
    engine: Engine, settings: Settings
) -> None:
    answers = iter([Answering(500), Answering(200)])
    report(engine, "m-1")
    with Receiver(lambda request: next(answers)) as receiver, sender(engine, settings):
        note(engine, "m-1", receiver.url)
        attempted(engine, "m-1", 1)
        with database.writing(engine) as connection:
            connection.execute(delete(deliveries))
        change(engine, "m-1", next_at=now())
        attempted(engine, "m-1", 2)
    first, second = receiver.received
    assert first.body == second.body
    assert json.loads(first.body)["state"] == "handled"


def test_what_was_finished_long_ago_is_deleted(engine: Engine, settings: Settings) -> None:
    kept = timedelta(days=settings.status_keep_days)
    for message_id in ("old", "young", "waiting"):
        note(engine, message_id, f"http://{LOOPBACK}:9999/")
    change(engine, "old", state="delivered", finished_at=now() - kept)
    change(engine, "young", state="failed", finished_at=now() - kept + timedelta(hours=1))
    change(engine, "waiting", created_at=now() - kept / 2)
    with sender(engine, settings):
        until(lambda: command(settings, "list", "--state", "delivered") == "", what="the cleaning up")
    assert (row(engine, "young").state, row(engine, "waiting").state) == ("failed", "waiting")


def test_a_silent_host_does_not_hold_up_another(engine: Engine, settings: Settings) -> None:
    over = threading.Event()

    def silent(request: Received) -> Answering:
        over.wait(120)
        return Answering()

    slow = [f"slow-{number}" for number in range(3 * WAITING_PER_HOST)]
    fast = [f"fast-{number}" for number in range(100)]
    report(engine, *slow, *fast)
    with Receiver(silent) as silence, Receiver() as receiver, sender(engine, settings):
        with database.writing(engine) as connection:
            for message_id in slow:
                owe(connection, message_id, TYPE, silence.url)
        until(lambda: silence.received, what="a call to the silent host")
        with database.writing(engine) as connection:
            for message_id in fast:
                owe(connection, message_id, TYPE, receiver.url)
        until(lambda: all(row(engine, message_id).state == "delivered" for message_id in fast), what="the other calls")
        assert {call.headers["Webhook-Id"] for call in receiver.received} == set(fast)
        over.set()


def test_many_that_wait_neither_burn_attempts_nor_hide_one_that_is_final(engine: Engine, settings: Settings) -> None:
    with database.writing(engine) as connection:
        for number in range(2000):
            owe(connection, f"waiting-{number}", TYPE, f"http://{LOOPBACK}:9999/")
    report(engine, "m-1")
    with Receiver() as receiver, sender(engine, settings):
        note(engine, "m-1", receiver.url)
        until(lambda: row(engine, "m-1").state == "delivered", what="the call")
    with database.reading(engine) as connection:
        tried = connection.scalars(select(callbacks.c.message_id).where(callbacks.c.attempts > 0)).all()
    assert tried == ["m-1"]


def test_a_stopping_sender_waits_for_the_answer_that_is_due(engine: Engine, settings: Settings) -> None:
    called, over = threading.Event(), threading.Event()

    def answers(request: Received) -> Answering:
        called.set()
        over.wait(60)
        return Answering()

    report(engine, "m-1")
    stopping = threading.Event()
    thread = threading.Thread(target=CallbackSender(engine, settings, stopping).run)
    with Receiver(answers) as receiver:
        note(engine, "m-1", receiver.url)
        thread.start()
        assert called.wait(60)
        stopping.set()
        over.set()
        thread.join(90)
    assert not thread.is_alive()
    assert row(engine, "m-1").state == "delivered"


def test_an_outage_of_the_database_is_waited_for(
    engine: Engine, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    report(engine, "m-1")
    with Receiver() as receiver:
        note(engine, "m-1", receiver.url)
        with database.writing(engine) as connection:
            connection.exec_driver_sql("ALTER TABLE deliveries RENAME TO away")
        with sender(engine, settings):
            until(lambda: "calling back waits: " in caplog.text, what="the outage")
            with database.writing(engine) as connection:
                connection.exec_driver_sql("ALTER TABLE away RENAME TO deliveries")
            until(lambda: row(engine, "m-1").state == "delivered", what="the call")


PROGRAM = """
import sys, threading
from ackline.infra import database
from ackline.infra.settings import settings
from ackline.producer.callback_sender import CallbackSender
CallbackSender(database.connect(settings().database), settings(), threading.Event()).run()
"""


def test_a_sender_killed_before_it_noted_the_answer_calls_again_under_the_same_id(
    engine: Engine, settings: Settings
) -> None:
    called, over = threading.Event(), threading.Event()

    def answers(request: Received) -> Answering:
        called.set()
        over.wait(120)
        return Answering()

    report(engine, "m-1")
    with Receiver(answers) as receiver:
        note(engine, "m-1", receiver.url)
        for _ in range(2):
            called.clear()
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM],
                env=environment(settings, ACKLINE_CALLBACK_HOSTS=LOOPBACK),
                cwd=ROOT,
            )
            try:
                assert called.wait(90)
            finally:
                process.kill()
                process.wait()
            assert (row(engine, "m-1").state, row(engine, "m-1").attempts) == ("waiting", 0)
        over.set()
        with sender(engine, settings):
            until(lambda: row(engine, "m-1").state == "delivered", what="the call")
    assert len(receiver.received) >= 3
    assert {call.headers["Webhook-Id"] for call in receiver.received} == {"m-1"}
    assert {call.body for call in receiver.received} == {receiver.received[0].body}


# --- with everything else ---------------------------------------------------------------------------------------------


def test_the_next_relay_repeats_the_call_that_the_killed_one_had_begun(ackline_settings: Settings) -> None:
    called, over = threading.Event(), threading.Event()

    def answers(request: Received) -> Answering:
        called.set()
        over.wait(120)
        return Answering()

    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(Receiver(answers))
        relay = stack.enter_context(role(ackline_settings, "relay", ACKLINE_CALLBACK_HOSTS=LOOPBACK))
        engine = database.connect(ackline_settings.database)
        stack.callback(engine.dispose)
        report(engine, "m-1")
        note(engine, "m-1", receiver.url)
        assert called.wait(90)
        relay.kill()
        assert row(engine, "m-1").state == "waiting"
        over.set()
        relay.start()
        until(lambda: row(engine, "m-1").state == "delivered", what="the call of the next")
        assert relay.stop() == 0
    assert len(receiver.received) >= 2
    assert {call.headers["Webhook-Id"] for call in receiver.received} == {"m-1"}


def test_who_asked_over_http_is_called_when_the_mail_was_sent(ackline_settings: Settings, smtp_sink: MailSink) -> None:
    settings = ackline_settings.model_copy(update={"smtp_url": smtp_sink.url})
    mail = {"to": "ada@example.test", "subject": "Hello", "body": "Hi"}
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(Receiver())
        for name in ("reviewer", "worker"):
            stack.enter_context(role(settings, name))
        stack.enter_context(role(settings, "relay", ACKLINE_CALLBACK_HOSTS=LOOPBACK))
        gateway = stack.enter_context(role(settings, "gateway", "--port", "0", ACKLINE_CALLBACK_HOSTS=LOOPBACK))
        client = stack.enter_context(httpx.Client(base_url=listening(gateway), timeout=60, trust_env=False))
        until(lambda: client.get("/readyz").is_success, what="the gateway to be ready")
        for bad in BAD_URLS:
            refused = client.post("/v1/messages/email.send", json=mail, params={"callback_url": bad})
            assert refused.status_code == 422, bad
            assert refused.headers["content-type"] == "application/problem+json"
        accepted = client.post("/v1/messages/email.send", json=mail, params={"callback_url": receiver.url})
        assert accepted.status_code == 202, accepted.text
        until(lambda: receiver.received, what="the call")
        status = client.get(accepted.json()["status_url"])
    [call] = receiver.received
    assert verify()(command(settings, "secret").strip(), call.headers, call.body)
    assert call.headers["Webhook-Id"] == accepted.json()["id"]
    assert json.loads(call.body) == status.json()
    assert status.json()["state"] == "handled"
    assert [(found["consumer"], found["state"]) for found in status.json()["deliveries"]] == [("email", "handled")]
    assert len(smtp_sink.mails()) == 1


#: Each would reach what its client must not reach, or say what it must not say.
BAD_URLS = [
    "",
    "http://169.254.169.254/latest/meta-data/",
    "http://localhost:15672/api/users",
    "http://[::1]:15672/",
    "http://[::ffff:127.0.0.1]/",
    "http://2130706433/",
    "http://0x7f.1/",
    "http://127.1/",
    "http://user:password@127.0.0.1:8000/",
    "http://127.0.0.1:22/",
    "http://127.0.0.1:8000#@evil.test/",
    "http://127.0.0.1\\@evil.test/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "http://127.0.0.1:8000/\r\nX-Injected: 1",
    "http://127.0.0.1:8000/ HTTP/1.1\r\nHost: evil.test",
    "http://127.0.0.1:8000/\x00",
    "http://127.0.0.1:8000/" + "a" * 3000,
]
