"""Workers are told to stop in the middle of their work, again and again: nothing is handled twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from ackline.producer import Publisher, Receipt
from tests import tallied
from tests.amqp import Client
from tests.roles import RoleProcess
from tests.tallied import ASYNC, CONSUMERS, PLAIN, Tallied
from tests.waiting import until

#: How often; of two workers one after the other, as in a rolling restart.
STOPS = 20 if os.environ.get("ACKLINE_TEST_LONG") else 4
#: Messages for each stop, which comes when a quarter of them is handled.
SLICE = 600
#: Seconds that a handler would get to finish: more than it needs on any machine.
GRACE = 60.0

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


def test_a_sigterm_costs_no_attempt_and_nothing_that_has_finished_is_delivered_again(
    ackline_settings: Settings, broker: Broker, tmp_path: Path, say: Callable[[str], None]
) -> None:
    settings = ackline_settings.model_copy(update={"app": (tallied.APP,), "grace_seconds": GRACE})
    command = ("worker", "--concurrency", "2", "--processes")
    workers = [RoleProcess(settings, *command, str(count), **{tallied.FOLDER: str(tmp_path)}) for count in (1, 2)]
    confirms: list[Future[Receipt]] = []
    in_the_middle = 0
    try:
        for worker in workers:
            worker.start()
        with Publisher.connect(settings, timeout=60) as publisher, Client(settings.broker) as client:
            for stop in range(STOPS):
                before = len(confirms)
                confirms += [publisher.submit(Tallied(number=before + each), timeout=120) for each in range(SLICE)]
                until(lambda: _least(tmp_path) > before + SLICE // 4, deadline=300, what="some of the slice")  # noqa: B023
                worker = workers[stop % len(workers)]
                in_the_middle += _least(tmp_path) < len(confirms)
                assert worker.stop() == 0
                worker.start()
            assert all(confirm.exception() is None for confirm in confirms)
            everything = tallied.expected(len(confirms))
            for consumer, numbers in everything.items():
                until(
                    lambda: tallied.handled(tmp_path, consumer).keys() == numbers,  # noqa: B023
                    deadline=300,
                    what=f"every message handled by {consumer}",
                )
            assert [worker.stop() for worker in workers] == [0] * len(workers)
            left = [client.ready(queue) for queue in CONSUMERS]
    finally:
        for worker in workers:
            worker.kill()

    highest = tallied.highest_count(tmp_path)
    tallies = [tallied.handled(tmp_path, consumer) for consumer in CONSUMERS]
    repeated = [number for times in tallies for number in times if times[number] > 1]
    say(
        f"{len(confirms)} messages, {STOPS} SIGTERMs, {in_the_middle} of them in the middle of a slice: "
        f"{len(repeated)} handled again; highest x-delivery-count {highest}"
    )
    assert in_the_middle, "the signals came after the work; nothing was shown"
    # Before 4.0 a nack counts as a delivery, and a queue that is far behind can lose the last acks of a channel that
    # is closed, which no reply tells (see `LINGER` in `ackline.consumers.subscription`).
    if not broker.description.startswith("RabbitMQ 3."):
        assert repeated == []
        assert highest == 0
        assert left == [0] * len(CONSUMERS)


def _least(folder: Path) -> int:
    return min(len(tallied.handled(folder, consumer)) for consumer in (PLAIN, ASYNC))
