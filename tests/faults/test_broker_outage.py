"""The broker is stopped in the middle of everything, and started again."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from ackline.infra import database, tables
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from ackline.producer import Publisher, PublishError, PublishTimeout
from tests import counting
from tests.counting import CONSUMERS, FOLDER, Counted
from tests.roles import role
from tests.waiting import until

MESSAGES = 10_000
#: Published when the broker is back: all of these are confirmed.
AFTERWARDS = range(MESSAGES, MESSAGES + 1_000)
#: Every so many messages one fails for good, so that the reviewer has work as well.
FAILING = 10
#: Seconds that the broker is away.
AWAY = 20.0 if os.environ.get("ACKLINE_TEST_LONG") else 6.0

pytestmark = pytest.mark.faults


def test_every_role_comes_back_and_nothing_that_was_confirmed_is_missing(
    own_broker: Broker, own_broker_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = own_broker_settings.model_copy(update={"app": ("tests.counting",)})
    with (
        role(settings, "reviewer") as reviewer,
        role(settings, "worker", **{FOLDER: str(tmp_path)}) as worker,
        role(settings, "gateway", "--port", "0") as gateway,
        Publisher.connect(settings) as publisher,
    ):
        pids = [one.pid for one in (reviewer, worker, gateway)]
        confirms = {}
        outage = threading.Thread(target=_outage, args=(own_broker,))
        for number in range(MESSAGES):
            if number == MESSAGES // 2:
                until(lambda: counting.lines(tmp_path, "counted") > MESSAGES // 10, what="the work to be under way")
                outage.start()
            if number == MESSAGES * 3 // 4:
                until(lambda: publisher.problem is not None, what="the outage to be noticed")
            with contextlib.suppress(PublishTimeout):  # too many wait for their confirms, for too long: not sent
                confirms[number] = publisher.submit(Counted(number=number, fails=number % FAILING == 0), timeout=5)
        outage.join()
        after = {number: publisher.submit(Counted(number=number), timeout=60) for number in AFTERWARDS}
        assert [error for confirm in after.values() if (error := confirm.exception(65))] == []
        # Each one either confirms or raises an error that says what is known.
        outcome = {number: confirm.exception(30) for number, confirm in confirms.items()}
        confirmed = {number for number, error in outcome.items() if error is None}
        assert all(isinstance(error, PublishError) for error in outcome.values() if error is not None)
        assert MESSAGES // 2 <= len(confirmed) < MESSAGES, "the outage was not in the middle; nothing was shown"
        confirmed |= after.keys()

        engine = database.connect(settings.database)
        try:
            for name in CONSUMERS:
                until(
                    lambda name=name: confirmed <= counting.handled(tmp_path, name).keys() | _in_review(engine, name),  # type: ignore[misc]
                    deadline=90,
                    what=f"everything confirmed handled or in review by {name}",
                )
        finally:
            engine.dispose()
        assert [one.pid for one in (reviewer, worker, gateway) if one.alive] == pids, "a role did not survive"
    total = MESSAGES + len(AFTERWARDS)
    raised = total - len(confirmed)
    with capsys.disabled():
        print(f"\n  away {AWAY:g} s: {len(confirmed)} of {total} confirmed, {raised} raised, none missing")


def _outage(broker: Broker) -> None:
    broker.stop()
    stopped = time.monotonic()
    until(lambda: time.monotonic() - stopped > AWAY, deadline=AWAY + 5, what="the outage to be over")
    broker.start()


def _in_review(engine: Engine, name: str) -> set[int]:
    rows = tables.dead_letters
    with engine.connect() as connection:
        payloads = connection.scalars(select(rows.c.payload).where(rows.c.consumer == name))
        return {Counted.model_validate_json(payload).number for payload in payloads}
