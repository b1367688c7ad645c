"""`Idempotency-Key`: one message and one answer, whoever asks, however often, and whatever dies in between."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, select, update

from ackline.infra import database
from ackline.infra.names import UNROUTED
from ackline.infra.settings import Settings
from ackline.infra.tables import idempotency_keys, outbox
from ackline.infra.wire import now
from ackline.producer.gateway.idempotency import KEPT, Idempotency
from ackline.producer.gateway.problems import Refusal
from tests.doors import MAIL, gateway, problem
from tests.integration.test_publisher import taken


@pytest.fixture
def client(ackline_settings: Settings) -> Iterator[httpx.Client]:
    with gateway(ackline_settings) as found:
        yield found


def post(client: httpx.Client, key: str, mail: dict[str, str] = MAIL, **query: str) -> httpx.Response:
    return client.post("/v1/messages/email.send", json=mail, headers={"Idempotency-Key": key}, params=query)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_of_50_equal_requests_at_once_through_two_gateways_one_publishes(
    ackline_settings: Settings, kind: str, request: pytest.FixtureRequest
) -> None:
    settings = ackline_settings
    if kind == "postgresql":
        settings = settings.model_copy(update={"database_url": request.getfixturevalue("postgresql_url")})
    with gateway(settings) as one, gateway(settings) as other, ThreadPoolExecutor(50) as callers:
        answers = list(callers.map(lambda number: post((one, other)[number % 2], "order-7"), range(50)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.text for answer in answers}) == 1, "one answer"
    assert [answer.headers.get("idempotency-replayed") for answer in answers].count("true") == 49
    [(properties, _)] = taken(settings.broker, UNROUTED)
    assert properties.message_id == answers[0].json()["id"]


def test_the_same_key_for_another_request_is_refused(client: httpx.Client, ackline_settings: Settings) -> None:
    assert post(client, "k").status_code == 202
    for other in (post(client, "k", MAIL | {"subject": "another"}), post(client, "k", delay="5m")):
        assert "This Idempotency-Key was used for another request" in problem(other, 422)["detail"]
    assert post(client, "another").status_code == 202
    assert len(taken(ackline_settings.broker, UNROUTED)) == 2


def test_a_retry_that_is_traced_anew_is_the_same_request(client: httpx.Client) -> None:
    answers = [
        client.post(
            "/v1/messages/email.send",
            json=MAIL,
            headers={"Idempotency-Key": "traced", "traceparent": f"00-4bf92f3577b34da6a3ce929d0e0e4736-{span}-01"},
        )
        for span in ("00f067aa0ba902b7", "00f067aa0ba902b8")
    ]
    assert answers[0].json() == answers[1].json()


def test_a_scheduled_message_that_was_taken_over_is_one_row(ackline_settings: Settings, client: httpx.Client) -> None:
    first = post(client, "later", delay="1h").json()
    engine = database.connect(ackline_settings.database)
    with database.writing(engine) as connection:  # as if its gateway had died before it could keep the answer
        connection.execute(update(idempotency_keys).values(answer=None, claimed_until=now()))
    assert post(client, "later", delay="1h").json() == first
    with database.reading(engine) as connection:
        assert [row.message_id for row in connection.execute(select(outbox))] == [first["id"]]
    engine.dispose()


def test_a_request_that_was_refused_leaves_its_key_free(client: httpx.Client) -> None:
    problem(post(client, "k", {"to": "nobody"}), 422)
    assert post(client, "k").status_code == 202


def test_a_key_that_cannot_be_one_is_refused(client: httpx.Client) -> None:
    for key in ("", "x" * 256, "tab\there"):
        assert "Idempotency-Key must have 1 to 255 printable" in problem(post(client, key), 422)["detail"]


# --- what dies in between --------------------------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    url = f"sqlite:///{tmp_path_factory.mktemp('keys') / 'ackline.db'}"
    database.upgrade(url)
    engine = database.connect(url)
    yield engine
    engine.dispose()


def test_a_request_whose_gateway_died_is_taken_over_under_the_same_id(engine: Engine) -> None:
    ids: list[str] = []

    async def dies(message_id: str, again: bool) -> dict[str, Any]:
        ids.append(message_id)
        await asyncio.sleep(3600)  # for ever, until its process is killed
        return {}

    async def works(message_id: str, again: bool) -> dict[str, Any]:
        ids.append(message_id)
        return {"id": message_id}

    async def journey() -> None:
        dead = asyncio.create_task(Idempotency(engine).once("", "k", b"request", dies))
        while not ids:
            await asyncio.sleep(0.01)
        with database.writing(engine) as connection:  # its claim runs out
            connection.execute(update(idempotency_keys).values(claimed_until=now()))
        answer, repeated = await Idempotency(engine).once("", "k", b"request", works)
        assert (answer, repeated) == ({"id": ids[0]}, False)
        assert ids == [ids[0]] * 2
        dead.cancel()

    asyncio.run(journey())


def test_a_try_that_fails_is_done_again_under_the_same_id(engine: Engine) -> None:
    ids: list[str] = []

    async def fails(message_id: str, again: bool) -> dict[str, Any]:
        ids.append(message_id)
        raise ZeroDivisionError

    async def works(message_id: str, again: bool) -> dict[str, Any]:
        ids.append(message_id)
        return {"id": message_id}

    async def journey() -> None:
        keys = Idempotency(engine)
        with pytest.raises(ZeroDivisionError):
            await keys.once("", "k", b"request", fails)
        await keys.once("", "k", b"request", works)
        assert ids == [ids[0]] * 2
        with pytest.raises(Refusal):
            await keys.once("", "k", b"another", works)
        assert (await keys.once("ada", "k", b"another", works))[1] is False, "a key is its owner's"

    asyncio.run(journey())


def test_who_was_taken_over_gives_the_answer_of_who_took_over(engine: Engine) -> None:
    begun, finish = asyncio.Event(), asyncio.Event()

    async def slow(message_id: str, again: bool) -> dict[str, Any]:
        begun.set()
        await finish.wait()
        return {"by": "slow"}

    async def quick(message_id: str, again: bool) -> dict[str, Any]:
        assert again
        return {"by": "quick"}

    async def journey() -> None:
        first = asyncio.create_task(Idempotency(engine).once("", "k", b"request", slow))
        await begun.wait()
        with database.writing(engine) as connection:  # its claim runs out
            connection.execute(update(idempotency_keys).values(claimed_until=now()))
        assert (await Idempotency(engine).once("", "k", b"request", quick))[0] == {"by": "quick"}
        finish.set()
        assert (await first)[0] == {"by": "quick"}

    asyncio.run(asyncio.wait_for(journey(), 60))


def test_old_keys_are_forgotten(engine: Engine) -> None:
    async def works(message_id: str, again: bool) -> dict[str, Any]:
        return {"id": message_id}

    async def journey() -> None:
        keys = Idempotency(engine)
        for key in ("old", "new"):
            await keys.once("", key, b"request", works)
        with database.writing(engine) as connection:
            old = update(idempotency_keys).where(idempotency_keys.c.key == "old")
            connection.execute(old.values(created_at=now() - KEPT - timedelta(seconds=1)))
        cleaning = asyncio.create_task(keys.keep_clean())
        while len(known(engine)) > 1:
            await asyncio.sleep(0.01)
        assert known(engine) == ["new"]
        cleaning.cancel()

    asyncio.run(asyncio.wait_for(journey(), 60))


def known(engine: Engine) -> list[str]:
    with database.reading(engine) as connection:
        return list(connection.scalars(select(idempotency_keys.c.key)))
