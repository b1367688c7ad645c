"""Alerts: one call for each kind of failure that is new or returned, until somebody has heard."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from ackline.dlq import alerts as rows
from ackline.dlq.alerts import AlertSender
from ackline.dlq.chores import Chores, of_groups
from ackline.dlq.groups import Groups
from ackline.dlq.rights import Actor, Role
from ackline.dlq.store import Store
from ackline.infra import database
from ackline.infra.errors import ConfigurationError
from ackline.infra.ports import LOOPBACK, free_port
from ackline.infra.settings import Settings
from ackline.infra.tables import AlertState, GroupStatus, alerts, dead_letters, fingerprint_counts, fingerprints
from ackline.infra.wire import now
from ackline.producer import webhook
from ackline.producer.callbacks import PAUSES
from ackline.producer.outbound import Answer, NoAnswer
from tests.integration.test_groups import dead, differences
from tests.receiver import Answering, Received, Receiver
from tests.waiting import until

ADA = Actor("ada", Role.OPERATOR)


@pytest.fixture
def store(engine: Engine) -> Store:
    return Store(engine, alerting=True)


@contextmanager
def telling(engine: Engine, url: str, **settings: Any) -> Iterator[None]:
    """A sender of alerts while the block runs."""
    sender = AlertSender(engine, Settings(**settings), url)
    sender.start()
    try:
        yield
    finally:
        sender.stop(60)


def states(engine: Engine) -> list[str]:
    with database.reading(engine) as connection:
        return list(connection.scalars(select(alerts.c.state).order_by(alerts.c.id)))


def all_are(engine: Engine, state: AlertState) -> None:
    until(lambda: set(states(engine)) == {state}, what=f"every alert {state}")


def test_each_new_kind_is_told_of_once_and_signed(store: Store, engine: Engine) -> None:
    store.ingest([dead(f"m-{number}", ("ValueError", "KeyError")[number % 2]) for number in range(50)])
    with Receiver() as receiver, telling(engine, receiver.url):
        all_are(engine, AlertState.DELIVERED)
    told = {json.loads(request.body)["error_type"]: request for request in receiver.received}
    assert len(receiver.received) == len(told) == 2
    request = told["ValueError"]
    content = json.loads(request.body)
    assert (content["event"], content["kind"], content["consumer"]) == ("group.new", "new", "billing")
    assert (content["message"], content["arrivals"]) == ("no such user", 25)
    assert content["text"].splitlines()[0] == "A new failure of billing: ValueError: no such user"
    assert_signed(request, webhook.key(Settings(), engine))


def assert_signed(request: Received, key: bytes) -> None:
    signed = f"{request.headers['Webhook-Id']}.{request.headers['Webhook-Timestamp']}.".encode() + request.body
    expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    assert request.headers["Webhook-Signature"] == f"v1,{expected}"


def test_what_returns_after_it_was_resolved_is_told_of_again(store: Store, engine: Engine) -> None:
    store.ingest([dead("m-1")])
    groups = Groups(engine)
    with Receiver() as receiver, telling(engine, receiver.url):
        all_are(engine, AlertState.DELIVERED)
        (group,) = groups.page(ADA).items
        groups.triage(ADA, group.fingerprint, status=GroupStatus.RESOLVED, resolved_in="2.1", owner="team <b>")
        store.ingest([dead("m-2"), dead("m-3")])
        until(lambda: len(receiver.received) == 2, what="another alert")
    text = json.loads(receiver.received[1].body)["text"]
    assert text.splitlines()[0].startswith("A failure is back after it was resolved in 2.1 of billing")
    assert "3 so far" in text


def test_slack_gets_a_text_that_cannot_format_or_mention(store: Store, engine: Engine) -> None:
    store.ingest([dead("m-1", error_message="<!channel> a & b")])
    with Receiver() as receiver, telling(engine, receiver.url, alert_format="slack"):
        all_are(engine, AlertState.DELIVERED)
    content = json.loads(receiver.received[0].body)
    assert set(content) == {"text"}
    assert "&lt;!channel&gt; a &amp; b" in content["text"]
    assert "<" not in content["text"]


def test_no_value_of_a_message_is_told(store: Store, engine: Engine) -> None:
    said = "card '4111 1111' of ada@example.com, 4111111111111111, is refused"
    store.ingest([dead("m-secret", error_message=said, payload=b'{"card": "hunter2"}')])
    with Receiver() as receiver, telling(engine, receiver.url):
        all_are(engine, AlertState.DELIVERED)
    body = receiver.received[0].body.decode()
    assert "card <text> of <email> <n>, is refused" in body
    assert not any(value in body for value in ("4111", "ada@", "hunter2", "m-secret"))


def test_a_receiver_that_fails_is_called_again(store: Store, engine: Engine) -> None:
    store.ingest([dead("m-1")])
    answers = iter([503])
    with Receiver(lambda request: Answering(next(answers, 204))) as receiver, telling(engine, receiver.url):
        until(lambda: "It answered 503." in errors(engine), what="a failed attempt")
        make_due(engine)
        all_are(engine, AlertState.DELIVERED)
    first, second = receiver.received
    assert first.headers["Webhook-Id"] == second.headers["Webhook-Id"]


def errors(engine: Engine) -> list[str | None]:
    with database.reading(engine) as connection:
        return list(connection.scalars(select(alerts.c.error)))


def make_due(engine: Engine) -> None:
    with database.writing(engine) as connection:
        connection.execute(update(alerts).values(next_at=now()))


@pytest.mark.parametrize(
    ("outcome", "attempts"), [(Answer(410, None), 1), (Answer(500, None), 10), (NoAnswer("x"), 10)]
)
def test_an_alert_that_nobody_takes_is_given_up(
    store: Store, engine: Engine, outcome: Answer | NoAnswer, attempts: int
) -> None:
    store.ingest([dead("m-1")])
    for number in range(1, attempts + 1):
        make_due(engine)
        with database.writing(engine) as connection:
            alert = rows.claim(connection)
            assert alert is not None
            assert rows.claim(connection) is None, "it is one sender's"
            before = now()
            state = rows.settle(connection, alert, outcome)
            next_at = connection.scalars(select(alerts.c.next_at)).one()
        if number < attempts:
            assert state is AlertState.WAITING
            assert next_at - before >= timedelta(seconds=PAUSES[number - 1])
    assert states(engine) == [AlertState.FAILED]


def test_alerts_that_are_finished_are_forgotten_at_last(store: Store, engine: Engine) -> None:
    store.ingest([dead("m-1"), dead("m-2", "KeyError")])
    with database.writing(engine) as connection:
        ago = now() - 2 * rows.KEPT
        first = select(alerts.c.id).order_by(alerts.c.id).limit(1).scalar_subquery()
        finished = {"state": AlertState.DELIVERED, "finished_at": ago, "at": ago}
        connection.execute(update(alerts).where(alerts.c.id == first).values(finished))
    assert of_groups(engine)["forgetting alerts"]() is False, "there is no more"
    assert states(engine) == [AlertState.WAITING]


@pytest.mark.parametrize("url", ["ftp://example.com", "https://", "https://user:pw@example.com/", "https://[x", "x"])
def test_an_address_that_cannot_be_called_is_said_at_the_start(tmp_path: Path, url: str) -> None:
    engine = database.connect(f"sqlite:///{tmp_path / 'a.db'}")
    with pytest.raises(ConfigurationError, match="ACKLINE_ALERT_URL cannot be used"):
        AlertSender(engine, Settings(), url)
    engine.dispose()


def test_a_name_that_leads_into_the_private_network_is_not_called(store: Store, engine: Engine) -> None:
    store.ingest([dead("m-1")])
    with Receiver() as receiver, telling(engine, f"http://localhost:{receiver.port}/"):
        until(lambda: any("is not public" in (error or "") for error in errors(engine)), what="a refusal")
    assert receiver.received == []


def test_nobody_who_listens_holds_up_no_dead_letter(store: Store, engine: Engine) -> None:
    with telling(engine, f"http://{LOOPBACK}:{free_port()}/"):
        store.ingest([dead("m-1")])
        until(lambda: any(errors(engine)), what="a failed attempt")
        store.ingest([dead("m-2")])
    assert states(engine) == [AlertState.WAITING]


def test_chores_give_dead_letters_their_fingerprints(store: Store, engine: Engine) -> None:
    store.ingest([dead(f"m-{number}") for number in range(600)])
    with database.writing(engine) as connection:
        connection.execute(update(dead_letters).values(fingerprint=""))
        connection.execute(fingerprints.delete())
        connection.execute(fingerprint_counts.delete())
    chores = Chores({"failing": lambda: 1 // 0 > 0, **of_groups(engine)})
    chores.start()
    until(lambda: differences(engine) == [] and arrivals_of(engine) == [600], what="all counted")
    chores.stop(60)


def arrivals_of(engine: Engine) -> list[int]:
    with database.reading(engine) as connection:
        return list(connection.scalars(select(fingerprints.c.arrivals)))
