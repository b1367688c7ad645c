"""Calls of another service: what its answers mean, what it is sent, and what happens while it is away."""

from __future__ import annotations

import gzip
import json
import logging
import socket
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic import ValidationError

from ackline.consumers import Ack, Reject, Retry, fixed, registered
from ackline.consumers.handlers import http_request
from ackline.consumers.handlers.http_call import HttpCall, calls
from ackline.consumers.handlers.http_request import TryAgain, Unavailable
from ackline.consumers.testing import Outcome, run
from ackline.infra.errors import ConfigurationError
from ackline.infra.names import DEAD
from ackline.infra.ports import LOOPBACK
from ackline.infra.wire import now
from ackline.producer import Publisher
from tests.amqp import Client
from tests.broker import Vhost
from tests.receiver import Answering, Received, Receiver, raw_server
from tests.waiting import until
from tests.working import working

pytestmark = pytest.mark.usefixtures("own_registry")

CALL = {"path": "/invoices?notify=1", "body": {"order": "A-1"}}
RETRY = fixed(attempts=3, delay="42s")


def called(port: int, message_id: str = "m-1", call: dict[str, Any] = CALL, **options: Any) -> Outcome:
    """What follows from a call of the service on *port*."""
    contract = calls("service", f"http://{LOOPBACK}:{port}/api/", **({"retry": RETRY} | options))
    return run(registered()["call-service"], contract.model_validate(call), message_id=message_id)


def answered(status: int, body: bytes = b"", **headers: str) -> Outcome:
    """What follows when the service answers so."""
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    with Receiver(lambda request: Answering(status, named, body)) as service:
        return called(service.port)


# --- what an answer means ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_success_is_handled(status: int) -> None:
    assert answered(status).decision == Ack()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 599])
def test_a_service_that_cannot_now_is_asked_again_by_the_policy(status: int) -> None:
    outcome = answered(status, b"a moment, please")
    assert outcome.decision == Retry(42.0)
    assert isinstance(outcome.error, Unavailable)
    assert f"answered {status}" in str(outcome.error)
    assert str(outcome.error).endswith(": a moment, please")


@pytest.mark.parametrize("status", [409, 429, 503])
def test_it_is_asked_again_when_it_says(status: int) -> None:
    assert answered(status, Retry_After="7").decision == Retry(7.0)


def test_it_may_say_a_date_and_is_asked_again_after_an_hour_at_most() -> None:
    decision = answered(503, Retry_After=format_datetime(now() + timedelta(minutes=30), usegmt=True)).decision
    assert isinstance(decision, Retry)
    assert 600 < decision.delay <= 1800
    assert answered(503, Retry_After="999999").decision == Retry(3600.0)
    assert answered(503, Retry_After="soon").decision == Retry(42.0)


def test_a_request_that_is_under_way_is_made_again_and_does_not_say_that_the_service_is_down() -> None:
    outcome = answered(409)
    assert outcome.decision == Retry(42.0)
    assert isinstance(outcome.error, TryAgain)
    assert not isinstance(outcome.error, Unavailable)


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refusal_goes_to_review_with_what_the_service_says(status: int) -> None:
    decision = answered(status, b'{"error":\n  "no such order"}').decision
    assert isinstance(decision, Reject)
    assert decision.reason.startswith(f"{LOOPBACK}:")
    assert f"answered {status} " in decision.reason
    assert decision.reason.endswith(': {"error": "no such order"}')


def test_of_a_long_refusal_the_beginning_is_kept_whatever_its_bytes() -> None:
    decision = answered(400, b"\xff" + b"x" * 5000).decision
    assert isinstance(decision, Reject)
    assert decision.reason.endswith(": \ufffd" + "x" * 299 + "…")


def test_a_redirect_is_not_followed_and_said() -> None:
    with Receiver(lambda request: Answering(307, (("Location", "/elsewhere"),))) as service:
        decision = called(service.port).decision
    assert isinstance(decision, Reject)
    assert decision.reason.endswith("which leads to /elsewhere: name that address")
    assert len(service.received) == 1


def test_an_answer_without_end_is_read_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_request, "MOST_BYTES", 1000)
    decision = answered(200, b"x" * 1001).decision
    assert isinstance(decision, Reject)
    assert decision.reason.endswith("answered with more than 1,000 bytes")
    assert answered(200, b"x" * 1000).decision == Ack()


def test_an_answer_may_be_compressed_but_not_so_that_it_grows_without_bound() -> None:
    body = gzip.compress(b"no such order")
    decision = answered(404, body, Content_Encoding="gzip").decision
    assert isinstance(decision, Reject)
    assert decision.reason.endswith(": no such order")
    decision = answered(200, gzip.compress(body), Content_Encoding="gzip, gzip").decision
    assert decision == Reject("the service answered in the encoding 'gzip, gzip', which was not asked for")
    assert answered(503, b"?", Content_Encoding="br").decision == Retry(42.0)


