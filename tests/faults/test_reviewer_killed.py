"""The reviewer is killed in the middle of its work: exactly one row for each dead letter."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, func, select

from ackline.infra import database, tables
from ackline.infra.names import MESSAGES
from ackline.infra.properties import Properties
from ackline.infra.settings import Settings
from ackline.producer import Publisher
from tests.counting import FOLDER
from tests.roles import role
from tests.waiting import until

DEAD_LETTERS = 10_000
KILL_AT = (1_000, 4_000, 7_000)

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_reviewer_killed_three_times_among_10_000_dead_letters_keeps_exactly_one_row_each(
    ackline_settings: Settings, kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, object] = {"app": ("tests.counting",)}
    if kind == "postgresql":
        changes["database_url"] = request.getfixturevalue("postgresql_url")
    settings = ackline_settings.model_copy(update=changes)

    with (
        role(settings, "reviewer") as reviewer,
        role(settings, "worker", "--consumers", "counted", **{FOLDER: str(settings.data_dir)}),
        Publisher.connect(settings) as publisher,
    ):
        engine = database.connect(settings.database)
        try:
            confirms = [
                publisher.send(MESSAGES, "test.counted", _properties(number), b"not JSON", timeout=60)
                for number in range(DEAD_LETTERS)
            ]
            killed_at = []
            for at in KILL_AT:
                until(lambda at=at: _rows(engine) >= at, deadline=60, what=f"{at} rows")  # type: ignore[misc]
                reviewer.kill()
                killed_at.append(_rows(engine))
                reviewer.start()
            assert all(confirm.exception() is None for confirm in confirms)
            until(lambda: _rows(engine) >= DEAD_LETTERS, deadline=120, what="a row for each dead letter")
            assert reviewer.stop() == 0  # what it holds is acked or given back, so nothing more can come in
            reviewer.start()
            assert _rows(engine) == DEAD_LETTERS
            assert _distinct(engine) == DEAD_LETTERS
        finally:
            engine.dispose()
    with capsys.disabled():
        print(f"\n  killed at {killed_at} rows; in the end {DEAD_LETTERS} ({kind})")
    assert killed_at[-1] < DEAD_LETTERS, "the last kill came after the work; nothing was shown"


def _properties(number: int) -> Properties:
    return Properties(message_id=f"dead-{number}", type="test.counted", delivery_mode=2)


def _rows(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(tables.dead_letters)) or 0


def _distinct(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count(tables.dead_letters.c.message_id.distinct()))) or 0
