"""Several people reach for the same dead letter at once: it is sent once, and the others are told who has it."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine

from ackline.dlq.contracts import Contracts
from ackline.dlq.deadletter import DeadLetter
from ackline.dlq.desk import Desk
from ackline.dlq.redrives import Redrives
from ackline.dlq.rights import Actor, Role
from ackline.dlq.selection import Selection
from ackline.dlq.sender import POLL_SECONDS
from ackline.dlq.store import Store
from ackline.infra import database
from ackline.infra.properties import Properties
from ackline.infra.settings import Settings
from ackline.infra.tables import DeadLetterState, ItemState, RedriveState
from ackline.infra.topology import ConsumerQueue, declare
from tests import redriving
from tests.desk import serving
from tests.letters import read, worker_headers
from tests.redriving import BARE, FOLDER
from tests.roles import role
from tests.waiting import until

ROUNDS = 1_000 if os.environ.get("ACKLINE_TEST_LONG") else 25
BULK = Actor("bulk", Role.OPERATOR)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, ackline_settings: Settings) -> Settings:
    changes: dict[str, object] = {"app": ("tests.redriving",)}
    if request.param == "postgresql":
        changes["database_url"] = request.getfixturevalue("postgresql_url")
    declare(ackline_settings.broker, [ConsumerQueue(BARE, ("test.redriving.shipped",))])
    return ackline_settings.model_copy(update=changes)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    database.upgrade(settings.database)
    engine = database.connect(settings.database)
    yield engine
    engine.dispose()


def test_two_operators_and_a_bulk_run_reach_for_the_same_message_and_one_sends_it(
    settings: Settings, engine: Engine, tmp_path: Path, say: Callable[[str], None]
) -> None:
    redriving.mend(tmp_path, ROUNDS)
    store, desk = Store(engine), Desk(engine, settings, Contracts.of(settings))
    redrives = desk.redrives
    winners: Counter[str] = Counter()
    chance = random.Random(0)
    with (
        role(settings, "reviewer"),
        role(settings, "worker", "--consumers", BARE, **{FOLDER: str(tmp_path)}),
        ThreadPoolExecutor(3) as pool,
        serving(settings) as door,
    ):
        ada, bob = (door.person(name, Role.OPERATOR) for name in ("ada", "bob"))
        for number in range(ROUNDS):
            store.ingest([_letter(number)])
            row_id = desk.letters.find(BULK, f"m-{number}").id
            plan = redrives.plan(BULK, Selection(ids=(row_id,)), canary=False)
            gate, late = Barrier(3), 2 * POLL_SECONDS * chance.random()

            asked: dict[str, Future[Any]] = {
                "ada": pool.submit(_reach, ada, row_id, gate, late),
                "bob": pool.submit(_reach, bob, row_id, gate, late),
                "bulk": pool.submit(_run, redrives, plan.id, gate),
            }
            answers = {name: future.result() for name, future in asked.items()}
            until(lambda: redrives.get(BULK, plan.id).state == RedriveState.DONE, what="the bulk run")  # noqa: B023
            (item,) = redrives.items(BULK, plan.id).items
            answers["bulk"] = item.error if item.state == ItemState.SKIPPED else None
            won = [name for name, refused in answers.items() if refused is None]
            assert len(won) == 1, answers
            winners[won[0]] += 1
            for refused in filter(None, answers.values()):
                assert won[0] in refused or "handled" in refused, refused
        everything = Selection(states=(DeadLetterState.HANDLED,))
        until(
            lambda: desk.letters.counts(BULK, everything)["handled"] == ROUNDS,
            what="all to be handled",
        )
    assert redriving.tries(tmp_path) == dict.fromkeys(range(ROUNDS), 1), "sent once each round"
    say(f"{engine.dialect.name}: {ROUNDS} rounds, won by {dict(winners)}")


def _reach(operator: httpx.Client, row_id: int, gate: Barrier, late: float) -> str | None:
    """What a 409 says; None when the message was sent."""
    gate.wait()
    # The reviewer looks for something to do now and then: the bulk run has a chance only against who is late.
    time.sleep(late)
    answer = operator.post(f"/api/dead-letters/{row_id}/retry", json={"reason": "mended"})
    if answer.is_success:
        return None
    assert answer.status_code == 409, answer.text
    return str(answer.json()["detail"])


def _run(redrives: Redrives, redrive_id: int, gate: Barrier) -> None:
    gate.wait()
    redrives.start(BULK, redrive_id)


def _letter(number: int) -> DeadLetter:
    headers = worker_headers(consumer=BARE)
    properties = Properties(message_id=f"m-{number}", type="test.redriving.shipped", delivery_mode=2, headers=headers)
    return read(properties, b'{"number": %d}' % number)
