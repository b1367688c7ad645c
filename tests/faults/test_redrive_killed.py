"""The reviewer, the worker, the broker and who plans are killed during a redrive: the statement adds up by id."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, func, select

from ackline.dlq.contracts import Contracts
from ackline.dlq.desk import Desk
from ackline.dlq.redrives import Redrives
from ackline.dlq.rights import Actor, Role
from ackline.infra import database
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from ackline.infra.tables import DeadLetterState, ItemState, RedriveState, dead_letters, redrives
from ackline.infra.topology import ConsumerQueue, declare
from ackline.producer import Publisher
from tests import redriving
from tests.redriving import DATABASE, FOLDER, ONCE, Shipped
from tests.roles import ROOT, environment, role
from tests.waiting import until

LONG = bool(os.environ.get("ACKLINE_TEST_LONG"))
MESSAGES, KILLS = (20_000, 10) if LONG else (1_500, 3)
#: Messages a second until the last kill, so that all kills come in the middle; and from one kill to the next, at most.
SLOWLY, MOST_BETWEEN = (100.0, 1_000) if LONG else (15.0, 30)
DEADLINE = 900.0

OPERATOR = Actor("ada", Role.OPERATOR)
pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600 if LONG else 900)]


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, own_broker_settings: Settings) -> Settings:
    changes: dict[str, object] = {"app": ("tests.redriving",)}
    if request.param == "postgresql":
        changes["database_url"] = request.getfixturevalue("postgresql_url")
    declare(own_broker_settings.broker, [ConsumerQueue(ONCE, ("test.redriving.shipped",))])
    database.upgrade(str(changes.get("database_url", own_broker_settings.database)))
    return own_broker_settings.model_copy(update=changes)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = database.connect(settings.database)
    yield engine
    engine.dispose()


@pytest.fixture
def effects_url(settings: Settings) -> str:
    """The database of the application, with its inbox: SQLite's own, for its writers wait for each other."""
    url = settings.database
    if url.startswith("sqlite"):
        url = f"sqlite:///{settings.data_dir / 'service.db'}"
    engine = database.connect(url)
    redriving.service.create_all(engine)
    engine.dispose()
    return url


def test_a_redrive_among_kills_adds_up_by_id(
    settings: Settings, engine: Engine, effects_url: str, own_broker: Broker, say: Callable[[str], None]
) -> None:
    seed = int(os.environ.get("ACKLINE_TEST_SEED") or random.SystemRandom().randrange(10**6))
    say(f"seed {seed} (ACKLINE_TEST_SEED)")
    chance = random.Random(seed)
    desk = Desk(engine, settings, Contracts.of(settings)).redrives
    folder = settings.data_dir
    more = {FOLDER: str(folder), DATABASE: effects_url}
    with (
        role(settings, "reviewer") as reviewer,
        role(settings, "worker", "--consumers", ONCE, **more) as worker,
        Publisher.connect(settings, timeout=60) as publisher,
    ):
        confirms = [publisher.submit(Shipped(number=number), timeout=120) for number in range(MESSAGES)]
        assert all(confirm.exception() is None for confirm in confirms)
        until(lambda: _in(engine, DeadLetterState.IN_REVIEW) == MESSAGES, deadline=DEADLINE, what="the dead letters")
        redriving.mend(folder, MESSAGES)

        redrive_id = _plan_and_die(settings, engine)
        until(
            lambda: desk.get(OPERATOR, redrive_id).state == RedriveState.PLANNED,
            deadline=DEADLINE,
            what="the reviewer to finish the plan",
        )
        assert desk.statement(OPERATOR, redrive_id).planned == MESSAGES
        desk.rate(OPERATOR, redrive_id, SLOWLY)
        desk.start(OPERATOR, redrive_id)

        def kill_reviewer() -> None:
            reviewer.kill()
            reviewer.start()

        def kill_worker() -> None:
            worker.kill()
            worker.start()

        def kill_broker() -> None:
            own_broker.kill()
            own_broker.start()

        kinds = [kill_reviewer, kill_worker, kill_broker]
        kills = kinds + chance.choices(kinds, k=KILLS - len(kinds))
        chance.shuffle(kills)
        told = []
        for kill in kills:
            point = _handled(desk, redrive_id) + chance.randrange(1, MOST_BETWEEN)
            until(lambda: _handled(desk, redrive_id) >= point, deadline=DEADLINE, what=f"{point} answers")  # noqa: B023
            kill()
            told.append(f"{kill.__name__.removeprefix('kill_')} at {point}")
        assert desk.get(OPERATOR, redrive_id).state == RedriveState.RUNNING, "the kills came in the middle"
        desk.rate(OPERATOR, redrive_id, None)
        say(f"killed: {', '.join(told)}")
        until(lambda: desk.get(OPERATOR, redrive_id).state == RedriveState.DONE, deadline=DEADLINE, what="the redrive")
        statement = desk.statement(OPERATOR, redrive_id)
        effects = redriving.effects(effects_url)
        say(
            f"{engine.dialect.name}: {statement.planned} planned, "
            f"{ {state: count for state, count in statement.items.items() if count} }, "
            f"{statement.duplicates} duplicates, {statement.flagged} flagged; {sum(effects.values())} effects"
        )
        assert statement.adds_up
        assert statement.unanswered == []
        assert statement.items[ItemState.HANDLED] == MESSAGES
        assert _in(engine, DeadLetterState.REDRIVING) == 0
        assert _in(engine, DeadLetterState.HANDLED) == MESSAGES
        assert effects == dict.fromkeys(range(MESSAGES), 1), "each effect once, with the inbox"


def _plan_and_die(settings: Settings, engine: Engine) -> int:
    """Have a process plan a redrive of everything that is killed in the middle; returns its id."""
    program = "\n".join(
        [
            "import itertools, os, signal",
            "from ackline.dlq import planning",
            "from ackline.dlq.contracts import Contracts",
            "from ackline.dlq.desk import Desk",
            "from ackline.dlq.rights import Actor, Role",
            "from ackline.dlq.selection import Selection",
            "from ackline.infra import database",
            "from ackline.infra.settings import settings",
            "found = settings()",
            "planning.CHUNK = 20  # so that there are many",
            "add, chunks = planning.redrive.add, itertools.count()",
            "def add_and_die(*given):",
            "    add(*given)",
            "    if next(chunks) == 5:  # which is written then, and not committed",
            "        os.kill(os.getpid(), signal.SIGKILL)",
            "planning.redrive.add = add_and_die",
            "desk = Desk(database.connect(found.database), found, Contracts.of(found))",
            "desk.redrives.plan(Actor('ada', Role.OPERATOR), Selection())",
        ]
    )
    command = [sys.executable, "-c", program]
    planner = subprocess.run(command, env=environment(settings), cwd=ROOT, timeout=DEADLINE, check=False)
    assert planner.returncode == -signal.SIGKILL, "it was killed in the middle"
    with engine.connect() as connection:
        return int(connection.execute(select(redrives.c.id)).scalar_one())


def _in(engine: Engine, state: DeadLetterState) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).where(dead_letters.c.state == state)) or 0


def _handled(desk: Redrives, redrive_id: int) -> int:
    return desk.get(OPERATOR, redrive_id).items[ItemState.HANDLED]
