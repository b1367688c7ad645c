"""The broker is stopped in the middle of everything, and started again."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from ackline.infra import database, tables
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from ackline.producer import Publisher, PublishError, PublishTimeout, Receipt
from tests import counting
from tests.counting import CONSUMERS, FOLDER, Counted
from tests.roles import role
from tests.waiting import until

BEFORE, WHILE_IT_STOPS, WHILE_IT_IS_AWAY = range(5_000), range(5_000, 7_500), range(7_500, 10_000)
#: Published when the broker is back: all of these are confirmed.
AFTERWARDS = range(10_000, 11_000)
#: Every so many messages one fails for good, so that the reviewer has work as well.
FAILING = 10
#: Seconds that the broker is away at least.
AWAY = 20.0 if os.environ.get("ACKLINE_TEST_LONG") else 6.0

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def test_every_role_comes_back_and_nothing_that_was_confirmed_is_missing(
    own_broker: Broker, own_broker_settings: Settings, tmp_path: Path, say: Callable[[str], None]
) -> None:
    settings = own_broker_settings.model_copy(update={"app": ("tests.counting",)})
    with (
        role(settings, "reviewer") as reviewer,
        role(settings, "worker", **{FOLDER: str(tmp_path)}) as worker,
        role(settings, "gateway", "--port", "0") as gateway,
        Publisher.connect(settings, timeout=60) as publisher,
    ):
        pids = [one.pid for one in (reviewer, worker, gateway)]
        confirms: dict[int, Future[Receipt]] = {}

        def submit(numbers: range, timeout: float) -> None:
            for number in numbers:
                with contextlib.suppress(PublishTimeout):  # too many wait for their confirms, for too long: not sent
                    message = Counted(number=number, fails=number % FAILING == 0)
                    confirms[number] = publisher.submit(message, timeout=timeout)

        submit(BEFORE, timeout=200)
        assert [error for confirm in confirms.values() if (error := confirm.exception()) is not None] == []
        until(lambda: counting.lines(tmp_path, "counted") > 0, what="the work to be under way")
        away = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            outage = pool.submit(_outage, own_broker, away, confirms)
            submit(WHILE_IT_STOPS, timeout=5)
            until(lambda: away.is_set() or outage.done(), what="the broker to be away")
            submit(WHILE_IT_IS_AWAY, timeout=5)
            outage.result()
        after = {number: publisher.submit(Counted(number=number), timeout=200) for number in AFTERWARDS}
        assert [error for confirm in after.values() if (error := confirm.exception()) is not None] == []
        # Each one either confirms or raises an error that says what is known.
        outcome = {number: confirm.exception(200) for number, confirm in confirms.items()}
        confirmed = {number for number, error in outcome.items() if error is None}
        assert all(isinstance(error, PublishError) for error in outcome.values() if error is not None)
        assert confirmed < confirms.keys(), "nothing was published while the broker was away; nothing was shown"
        confirmed |= after.keys()

        engine = database.connect(settings.database)
        try:
            for name in CONSUMERS:
                until(
                    lambda name=name: confirmed <= counting.handled(tmp_path, name).keys() | _in_review(engine, name),  # type: ignore[misc]
                    deadline=200,
                    what=f"everything confirmed handled or in review by {name}",
                )
        finally:
            engine.dispose()
        assert [one.pid for one in (reviewer, worker, gateway) if one.alive] == pids, "a role did not survive"
    total = AFTERWARDS.stop
    raised = total - len(confirmed)
    say(f"away {AWAY:g} s: {len(confirmed)} of {total} confirmed, {raised} raised, none missing")


def _outage(broker: Broker, away: threading.Event, confirms: Mapping[int, Future[Receipt]]) -> None:
    """Keep *broker* away for `AWAY` seconds, or longer, until one of *confirms* has failed."""
    broker.stop()
    away.set()
    time.sleep(AWAY)
    until(
        lambda: any(found.done() and found.exception() for found in tuple(confirms.values())),
        what="a message that could not be published",
    )
    broker.start()


def _in_review(engine: Engine, name: str) -> set[int]:
    rows = tables.dead_letters
    with engine.connect() as connection:
        payloads = connection.scalars(select(rows.c.payload).where(rows.c.consumer == name))
        return {Counted.model_validate_json(payload).number for payload in payloads}
