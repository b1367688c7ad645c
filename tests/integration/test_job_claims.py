"""The claims of long jobs, in each database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Engine, func, select, update

from ackline.consumers.delivery import Delivery
from ackline.consumers.jobs.claims import Claims, Standing
from ackline.consumers.jobs.message import JobMessage
from ackline.infra import database
from ackline.infra.names import JOBS, MESSAGES
from ackline.infra.properties import Properties
from ackline.infra.tables import inbox
from ackline.infra.wire import now


def _message() -> JobMessage:
    properties = Properties(message_id="j-1", headers={"task": "render", "id": "j-1"})
    return JobMessage(Delivery(MESSAGES, JOBS, properties, b"[[], {}, {}]"), JOBS, "host:1", lambda *_: None)


class Worker:
    """Its claims, and what it runs."""

    def __init__(self, url: str) -> None:
        self.looks: list[list[JobMessage]] = []
        self.claims = Claims(url, lambda: self.looks.pop(0) if self.looks else [])

    def look(self, *running: list[JobMessage]) -> None:
        """Have it see that these run: when it looks, and when it has written that down."""
        self.looks = list(running)
        self.claims._look()


@pytest.fixture
def workers(engine: Engine) -> Iterator[tuple[Worker, Worker]]:
    url = engine.url.render_as_string(hide_password=False)
    mine, other = Worker(url), Worker(url)
    yield mine, other
    for worker in (mine, other):
        worker.claims._engine.dispose()


def _rows(engine: Engine) -> int:
    with database.reading(engine) as connection:
        return connection.scalar(select(func.count()).select_from(inbox)) or 0


def test_a_claim_holds_until_the_job_ends_and_then_it_is_known(engine: Engine, workers: tuple[Worker, Worker]) -> None:
    (mine, other), job = workers, _message()
    mine.look([job], [job])
    assert mine.claims.holds(job)
    assert other.claims.standing(job) is Standing.RUNS
    other.look([job], [job])
    assert not other.claims.holds(job)
    mine.claims.end(job, known=True)
    mine.look([], [])
    assert not mine.claims.holds(job)
    assert other.claims.standing(job) is Standing.OVER


def test_a_claim_that_is_not_renewed_ends(engine: Engine, workers: tuple[Worker, Worker]) -> None:
    (mine, other), job = workers, _message()
    mine.look([job], [job])
    with database.writing(engine) as connection:
        connection.execute(update(inbox).values(claimed_until=now() - timedelta(seconds=1)))
    assert other.claims.standing(job) is Standing.FREE
    mine.look([job])
    assert other.claims.standing(job) is Standing.RUNS, "it is renewed"


def test_what_ends_while_it_is_being_claimed_is_claimed_no_more(engine: Engine, workers: tuple[Worker, Worker]) -> None:
    (mine, _), job = workers, _message()
    mine.look([job], [])
    mine.look([], [])
    assert not mine.claims.holds(job)
    assert _rows(engine) == 0
