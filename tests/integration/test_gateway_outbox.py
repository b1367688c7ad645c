"""What the gateway accepts while the broker is away, silent, or blocked: into the outbox, in order, up to a bound."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import make_url, select, update

from ackline.infra import database
from ackline.infra.private_node import PrivateNode
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from ackline.infra.tables import outbox
from ackline.infra.wire import now
from tests.doors import MAIL, NEVER, gateway, hurried_gateway, is_connected, problem
from tests.integration.test_publisher import taken
from tests.roles import RoleProcess, listening, role
from tests.waiting import until

UNROUTED = "ackline.unrouted"  # the gateway alone declares no consumer's queue


def post(client: httpx.Client, number: int, **query: str) -> dict[str, Any]:
    mail = MAIL | {"subject": f"number {number}"}
    answer = client.post("/v1/messages/email.send", json=mail, params=query)
    assert answer.status_code == 202, answer.text
    accepted: dict[str, Any] = answer.json()
    return accepted


def rows(settings: Settings) -> list[Any]:
    engine = database.connect(settings.database)
    try:
        with database.reading(engine) as connection:
            return list(connection.execute(select(outbox).order_by(outbox.c.id)))
    finally:
        engine.dispose()


@contextmanager
def without_broker(tmp_path: Path, **variables: str) -> Iterator[tuple[httpx.Client, RoleProcess, Settings]]:
    settings = Settings(amqp_url="amqp://a:b@127.0.0.1:1/", data_dir=tmp_path, grace_seconds=1)
    with (
        role(settings, "gateway", "--port", "0", **variables) as process,
        httpx.Client(base_url=listening(process), timeout=NEVER, trust_env=False) as client,
    ):
        yield client, process, settings


def test_it_starts_without_a_broker_and_accepts(tmp_path: Path) -> None:
    with without_broker(tmp_path) as (client, process, settings):
        assert post(client, 1)["state"] == "accepted"
        ready = client.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["status"] == "ready"
        assert "127.0.0.1:1" in ready.json()["broker"], "it says which broker"
        assert [row.state for row in rows(settings)] == ["waiting"]
        assert process.stop() == 0


def test_past_the_bound_it_says_so_and_accepts_nothing_more(tmp_path: Path) -> None:
    with without_broker(tmp_path, ACKLINE_OUTBOX_MOST="3") as (client, _, settings):
        for number in range(3):
            post(client, number)
        answer = client.post("/v1/messages/email.send", json=MAIL)
        found = problem(answer, 503)
        assert found["detail"] == (
            "3 messages wait in the outbox already, and ACKLINE_OUTBOX_MOST is 3. The message was not accepted."
        )
        assert int(answer.headers["retry-after"]) > 0
        assert problem_of(client.get("/readyz")).startswith("3 messages wait")
        batch = client.post("/v1/messages", json=[{"type": "email.send", "data": MAIL}] * 2)
        assert [result["status"] for result in problem(batch, 503)["results"]] == [503, 503]
        assert int(batch.headers["retry-after"]) > 0
        assert len(rows(settings)) == 3


def problem_of(answer: httpx.Response) -> str:
    assert answer.status_code == 503
    return str(answer.json()["reason"])


def test_a_scheduled_message_is_a_row_though_the_broker_is_there(ackline_settings: Settings) -> None:
    with gateway(ackline_settings) as client:
        accepted = post(client, 1, delay="2h")
        assert accepted["state"] == "accepted"
        assert accepted["status_url"]
        assert post(client, 2)["state"] == "waiting", "what is due later holds up nothing"
        [row] = rows(ackline_settings)
        assert row.message_id == accepted["id"]
        assert 7100 < (row.due_at - row.created_at).total_seconds() < 7300
    [(properties, _)] = taken(ackline_settings.broker, UNROUTED)
    assert properties.message_id != accepted["id"]


def test_what_is_due_later_does_not_fill_the_outbox(ackline_settings: Settings) -> None:
    with gateway(ackline_settings, ACKLINE_OUTBOX_MOST="3") as client:
        for number in range(6):
            post(client, number, delay="2h")
        assert post(client, 7)["state"] == "waiting"
    assert len(rows(ackline_settings)) == 6


def test_a_refusal_that_may_pass_is_not_kept_for_its_idempotency_key(tmp_path: Path) -> None:
    with without_broker(tmp_path, ACKLINE_OUTBOX_MOST="1") as (client, _, settings):
        first = post(client, 1)
        headers = {"Idempotency-Key": "order-7"}
        items = [{"type": "email.send", "data": MAIL}, {"type": "no.such", "data": 1}]
        for _ in range(2):
            found = problem(client.post("/v1/messages", json=items, headers=headers), 422)
            assert [result["status"] for result in found["results"]] == [503, 404]
            problem(client.post("/v1/messages/email.send", json=MAIL, headers={"Idempotency-Key": "order-8"}), 503)
        engine = database.connect(settings.database)
        with database.writing(engine) as connection:  # as if a relay had published it
            done = update(outbox).where(outbox.c.message_id == first["id"])
            connection.execute(done.values(state="published", finished_at=now()))
        engine.dispose()

        def accepted() -> bool:
            return client.post("/v1/messages", json=items, headers=headers).status_code == 207

        until(accepted, what="room in the outbox to be noticed")


def test_while_the_database_is_locked_what_needs_it_is_refused_and_the_rest_is_accepted(
    ackline_settings: Settings,
) -> None:
    with gateway(ackline_settings) as client:
        lock = sqlite3.connect(str(make_url(ackline_settings.database).database), isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        try:
            assert post(client, 1)["state"] == "waiting"
            keyed = client.post("/v1/messages/email.send", json=MAIL, headers={"Idempotency-Key": "k"})
            assert "database" in problem(keyed, 503)["detail"]
            later = client.post("/v1/messages/email.send", json=MAIL, params={"delay": "1h"})
            assert "may not have been accepted" in problem(later, 503)["detail"]
        finally:
            lock.close()
        assert post(client, 2, delay="1h")["state"] == "accepted"


def test_a_parameter_that_is_wrong_is_named(ackline_settings: Settings) -> None:
    queries: list[tuple[dict[str, str], str]] = [
        ({"delay": "soon"}, "'soon' is no duration: write '250ms', '1s', '5m', '2h', '1d', or seconds"),
        ({"delay": "-1"}, "'-1' is no duration"),
        ({"delay": "11000d"}, "'11000d' is no duration"),
        ({"deliver_at": "2030-01-01T00:00:00"}, "it needs a time zone, such as 2030-01-31T08:00:00Z"),
        ({"deliver_at": "tomorrow"}, "write it as in 2030-01-31T08:00:00Z"),
        ({"deliver_at": "9999-12-31T23:59:59Z"}, "it lies more than ten years ahead"),
        ({"deliver_at": "2030-01-01T00:00:00Z", "delay": "1"}, "give this or delay, not both"),
        ({"track": "perhaps"}, "it is true or false"),
        ({"dealy": "1"}, "there is no such parameter"),
        ({"callback_url": "https://example.com/done"}, "ACKLINE_CALLBACK_HOSTS"),
    ]
    with gateway(ackline_settings) as client:
        for query, said in queries:
            found = problem(client.post("/v1/messages/email.send", json=MAIL, params=query), 422)
            assert said in found["detail"]
            assert found["errors"][0]["field"] in query
    assert rows(ackline_settings) == []
    assert taken(ackline_settings.broker, UNROUTED) == []


def test_while_the_broker_is_away_messages_are_accepted_and_delivered_afterwards_in_order(
    own_broker: Broker, own_broker_settings: Settings
) -> None:
    ids: list[str] = []
    with gateway(own_broker_settings) as client:
        assert post(client, 0)["state"] == "waiting"
        taken(own_broker_settings.broker, UNROUTED)
        own_broker.stop()
        until(lambda: not is_connected(client), what="the lost connection to be noticed")
        for number in range(20):
            accepted = post(client, number)
            assert accepted["state"] == "accepted"
            ids.append(accepted["id"])
        own_broker.start()
        until(lambda: is_connected(client), what="the reconnect")
        for number in range(20, 40):
            accepted = post(client, number)
            assert accepted["state"] == "accepted", "while a backlog waits, new messages join it"
            ids.append(accepted["id"])
        with role(own_broker_settings, "relay"):

            def straight() -> bool:
                accepted = post(client, len(ids))
                ids.append(accepted["id"])
                return bool(accepted["state"] == "waiting")

            until(straight, what="the backlog to be worked off, and the straight way to open again")
    arrived = [properties.message_id for properties, _ in taken(own_broker_settings.broker, UNROUTED)]
    assert list(dict.fromkeys(arrived)) == ids, "in the order of acceptance; repeats aside"


def test_a_message_whose_confirm_does_not_come_is_accepted_under_the_same_id(
    own_broker: Broker, own_broker_settings: Settings
) -> None:
    if not isinstance(own_broker, PrivateNode):
        pytest.skip("needs the broker's process")
    with hurried_gateway(own_broker_settings) as client:
        with role(own_broker_settings, "relay"):
            until(lambda: post(client, 0)["state"] == "waiting", what="a new broker to confirm within the deadline")
        taken(own_broker_settings.broker, UNROUTED)
        os.kill(own_broker.pid, signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(4) as callers:
                accepted = list(callers.map(lambda number: post(client, number), range(4)))
        finally:
            os.kill(own_broker.pid, signal.SIGCONT)
        assert {each["state"] for each in accepted} == {"accepted"}
        ids = {each["id"] for each in accepted}
        assert {row.message_id for row in rows(own_broker_settings)} >= ids
        with role(own_broker_settings, "relay"):
            until(lambda: post(client, 9)["state"] == "waiting", what="the backlog to be worked off")
    arrived = [properties.message_id for properties, _ in taken(own_broker_settings.broker, UNROUTED)]
    assert ids <= set(arrived)
