"""Burst writes: what comes at once becomes rows in batches, each message once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from sqlalchemy import Engine, text

from ackline.consumers import Ack, Reject, registered
from ackline.consumers.testing import run
from ackline.infra import database
from ackline.infra.settings import Settings
from ackline.infra.topology import declare
from tests import scenario_app
from tests.doors import connected
from tests.roles import role
from tests.scenario_app import APP, DATABASE, Reading
from tests.waiting import until

COUNT = 5000


@contextmanager
def shop(url: str) -> Iterator[Engine]:
    """An engine on a database with the application's tables."""
    engine = database.connect(url)
    scenario_app.metadata.create_all(engine)
    yield engine
    engine.dispose()


def counted(engine: Engine, what: str) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text(f"SELECT count({what}) FROM readings")).scalar_one())


def test_a_burst_becomes_rows_in_few_transactions(
    ackline_settings: Settings, postgresql_url: str, say: Callable[[str], None]
) -> None:
    settings = ackline_settings.model_copy(update={"app": (APP,)})
    declare(settings.broker, [registered()["readings"].queue])
    lines = [
        json.dumps({"type": "test.reading", "data": {"meter": f"m-{number % 7}", "number": number}})
        for number in range(COUNT)
    ]
    with shop(postgresql_url) as engine:
        with role(settings, "gateway", "--port", "0") as gateway:
            address = connected(gateway)
            headers = {"Content-Type": "application/x-ndjson"}
            answer = httpx.post(f"{address}/v1/messages", content="\n".join(lines), headers=headers, timeout=120)
            assert answer.status_code == httpx.codes.ACCEPTED, answer.text[:500]
        # The queue has the whole peak by now, or the outbox what was not confirmed in time.
        with role(settings, "relay"), role(settings, "worker", **{DATABASE: postgresql_url}):
            until(lambda: counted(engine, "*") == COUNT, what="all rows")
        distinct = counted(engine, "DISTINCT number")
        commits = counted(engine, "DISTINCT xmin::text")  # the transaction that wrote a row
    say(f"{COUNT:,} messages posted at once: {distinct:,} rows in {commits} transactions")
    assert distinct == COUNT
    assert commits <= COUNT / 10


def test_a_row_that_the_database_refuses_goes_to_review_alone(tmp_path: Path) -> None:
    batch = [Reading(meter="a", number=number) for number in (1, -1, 2**64, 2)]
    url = f"sqlite:///{tmp_path / 'meters.db'}"
    with shop(url) as engine:
        first, refused, too_large, last = run(registered()["readings"], batch, database_url=url)
        assert counted(engine, "*") == 2
    assert (first.decision, last.decision) == (Ack(), Ack())
    assert isinstance(refused.decision, Reject)
    assert "from_zero" in refused.decision.reason
    assert isinstance(too_large.decision, Reject)
