"""The ledger: what was accepted is somewhere, and what somebody took away behind everybody's back is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, select

from ackline.consumers.consumer import queues
from ackline.dlq import ledger
from ackline.dlq.broker_counts import TO_REVIEWER
from ackline.dlq.ledger import Balance, Ledger
from ackline.dlq.rights import Actor, Role
from ackline.infra import database
from ackline.infra.database import reading, writing
from ackline.infra.names import OUTCOMES
from ackline.infra.settings import Settings
from ackline.infra.tables import accepted, dead_letters, fingerprint_counts
from ackline.infra.topology import declare
from ackline.infra.wire import now
from ackline.producer import Publisher
from tests.amqp import Client
from tests.roles import role, run
from tests.tracked import FOLDER, Tracked, TrackedBoth, TrackedByNobody, Untracked
from tests.waiting import until

VIEWER = Actor("viewer", Role.VIEWER)


@pytest.fixture
def configured(ackline_settings: Settings) -> Settings:
    """Settings of an application whose topology and tables are there."""
    settings = ackline_settings.model_copy(update={"app": ("tests.tracked",)})
    declare(settings.broker, [found for found in queues(settings) if found.name.startswith("tracked")])
    database.upgrade(settings.database)
    return settings


@pytest.fixture
def engine(configured: Settings) -> Iterator[Engine]:
    engine = database.connect(configured.database)
    yield engine
    engine.dispose()


def balanced(settings: Settings, code: int, *arguments: str) -> dict[str, Any]:
    """What `ackline ledger` tells, which ends with *code*."""
    done = run(settings, "ledger", "--json", *arguments)
    assert (done.returncode, done.stderr) == (code, ""), done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def missing(settings: Settings, count: int) -> dict[str, Any]:
    """What it tells when so many are missing: once RabbitMQ has counted anew what is in the queues."""

    def told() -> dict[str, Any]:
        found = balanced(settings, 1)
        assert found["missing"] == count
        return found

    return until(told, what=f"{count} to be missing")


def accounts(found: dict[str, Any]) -> dict[str, dict[str, int]]:
    """The figures of each account that are not 0."""
    return {
        account["consumer"]: {name: value for name, value in account.items() if value and name != "consumer"}
        for account in found["accounts"]
    }


def count(engine: Engine, *where: Any) -> int:
    with reading(engine) as connection:
        return int(connection.scalar(select(func.count()).select_from(accepted).where(*where)) or 0)


def test_every_tracked_delivery_is_in_one_column_and_what_was_taken_away_is_named_by_id(
    configured: Settings, engine: Engine, tmp_path: Path, client: Client
) -> None:
    worker = role(configured, "worker", **{FOLDER: str(tmp_path)})
    with role(configured, "reviewer"), Publisher.connect(configured, timeout=60) as publisher:
        with worker as running:
            for task in ("succeed", "succeed", "retry once", "fail until repaired", "wait for an hour"):
                publisher.publish(Tracked(task=task, file="never"))
            for message in (TrackedBoth(), TrackedByNobody(), Untracked()):
                publisher.publish(message)
            until(lambda: client.ready("ackline.retry.1h") == 1, what="the retry")
            letters = select(func.count()).select_from(dead_letters)

            def reviewed() -> bool:
                with reading(engine) as connection:
                    return connection.scalar(letters) == 2

            until(reviewed, what="the dead letters")
            until(lambda: client.ready("ackline.retry.1s") == 0, what="the retry to be over")
            found = balanced(configured, 0)
            until(lambda: accounts(balanced(configured, 0))["tracked"].get("handled") == 3, what="all to be handled")
            found = balanced(configured, 0)
            assert accounts(found) == {
                "": {"accepted": 1, "in_review": 1},
                "tracked": {"accepted": 5, "handled": 3, "in_review": 1, "retrying": 1},
                "tracked-first": {"accepted": 1, "handled": 1},
                "tracked-second": {"accepted": 1, "handled": 1},
            }
            assert (found["retrying"], found["missing"], found["unsure"], found["adds_up"]) == (1, 0, None, True)
            assert running.stop() == 0
        waiting = [publisher.publish(Tracked()).message_id for _ in range(3)]
        until(lambda: count(engine, accepted.c.message_id.in_(waiting)) == 3, what="the record of them")
        assert accounts(balanced(configured, 0))["tracked"]["waiting"] == 3
        taken = client.take("tracked")
        assert taken is not None
        found = missing(configured, 1)
        lost = str(taken.properties.message_id)
        assert lost in {candidate["message_id"] for candidate in found["candidates"]}
        assert [client.take("tracked") is None for _ in range(2)] == [False, False]
        found = missing(configured, 3)
        retried = {candidate["message_id"] for candidate in found["candidates"] if candidate["last"] != "nothing"}
        assert {candidate["message_id"] for candidate in found["candidates"]} - retried == set(waiting)
        assert len(retried) == 1
        assert accounts(found)["tracked"] == {
            "accepted": 8,
            "handled": 3,
            "in_review": 1,
            "retrying": 1,
            "missing": 3,
        }
        done = run(configured, "ledger", "--consumer", "tracked")
        assert done.returncode == 1
        assert "It does not add up: 3 deliveries are nowhere." in done.stdout
        assert all(message_id in done.stdout for message_id in waiting)
        assert run(configured, "ledger", "--consumer", "tracked-first").returncode == 0
        assert balanced(configured, 0, "--until", "1h")["accounts"] == []


@pytest.fixture
def reviewing(configured: Settings, engine: Engine) -> Iterator[Callable[[], None]]:
    """Has a reviewer read all that it has to, each time that it is called."""
    with Client(configured.broker) as client:

        def review() -> None:
            with role(configured, "reviewer") as running:
                until(lambda: not any(map(client.ready, TO_REVIEWER)), what="empty queues")
                assert running.stop() == 0  # with what it had taken stored

        yield review


def window(engine: Engine, settings: Settings, wait: float = 0.0) -> Balance:
    return Ledger(engine, settings).window(VIEWER, wait=wait)


def test_what_waits_for_the_reviewer_makes_it_unsure_not_wrong(
    configured: Settings, engine: Engine, client: Client, publisher: Publisher, reviewing: Callable[[], None]
) -> None:
    first = publisher.publish(Tracked()).message_id
    reviewing()
    assert client.take("tracked") is not None
    event = {"event": "handled", "message_id": first, "consumer": "tracked", "type": "test.tracked", "attempt": 1}
    told = json.dumps([event | {"at": now().isoformat(), "worker": "host:1"}]).encode()
    client.publish(OUTCOMES, "handled.tracked", told)
    found = window(engine, configured)
    [account] = found.accounts
    assert account.unclear == 1, "nothing of this type is known of this consumer yet"
    reviewing()
    publisher.publish(Tracked())
    reviewing()
    assert client.take("tracked") is not None
    client.publish(OUTCOMES, "handled.tracked", told)
    waits = "Messages wait for the reviewer (1 in ackline.outcomes): does it run? Then ask again."

    def told_of_it() -> bool:
        found = window(engine, configured)
        assert found.missing == 1
        return found.unsure == waits  # once RabbitMQ has counted what workers hold

    until(told_of_it, what="the reason")


def test_a_message_that_was_taken_away_is_missing_when_it_has_been_for_long_enough(
    configured: Settings,
    engine: Engine,
    client: Client,
    publisher: Publisher,
    reviewing: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for _ in range(2):
        publisher.publish(TrackedByNobody())
    reviewing()
    with writing(engine) as connection:  # as if it had been lost on the way to review
        connection.execute(insert(accepted).values(message_id="lost", type="nobody.knows", at=now()))
    found = window(engine, configured)
    assert found.unsure == "0 s were too short to tell what moves from what is missing: wait for 24 s."
    monkeypatch.setattr(ledger, "SETTLE_SECONDS", 0.0)
    found = window(engine, configured)
    assert (found.missing, found.unsure, found.adds_up) == (1, None, False)
    assert [candidate.message_id for candidate in found.candidates] == ["lost"]


def test_without_the_management_api_it_says_what_is_not_counted(
    configured: Settings, engine: Engine, publisher: Publisher
) -> None:
    publisher.publish(Untracked())
    alone = configured.model_copy(update={"management_url": "http://127.0.0.1:9"})
    found = window(engine, alone)
    assert found.counted_since is None
    [tracked] = [counted for counted in found.counted if counted.consumer == "tracked"]
    assert (tracked.ready, tracked.held, tracked.published, tracked.acked) == (1, None, None, None)
    shown = run(alone, "ledger")
    assert shown.returncode == 0
    assert "not counted" in shown.stdout


def test_a_counter_of_a_group_that_is_wrong_does_not_add_up(configured: Settings, engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(insert(fingerprint_counts).values(fingerprint="f-1", state="in review", count=2))
    found = window(engine, configured)
    assert found.faults == ["Group f-1 has 0 dead letters in review, and 2 are counted."]
    assert not found.adds_up
    done = run(configured, "ledger")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "It does not add up."
