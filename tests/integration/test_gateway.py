"""The gateway over HTTP: 202 means that the broker has the message, and every refusal is a problem with a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from ackline.infra.names import UNROUTED
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from tests.broker import fresh_vhost, settings_for
from tests.doors import MAIL, gateway, problem
from tests.integration.test_publisher import taken
from tests.roles import run


@pytest.fixture(scope="module")
def shared(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Settings]]:
    """One gateway for all tests here."""
    with fresh_vhost(broker) as vhost:
        settings = settings_for(vhost.amqp_url, vhost.management_url, tmp_path_factory.mktemp("gateway") / "data")
        with gateway(settings, ACKLINE_MAX_BODY_BYTES="10000") as client:
            yield client, settings


@pytest.fixture
def ackline_settings(shared: tuple[httpx.Client, Settings]) -> Iterator[Settings]:
    yield shared[1]
    taken(shared[1].broker, UNROUTED)  # what one test sent the next one does not find


@pytest.fixture
def client(shared: tuple[httpx.Client, Settings], ackline_settings: Settings) -> httpx.Client:
    return shared[0]


# --- accepted -----------------------------------------------------------------------------------------


def test_an_accepted_message_is_in_the_broker_with_what_the_caller_sent(
    client: httpx.Client, ackline_settings: Settings
) -> None:
    headers = {"X-Correlation-Id": "order-7", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    answer = client.post("/v1/messages/email.send", json=MAIL, headers=headers)
    assert answer.status_code == 202
    accepted = answer.json()
    assert accepted == {"id": accepted["id"], "type": "email.send", "state": "waiting", "status_url": None}
    [(properties, body)] = taken(ackline_settings.broker, UNROUTED)  # the gateway alone declares no consumer's queue
    assert properties.message_id == accepted["id"]
    assert (properties.type, properties.correlation_id, properties.delivery_mode) == ("email.send", "order-7", 2)
    assert properties.headers["traceparent"] == headers["traceparent"]
    assert b"ada@example.test" in body


def test_many_callers_at_once_are_all_answered_and_every_message_is_there(
    client: httpx.Client, ackline_settings: Settings
) -> None:
    with ThreadPoolExecutor(16) as callers:
        answers = list(callers.map(lambda _: client.post("/v1/messages/email.send", json=MAIL), range(300)))
    assert {answer.status_code for answer in answers} == {202}
    ids = {answer.json()["id"] for answer in answers}
    assert len(ids) == 300
    assert {answer.json()["state"] for answer in answers} == {"waiting"}
    assert {properties.message_id for properties, _ in taken(ackline_settings.broker, UNROUTED)} == ids


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "application/cloudevents+json"]
)
def test_every_json_content_type_is_taken(client: httpx.Client, kind: str) -> None:
    body = b'{"to": "a@b.c", "subject": "s", "body": "b"}'
    answer = client.post("/v1/messages/email.send", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 202


def test_the_types_are_listed_with_their_schemas(client: httpx.Client) -> None:
    listed = next(listed for listed in client.get("/v1/types").json() if listed["type"] == "email.send")
    assert set(listed["schema"]["required"]) == {"to", "subject", "body"}


# --- refused ------------------------------------------------------------------------------------------


def test_an_unknown_type_is_named_beside_those_that_there_are(client: httpx.Client) -> None:
    found = problem(client.post("/v1/messages/no.such", json={}), 404)
    assert found["detail"] == "There is no message type 'no.such'. There are: email.send, file.uploaded."


def test_a_body_that_does_not_fit_its_type_is_refused_with_the_fields_that_are_wrong(
    client: httpx.Client, ackline_settings: Settings
) -> None:
    found = problem(client.post("/v1/messages/email.send", json={"to": "nobody", "subject": 7, "extra": 1}), 422)
    assert {error["field"] for error in found["errors"]} == {"to", "subject", "body", "extra"}
    assert all(error["message"] for error in found["errors"])
    assert "nobody" not in str(found), "what a caller sent may be secret"
    assert taken(ackline_settings.broker, UNROUTED) == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"not json", b"\xff\xfe", b"[" * 9_000, b"null", b"[]", b'{"to": NaN}', b'{"to": "\\ud800"}', b"\x00"],
    ids=lambda body: repr(body[:12]),
)
def test_a_body_that_is_no_json_is_refused_in_a_sentence(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/v1/messages/email.send", content=body, headers={"Content-Type": "application/json"})
    assert problem(answer, 422)["errors"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json"])
def test_another_content_type_is_refused_and_named(client: httpx.Client, kind: str) -> None:
    answer = client.post("/v1/messages/email.send", content=b"{}", headers={"Content-Type": kind})
    assert problem(answer, 415)["detail"] == f"The body must be application/json, not {kind}."


def test_a_body_without_a_content_type_is_refused(client: httpx.Client) -> None:
    # A web page may send such a one to any address without being asked by CORS.
    answer = client.post("/v1/messages/email.send", content=b"{}")
    assert problem(answer, 415)["detail"] == "The body must be application/json, not without a content type."


def test_a_body_that_is_too_large_is_refused_whether_its_length_is_announced_or_not(client: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    for size, status in ((10_000, 422), (10_001, 413), (100_000, 413)):
        announced = client.post("/v1/messages/email.send", content=b" " * size, headers=headers)
        chunks = (b" " * 1_000 for _ in range(size // 1_000))
        chunked = client.post("/v1/messages/email.send", content=_and(chunks, size % 1_000), headers=headers)
        for answer in (announced, chunked):
            found = problem(answer, status)
            assert status == 422 or found["detail"] == "The body has more than 10,000 bytes (ACKLINE_MAX_BODY_BYTES)."
    assert client.post("/v1/messages/email.send", json=MAIL).status_code == 202


def _and(chunks: Iterator[bytes], rest: int) -> Iterator[bytes]:
    yield from chunks
    if rest:
        yield b" " * rest


def test_a_correlation_id_that_amqp_cannot_carry_is_refused_in_a_sentence(client: httpx.Client) -> None:
    answer = client.post("/v1/messages/email.send", json=MAIL, headers={"X-Correlation-Id": "x" * 256})
    said = problem(answer, 422)["detail"]
    assert said == "The parameter X-Correlation-Id is wrong: it has 256 bytes; AMQP allows 255."


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/messages/", 404),
        ("POST", "/v1/messages/a/b", 404),
        ("PUT", "/v1/messages/email.send", 405),
        ("DELETE", "/v1/types", 405),
        ("POST", "/healthz", 405),
    ],
)
def test_a_request_that_leads_nowhere_is_a_problem_too(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    assert f"{method} {path}: " in problem(answer, status)["detail"]
    assert (status == 405) == ("allow" in answer.headers)


def test_with_keys_only_their_holders_publish_and_anybody_may_ask_after_its_health(ackline_settings: Settings) -> None:
    with gateway(ackline_settings, "--host", "0.0.0.0", ACKLINE_API_KEYS="first-key, schlüssel") as client:
        for wrong, said in (
            ({}, "This gateway wants a key: Authorization: Bearer KEY."),
            ({"Authorization": "Bearer nope"}, "This gateway does not know the key."),
            ({"Authorization": "Basic first-key"}, "must read: Authorization: Bearer KEY."),
            ({"Authorization": ""}, "must read: Authorization: Bearer KEY."),
        ):
            answer = client.post("/v1/messages/email.send", json=MAIL, headers=wrong)
            assert said in problem(answer, 401)["detail"]
            assert answer.headers["www-authenticate"] == "Bearer"
            problem(client.get("/v1/types", headers=wrong), 401)
        answer = client.post("/v1/messages/no.such", json={})
        assert "email.send" not in problem(answer, 401)["detail"], "types are not told to strangers"
        for right in ("Bearer first-key", "bearer first-key"):
            headers = {"Authorization": right}
            assert client.post("/v1/messages/email.send", json=MAIL, headers=headers).status_code == 202
            assert client.get("/v1/types", headers=headers).status_code == 200
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_it_does_not_listen_on_other_hosts_behalf_without_keys(ackline_settings: Settings, host: str) -> None:
    done = run(ackline_settings, "gateway", "--port", "0", "--host", host)
    assert done.returncode == 2
    assert done.stderr == (
        f"ackline: The gateway does not listen on {host} without credentials, since any host could publish: "
        "make a key with `ackline keys create NAME`, set ACKLINE_API_KEYS, or set ACKLINE_GATEWAY_HOST=127.0.0.1.\n"
    )
