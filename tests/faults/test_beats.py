"""Two beats of which one is killed, or stands still and wakes up: each tick is run, once."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select

from ackline.infra import database
from ackline.infra.database import reading
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from ackline.infra.tables import schedule_runs
from tests.amqp import Client
from tests.relaying import QUEUE, declare_queue, taken
from tests.roles import RoleProcess, role
from tests.waiting import until

TICKS = 100 if os.environ.get("ACKLINE_TEST_LONG") else 15
#: Its grace is longer than a busy machine could stand still, so that by its rule no tick may be missed.
SECONDLY = {"name": "secondly", "when": "every 1s", "grace": "1h", "message": "test.recorded", "data": {"number": 7}}
TOLD: Any = {"ACKLINE_APP": "tests.relaying", "ACKLINE_SCHEDULES": json.dumps([SECONDLY])}


class Runs:
    """The ticks that were run, as the database has them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self) -> list[tuple[datetime, str, int]]:
        """Each one's time, the id of its message, and the process that ran it."""
        columns = (schedule_runs.c.planned_at, schedule_runs.c.message_id, schedule_runs.c.by)
        with reading(self._engine) as connection:
            found = connection.execute(select(*columns).order_by(schedule_runs.c.planned_at)).all()
        return [(at, id_, int(by.rpartition(":")[2])) for at, id_, by in found]

    def wait_for(self, more: int, by: RoleProcess | None = None) -> int:
        """Wait for so many further ticks, by that process if one is given; the process that ran the last one."""
        before = len(self())

        def further() -> int | None:
            found = [run for run in self()[before:] if by is None or run[2] == by.pid]
            return found[-1][2] if len(found) >= more else None

        return until(further, deadline=90 + 10 * more, what=f"{more} further ticks")


def which(beats: list[RoleProcess], pid: int) -> tuple[RoleProcess, RoleProcess]:
    """The one with that process id, and the other."""
    (one,) = [each for each in beats if each.pid == pid]
    (other,) = [each for each in beats if each is not one]
    return one, other


def check(runs: Runs, client: Client) -> tuple[int, int]:
    """That each tick from the first to the last was run once, and is a message. Returns how many ticks, and messages.

    There are more messages than ticks only where the relay had to publish again, under the same id.
    """
    found = runs()
    times = [at for at, _, _ in found]
    assert times == [times[0] + timedelta(seconds=n) for n in range(len(times))], "none missed, none doubled"
    until(lambda: client.ready(QUEUE) >= len(found), what="the relay to publish all")
    received = Counter(str(one.properties.message_id) for one in taken(client))
    assert set(received) == {id_ for _, id_, _ in found}
    return len(found), received.total()


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_of_two_beats_one_killed_and_one_that_stands_still_no_tick_is_missed_or_doubled(
    ackline_settings: Settings, postgresql_url: str, say: Callable[[str], None]
) -> None:
    configured = ackline_settings.model_copy(update={"database_url": postgresql_url})
    declare_queue(configured.broker)
    beats = [RoleProcess(configured, "beat", **TOLD) for _ in range(2)]
    try:
        with (
            role(configured, "relay"),
            database.opened(postgresql_url) as engine,
            Client(configured.broker) as client,
        ):
            runs = Runs(engine)
            for each in beats:
                each.start()
            killed, other = which(beats, runs.wait_for(TICKS // 3))
            killed.kill()
            runs.wait_for(TICKS // 3, by=other)
            killed.start()
            os.kill(other.pid, signal.SIGSTOP)
            runs.wait_for(TICKS // 3, by=killed)
            os.kill(other.pid, signal.SIGCONT)
            runs.wait_for(3)
            killed.kill()
            runs.wait_for(2, by=other)
            assert other.stop() == 0
            count, messages = check(runs, client)
            assert messages == count
            say(
                f"{count} ticks, a second apart, one run and one message each; two beats, killed twice and stopped once"
            )
    finally:
        for each in beats:
            each.kill()


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_beats_go_on_without_rabbitmq_and_what_they_ran_is_published_when_it_is_back(
    own_broker: Broker, own_broker_settings: Settings
) -> None:
    configured = own_broker_settings
    declare_queue(configured.broker)
    own_broker.restart()  # RabbitMQ 3.10 forgets a quorum queue when it is killed soon after the declaration
    beats = [RoleProcess(configured, "beat", **TOLD) for _ in range(2)]
    try:
        with role(configured, "relay"), database.opened(configured.database) as engine:
            runs = Runs(engine)
            for each in beats:
                each.start()
            runs.wait_for(3)
            own_broker.kill()
            runs.wait_for(TICKS // 3)
            own_broker.start()
            killed, other = which(beats, runs.wait_for(3))
            killed.kill()
            runs.wait_for(3, by=other)
            assert other.stop() == 0
            with Client(configured.broker) as client:
                check(runs, client)
    finally:
        for each in beats:
            each.kill()
