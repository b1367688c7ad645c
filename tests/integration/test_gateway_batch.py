"""Many messages in one request: each has its own result, and none spoils the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ackline.infra.names import UNROUTED
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from tests.broker import fresh_vhost, settings_for
from tests.doors import MAIL, NEVER, gateway, problem
from tests.integration.test_publisher import taken
from tests.roles import listening, role

NDJSON = {"Content-Type": "application/x-ndjson"}
JSON = {"Content-Type": "application/json"}
ITEM = {"type": "email.send", "data": MAIL}


@pytest.fixture(scope="module")
def shared(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Settings]]:
    """One gateway for all tests here."""
    with fresh_vhost(broker) as vhost:
        settings = settings_for(vhost.amqp_url, vhost.management_url, tmp_path_factory.mktemp("gateway") / "data")
        with gateway(
            settings, ACKLINE_MAX_BODY_BYTES="1000", ACKLINE_MAX_BATCH="600", ACKLINE_MAX_BATCH_BYTES="200000"
        ) as client:
            yield client, settings


@pytest.fixture
def ackline_settings(shared: tuple[httpx.Client, Settings]) -> Iterator[Settings]:
    yield shared[1]
    taken(shared[1].broker, UNROUTED)  # what one test sent the next one does not find


@pytest.fixture
def client(shared: tuple[httpx.Client, Settings], ackline_settings: Settings) -> httpx.Client:
    return shared[0]


def results(answer: httpx.Response, status: int) -> list[dict[str, Any]]:
    assert answer.status_code == status, answer.text
    found: list[dict[str, Any]] = answer.json()["results"]
    assert [result["index"] for result in found] == list(range(len(found)))
    return found


def lines(*items: Any) -> bytes:
    return b"\n".join(item if isinstance(item, bytes) else json.dumps(item).encode() for item in items)


def test_an_array_and_lines_are_accepted_each_message_with_its_own_result(
    client: httpx.Client, ackline_settings: Settings
) -> None:
    items = [{**ITEM, "data": MAIL | {"subject": f"number {number}"}} for number in range(500)]
    by_array = results(client.post("/v1/messages", json=items), 202)
    by_lines = results(client.post("/v1/messages", content=lines(*items) + b"\n\n", headers=NDJSON), 202)
    found = by_array + by_lines
    assert {(result["status"], result["state"], result["type"]) for result in found} == {(202, "waiting", "email.send")}
    arrived = {p.message_id: json.loads(body)["subject"] for p, body in taken(ackline_settings.broker, UNROUTED)}
    assert len(arrived) == 1000
    for result in found:
        assert arrived[result["id"]] == f"number {result['index']}"


def test_a_bad_one_gets_what_it_would_have_got_alone_and_the_others_are_accepted(
    client: httpx.Client, ackline_settings: Settings
) -> None:
    bad: list[tuple[Any, int, str]] = [
        (b"{", 422, "The item is not JSON"),
        (b"\xff\xfe", 422, "The item is not JSON: byte 0 is not UTF-8."),
        (b"[" * 900, 422, "The item is not JSON"),
        ([], 422, "An item is an object with `type`, `data` and perhaps `id`."),
        ({"data": MAIL}, 422, "An item is an object"),
        ({"type": 7, "data": MAIL}, 422, "An item is an object"),
        ({"type": "email.sned", "data": MAIL}, 404, "Did you mean email.send?"),
        ({"type": "email.send"}, 422, "The item is no email.send."),
        ({"type": "email.send", "data": {"to": "nobody"}}, 422, "The item is no email.send."),
        ({**ITEM, "id": ""}, 422, "The item is no email.send."),
        ({**ITEM, "id": "order/7"}, 422, "The item is no email.send."),
        ({**ITEM, "id": "order\n7"}, 422, "The item is no email.send."),
        ({**ITEM, "id": "x" * 256}, 422, "The item is no email.send."),
        ({**ITEM, "more": 1}, 422, "The item is no email.send."),
        ({"type": "email.send", "data": MAIL | {"body": "x" * 2000}}, 413, "The message has more than 1,000 bytes"),
    ]
    mixed = [item for each, _, _ in bad for item in (ITEM, each)]
    found = results(client.post("/v1/messages", content=lines(*mixed), headers=NDJSON), 207)
    for good in found[::2]:
        assert good["status"] == 202
    for result, (_, status, said) in zip(found[1::2], bad, strict=True):
        assert result["status"] == status, result
        assert said in result["detail"]
        assert "nobody" not in json.dumps(result), "what a caller sent may be secret"
    assert len(taken(ackline_settings.broker, UNROUTED)) == len(bad)


def test_when_none_is_accepted_the_answer_is_the_status_that_they_share(client: httpx.Client) -> None:
    wrong = {"type": "email.send", "data": {}}
    unknown = {"type": "no.such", "data": {}}
    long = {"type": "email.send", "data": MAIL | {"body": "x" * 2000}}
    for items, status in (([wrong, wrong], 422), ([unknown], 404), ([long], 413), ([wrong, unknown], 422)):
        found = problem(client.post("/v1/messages", json=items), status)
        assert len(found["results"]) == len(items)


def test_a_body_that_is_no_batch_is_refused_whole(client: httpx.Client) -> None:
    for body, said in (
        (b"", "The body is no JSON array: it does not begin with [."),
        (b"{}", "The body is no JSON array: it does not begin with [."),
        (b"[", "The body is no JSON array: Expecting value"),
        (b"[1 2]", "The body is no JSON array: there is no , or ] at character 3."),
        (b"[1,]", "The body is no JSON array: Expecting value"),
        (b"[1] x", "The body is no JSON array: there is more after the array, at character 4."),
        (b"[" + b"[" * 100_000, "The body is no JSON array: it is nested too deeply."),
        (b'["\xff"]', "The body is no JSON array: byte 2 is not UTF-8."),
        (b" [ ] ", "The batch is empty."),
        (json.dumps([1] * 601).encode(), "The batch has more than 600 messages (ACKLINE_MAX_BATCH)."),
        (b"[" + b" " * 200_000, "The body has more than 200,000 bytes (ACKLINE_MAX_BATCH_BYTES)."),
    ):
        answer = client.post("/v1/messages", content=body, headers=JSON)
        assert said in problem(answer, 413 if "more than" in said else 422)["detail"]
    assert results(client.post("/v1/messages", json=[ITEM]), 202), "it still serves"


def test_an_oversized_line_is_refused_and_the_process_still_serves(client: httpx.Client) -> None:
    line = b'{"type": "email.send", "data": {"to": "' + b"x" * 150_000 + b'"}}'
    assert problem(client.post("/v1/messages", content=line, headers=NDJSON), 413)["results"][0]["status"] == 413
    assert problem(client.post("/v1/messages", content=line * 2, headers=NDJSON), 413)
    assert results(client.post("/v1/messages", json=[ITEM]), 202)


def test_a_contract_that_fails_spoils_nothing_but_its_own_messages(ackline_settings: Settings, tmp_path: Path) -> None:
    app = ("tests.odd_contracts", *ackline_settings.app)
    settings = ackline_settings.model_copy(update={"app": app, "data_dir": tmp_path})
    odd = {"type": "test.odd", "data": {"name": "unknown"}}
    with (
        role(settings, "gateway", "--port", "0") as process,
        httpx.Client(base_url=listening(process), timeout=NEVER, trust_env=False) as client,
    ):
        found = results(client.post("/v1/messages", json=[ITEM, odd, ITEM]), 207)
        assert [result["status"] for result in found] == [202, 422, 202]
        for answer in (found[1], problem(client.post("/v1/messages/test.odd", json=odd["data"]), 422)):
            assert answer["detail"] == "The body is no test.odd: its contract failed on it."
        assert "KeyError: 'unknown'" in process.log.read_text(), "for the author of the contract"


def test_a_number_of_many_digits_spoils_nothing_but_its_own_message(client: httpx.Client) -> None:
    body = json.dumps([ITEM, {"type": "email.send", "data": 7}]).replace("7", "7" * 5000)
    found = results(client.post("/v1/messages", content=body, headers=JSON), 207)
    assert [result["status"] for result in found] == [202, 413]


def test_an_id_of_the_callers_own_is_kept(client: httpx.Client, ackline_settings: Settings) -> None:
    [result] = results(client.post("/v1/messages", json=[{**ITEM, "id": "order-7"}]), 202)
    assert result["id"] == "order-7"
    [(properties, _)] = taken(ackline_settings.broker, UNROUTED)
    assert properties.message_id == "order-7"


def test_a_batch_with_an_idempotency_key_is_published_once(client: httpx.Client, ackline_settings: Settings) -> None:
    headers = {"Idempotency-Key": "batch-1"}
    first = client.post("/v1/messages", json=[ITEM, {"type": "no.such", "data": 1}, ITEM], headers=headers)
    again = client.post("/v1/messages", json=[ITEM, {"type": "no.such", "data": 1}, ITEM], headers=headers)
    assert results(first, 207) == results(again, 207)
    assert again.headers["idempotency-replayed"] == "true"
    problem(client.post("/v1/messages", json=[ITEM], headers=headers), 422)
    assert len(taken(ackline_settings.broker, UNROUTED)) == 2
