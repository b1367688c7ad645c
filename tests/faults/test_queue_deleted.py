"""A consumer's queue is deleted by hand while its messages wait in a retry tier that it shares with others."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from pathlib import Path

import httpx
import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from sqlalchemy import Engine, func, select

from ackline.infra import database, tables
from ackline.infra.settings import Settings
from ackline.producer import Publisher
from tests.broker import Vhost
from tests.counting import FOLDER, Counted
from tests.roles import role
from tests.waiting import until

WAITING = 40
TIER, DELAY = "ackline.retry.5s", 5.0

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("its_worker_runs", [True, False])
def test_messages_that_wait_for_a_deleted_queue_reach_review_and_the_others_return(
    ackline_settings: Settings, vhost: Vhost, tmp_path: Path, its_worker_runs: bool
) -> None:
    settings = ackline_settings.model_copy(update={"app": ("tests.counting",)})
    environment = {FOLDER: str(tmp_path)}
    with (
        role(settings, "reviewer"),
        role(settings, "worker", "--consumers", "counted", **environment) as deleted_ones,
        role(settings, "worker", "--consumers", "mirrored", **environment),
        Publisher.connect(settings) as publisher,
    ):
        confirms = [publisher.submit(Counted(number=number, fails=True)) for number in range(WAITING)]
        assert all(confirm.exception() is None for confirm in confirms)
        with closing(pika.BlockingConnection(pika.URLParameters(settings.broker))) as connection:
            channel = connection.channel()
            until(lambda: _waiting(channel) == 2 * WAITING, deadline=4, what="all messages in the tier")
        if not its_worker_runs:
            deleted_ones.stop()
        with vhost.api() as api:
            assert api.delete(f"/api/queues/{vhost.path}/counted").status_code == httpx.codes.NO_CONTENT
        engine = database.connect(settings.database)
        try:
            until(lambda: _in_review(engine) == {"counted": WAITING, "mirrored": WAITING}, what="80 rows in review")
            reasons, waits = _reasons(engine), _waits(engine, "mirrored")
        finally:
            engine.dispose()
    assert all("failed after 2 attempts" in reason for reason in reasons["mirrored"])
    assert all(DELAY <= wait < 2 * DELAY for wait in waits), f"the others came back late: {max(waits):.1f} s"
    assert all("counted" in reason and "queue" in reason for reason in reasons["counted"]), reasons["counted"][0]


def _waiting(channel: BlockingChannel) -> int:
    """Messages in the tier, now: the management API would say so seconds later."""
    return int(channel.queue_declare(TIER, passive=True).method.message_count)


def _in_review(engine: Engine) -> dict[str, int]:
    rows = tables.dead_letters
    with engine.connect() as connection:
        found = connection.execute(select(rows.c.consumer, func.count()).group_by(rows.c.consumer))
        return {str(consumer): int(count) for consumer, count in found}


def _reasons(engine: Engine) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with engine.connect() as connection:
        for consumer, reason in connection.execute(
            select(tables.dead_letters.c.consumer, tables.dead_letters.c.reason)
        ):
            found.setdefault(consumer, []).append(reason)
    return found


def _waits(engine: Engine, consumer: str) -> list[float]:
    """Seconds between the two attempts of each dead letter of *consumer*."""
    rows = tables.dead_letters
    with engine.connect() as connection:
        histories = list(connection.scalars(select(rows.c.history).where(rows.c.consumer == consumer)))
    times = [[datetime.fromisoformat(entry["at"]) for entry in history] for history in histories]
    return [(second - first).total_seconds() for first, second in times]
