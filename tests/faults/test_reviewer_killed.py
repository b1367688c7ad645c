"""The reviewer is killed in the middle of its work: exactly one row for each dead letter."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

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
#: They are sent slice by slice, and the reviewer is killed when it has stored some of a slice. A kill that came when
#: all of it was stored shows nothing and does not count; the next slice is for another one.
SLICE = 1_000
KILLS, MOST_KILLS = 3, 30

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_reviewer_killed_three_times_among_10_000_dead_letters_keeps_exactly_one_row_each(
    ackline_settings: Settings, kind: str, request: pytest.FixtureRequest, say: Callable[[str], None]
) -> None:
    changes: dict[str, object] = {"app": ("tests.counting",)}
    if kind == "postgresql":
        changes["database_url"] = request.getfixturevalue("postgresql_url")
    settings = ackline_settings.model_copy(update=changes)

    with (
        role(settings, "reviewer") as reviewer,
        role(settings, "worker", "--consumers", "counted", **{FOLDER: str(settings.data_dir)}),
        Publisher.connect(settings, timeout=60) as publisher,
    ):
        engine = database.connect(settings.database)
        try:
            confirms: list[Future[None]] = []
            killed_at: list[str] = []

            def send(count: int) -> None:
                for number in range(len(confirms), len(confirms) + count):
                    properties = Properties(message_id=f"dead-{number}", type="test.counted", delivery_mode=2)
                    confirms.append(publisher.send(MESSAGES, "test.counted", properties, b"not JSON", timeout=120))

            kills = 0
            while len(killed_at) < KILLS:
                assert kills < MOST_KILLS, "the kills came after the work; nothing was shown"
                until(lambda: _rows(engine) == len(confirms), deadline=200, what="a row for each that was sent")
                stored = len(confirms)
                send(SLICE)
                until(lambda: _rows(engine) > stored, deadline=200, what="a row of the next slice")  # noqa: B023
                reviewer.kill()
                kills += 1
                if (found := _rows(engine)) < len(confirms):
                    killed_at.append(f"{found} of {len(confirms)}")
                reviewer.start()
            send(max(0, DEAD_LETTERS - len(confirms)))
            assert all(confirm.exception() is None for confirm in confirms)
            until(lambda: _rows(engine) >= len(confirms), deadline=200, what="a row for each dead letter")
            assert reviewer.stop() == 0  # what it holds is acked or given back, so nothing more can come in
            assert _rows(engine) == _distinct(engine) == len(confirms)
        finally:
            engine.dispose()
    say(f"killed at {', '.join(killed_at)}; in the end {len(confirms)} ({kind})")


def _rows(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(tables.dead_letters)) or 0


def _distinct(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count(tables.dead_letters.c.message_id.distinct()))) or 0
