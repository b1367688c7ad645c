"""A consumer's queue is deleted by hand while its messages wait in a retry tier that it shares with others."""

from __future__ import annotations

import contextlib
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, func, select

from ackline.infra import database, tables
from ackline.infra.running_broker import Broker
from ackline.producer import Publisher
from tests.amqp import Client
from tests.broker import Vhost, fresh_vhost, settings_for
from tests.counting import DELAY, FOLDER, Counted
from tests.roles import role
from tests.waiting import until

WAITING = 40
#: Seconds of the tiers in which they wait: the first one in which a slow machine still finds all of them at once.
DELAYS = (5, 15, 60)
#: Seconds within which the others are back. The broker would try again after 180 what it cannot dead-letter.
BACK = 120.0

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.mark.parametrize("its_worker_runs", [True, False])
def test_messages_that_wait_for_a_deleted_queue_reach_review_and_the_others_return(
    broker: Broker, tmp_path: Path, its_worker_runs: bool
) -> None:
    for delay in DELAYS:
        folder = tmp_path / f"{delay}s"
        folder.mkdir()
        with fresh_vhost(broker) as vhost:
            if _all_waited_when_it_was_deleted(vhost, folder, delay, its_worker_runs=its_worker_runs):
                return
    pytest.fail(f"{2 * WAITING} messages were never in one tier; nothing was shown")


def _all_waited_when_it_was_deleted(vhost: Vhost, folder: Path, delay: int, *, its_worker_runs: bool) -> bool:
    """Whether it could be shown. When it could, all of it is asserted here."""
    settings = settings_for(vhost.amqp_url, vhost.management_url, folder / "data")
    settings = settings.model_copy(update={"app": ("tests.counting",)})
    tier = f"ackline.retry.{delay}s" if delay < 60 else f"ackline.retry.{delay // 60}m"
    environment = {FOLDER: str(folder), DELAY: f"{delay}s"}
    with (
        role(settings, "reviewer"),
        role(settings, "worker", "--consumers", "counted", **environment) as deleted_ones,
        role(settings, "worker", "--consumers", "mirrored", **environment),
    ):
        with Publisher.connect(settings, timeout=60) as publisher, Client(vhost.amqp_url) as client, vhost.api() as api:
            confirms = [publisher.submit(Counted(number=number, fails=True), timeout=60) for number in range(WAITING)]
            assert all(confirm.exception() is None for confirm in confirms)
            with contextlib.suppress(AssertionError):  # the first are back before the last are there
                until(lambda: client.ready(tier) == 2 * WAITING, deadline=delay, what="all messages in the tier")
            if not its_worker_runs:
                deleted_ones.stop()
            assert api.delete(f"/api/queues/{vhost.path}/counted").status_code == httpx.codes.NO_CONTENT
            if client.ready(tier) != 2 * WAITING:
                return False
        engine = database.connect(settings.database)
        try:
            everything = {"counted": WAITING, "mirrored": WAITING}
            until(lambda: _in_review(engine) == everything, deadline=delay + BACK, what=f"{2 * WAITING} rows in review")
            reasons, waits = _reasons(engine), _waits(engine, "mirrored")
        finally:
            engine.dispose()
    assert all("failed after 2 attempts" in reason for reason in reasons["mirrored"])
    assert min(waits) >= delay
    assert all("counted" in reason and "queue" in reason for reason in reasons["counted"]), reasons["counted"][0]
    return True


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
