"""A redrive that begins with a few stops by itself when the bug is not mended, and says why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine

from ackline.dlq.contracts import Contracts
from ackline.dlq.desk import Desk
from ackline.dlq.redrives import Redrive
from ackline.dlq.rights import Actor, Role
from ackline.dlq.selection import Selection
from ackline.infra import database
from ackline.infra.settings import Settings
from ackline.infra.tables import DeadLetterState, ItemState, RedriveState
from ackline.producer import Publisher
from tests import redriving
from tests.redriving import BARE, FOLDER, Shipped
from tests.roles import role
from tests.waiting import until

MESSAGES = 1_000
ADA = Actor("ada", Role.OPERATOR)


@dataclass
class Failed:
    """A group of dead letters with one bug, and those who work on it."""

    desk: Desk
    folder: Path

    def waits(self, redrive_id: int, *states: RedriveState) -> Redrive:
        """The redrive once it is in one of *states*."""

        def found() -> Redrive | None:
            redrive = self.desk.redrives.get(ADA, redrive_id)
            return redrive if redrive.state in states else None

        return until(found, deadline=200, what=f"the redrive to be {' or '.join(states)}")

    def sent_again(self) -> int:
        """How many messages the handler saw since they failed first."""
        return sum(redriving.tries(self.folder).values()) - MESSAGES


@pytest.fixture
def engine(ackline_settings: Settings) -> Iterator[Engine]:
    database.upgrade(ackline_settings.database)
    engine = database.connect(ackline_settings.database)
    yield engine
    engine.dispose()


@pytest.fixture
def failed(ackline_settings: Settings, engine: Engine, tmp_path: Path) -> Iterator[Failed]:
    settings = ackline_settings.model_copy(update={"app": ("tests.redriving",)})
    desk = Desk(engine, settings, Contracts.of(settings))
    with (
        role(settings, "reviewer"),
        role(settings, "worker", "--consumers", BARE, **{FOLDER: str(tmp_path)}),
        Publisher.connect(settings, timeout=60) as publisher,
    ):
        for confirm in [publisher.submit(Shipped(number=number), timeout=60) for number in range(MESSAGES)]:
            confirm.result()
        review = Selection(states=(DeadLetterState.IN_REVIEW,))
        until(lambda: desk.letters.counts(ADA, review)["in review"] == MESSAGES, deadline=200, what="the dead letters")
        yield Failed(desk, tmp_path)


def test_of_a_group_whose_bug_is_not_mended_at_most_six_are_sent(failed: Failed) -> None:
    redrives = failed.desk.redrives
    (group,) = failed.desk.groups.page(ADA).items
    plan = redrives.plan(ADA, Selection(fingerprint=group.fingerprint))
    assert plan.plan is not None
    assert plan.plan.messages == MESSAGES
    redrives.start(ADA, plan.id)
    stopped = failed.waits(plan.id, RedriveState.STOPPED, RedriveState.DONE)
    assert stopped.state == RedriveState.STOPPED
    assert 1 <= failed.sent_again() <= 6
    assert stopped.why is not None
    assert "Broken" in stopped.why
    assert redrives.statement(ADA, plan.id).adds_up

    # The fix is deployed, and the redrive goes on from one again.
    redriving.mend(failed.folder, MESSAGES)
    redrives.resume(ADA, plan.id)
    failed.waits(plan.id, RedriveState.DONE)
    statement = redrives.statement(ADA, plan.id)
    assert statement.adds_up
    assert statement.items[ItemState.HANDLED] + statement.items[ItemState.FAILED] == MESSAGES
    assert statement.items[ItemState.FAILED] <= 6


def test_a_fix_that_mends_only_some_is_found_out_after_the_canary(failed: Failed) -> None:
    redriving.mend(failed.folder, 100)
    redrives = failed.desk.redrives
    # So slowly that much is left when a busy machine learns of the failure.
    plan = redrives.plan(ADA, Selection(), rate=50)
    redrives.start(ADA, plan.id)
    stopped = failed.waits(plan.id, RedriveState.STOPPED, RedriveState.DONE)
    assert stopped.state == RedriveState.STOPPED, "the failure returned"
    statement = redrives.statement(ADA, plan.id)
    assert statement.items[ItemState.FAILED] >= 1
    assert statement.items[ItemState.PLANNED] > 0, "the rest stays in review"