def test_a_token_that_no_header_takes_is_in_no_reason() -> None:
    with Receiver() as service:
        outcome = called(service.port, headers={"Authorization": "Bearer hunter2\n"})
    assert isinstance(outcome.error, ConfigurationError)
    assert "hunter2" not in "".join(traceback.format_exception(outcome.error))
    assert service.received == []


def test_a_service_that_is_not_there_is_asked_again() -> None:
    outcome = called(1)
    assert outcome.decision == Retry(42.0)
    assert isinstance(outcome.error, Unavailable)
    assert "gave no answer" in str(outcome.error)


def _silent(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def _dripping(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:  # each byte in time, and never all of them
        connection.sendall(b"x")
        threading.Event().wait(0.01)


@pytest.mark.parametrize("serve", [_silent, _dripping])
def test_a_call_has_an_end_however_slowly_the_service_answers(serve: Callable[[socket.socket], None]) -> None:
    with raw_server(serve) as port:
        outcome = called(port, seconds=0.3)
    assert outcome.decision == Retry(42.0)
    assert str(outcome.error) == f"{LOOPBACK}:{port} did not answer within 0.3 s"


def test_a_service_that_hangs_up_is_asked_again() -> None:
    with raw_server(lambda connection: None) as port:
        outcome = called(port)
    assert outcome.decision == Retry(42.0)
    assert isinstance(outcome.error, Unavailable)


# --- what the service is sent -----------------------------------------------------------------------------------------


def test_a_request_has_the_path_the_body_the_applications_headers_and_the_messages_id() -> None:
    with Receiver() as service:
        assert called(service.port, headers={"Authorization": "Bearer t0k"}).decision == Ack()
    [request] = service.received
    assert (request.method, request.path) == ("POST", "/api/invoices?notify=1")
    assert json.loads(request.body) == {"order": "A-1"}
    assert request.headers["Authorization"] == "Bearer t0k"
    assert request.headers["Idempotency-Key"] == "m-1"


def test_a_foreign_id_cannot_end_its_header_and_a_message_without_one_has_no_key() -> None:
    with Receiver() as service:
        assert called(service.port, "é\r\nX-Evil: 1").decision == Ack()
        assert called(service.port, "").decision == Ack()
    first, second = (request.headers for request in service.received)
    assert first["Idempotency-Key"] == "%C3%A9%0D%0AX-Evil%3A%201"
    assert "X-Evil" not in first
    assert "Idempotency-Key" not in second


def test_a_password_of_the_address_is_sent_and_is_in_no_reason() -> None:
    with Receiver(lambda request: Answering(403)) as service:
        contract = calls("service", f"http://ada:s3cr3t@{LOOPBACK}:{service.port}")
        decision = run(registered()["call-service"], contract(path="/")).decision
    assert decision == Reject(f"{LOOPBACK}:{service.port} answered 403 Forbidden")
    assert service.received[0].headers["Authorization"].startswith("Basic ")


def test_other_methods_and_no_body() -> None:
    with Receiver() as service:
        assert called(service.port, call={"method": "PUT", "path": "/"}).decision == Ack()
    [request] = service.received
    assert (request.method, request.path, request.body) == ("PUT", "/api/", b"")


@pytest.mark.parametrize(
    "path",
    [
        *("", "invoices", "//x y", "/a\r\nb", "/a#b", "/%zz", "/é", "/\\e"),
        *("/a/../b", "/..", "/%2e%2E/admin", "/.?a=1", "/..%2Fadmin", "/a%2f../b", "/..%5cadmin", "/a/..;x=1/b"),
    ],
)
def test_a_path_that_could_lead_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="is no path"):
        HttpCall(path=path)


@pytest.mark.parametrize("path", ["/", "/a..b/...", "/a?b=../c", "//a", "/@evil.example/", "/a%2Fb;c=1"])
def test_a_path_that_does_not_is_taken(path: str) -> None:
    assert HttpCall(path=path).path == path


@pytest.mark.parametrize("url", ["", "billing", "ftp://billing", "http://", "http://a:x", "http://a?b=1", "http://a#b"])
def test_what_is_no_address_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is no address of a service"):
        calls("service", url)


# --- while it is away -------------------------------------------------------------------------------------------------


def test_while_the_service_is_away_messages_wait_and_then_each_is_called(
    vhost: Vhost, publisher: Publisher, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    is_back = threading.Event()
    served: set[str] = set()

    def answer(request: Received) -> Answering:
        if not is_back.is_set():
            return Answering(503)
        served.add(request.headers["Idempotency-Key"])
        return Answering(204)

    with Receiver(answer) as service:
        contract = calls("service", f"http://{LOOPBACK}:{service.port}")
        with working(vhost.amqp_url, registered()["call-service"]):
            sent = {publisher.publish(contract(path=f"/{number}")).message_id for number in range(20)}
            until(lambda: "the circuit is open" in caplog.text, what="the circuit to open")
            is_back.set()
            until(lambda: served == sent, what="every call")
    assert "the circuit is closed again" in caplog.text
    assert client.ready(DEAD) == 0
