"""Workers are killed and cut off in the middle of their work: with an inbox each effect is there once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from ackline.infra import database
from ackline.infra.names import DEAD, UNROUTED
from ackline.infra.settings import Settings
from ackline.infra.topology import ConsumerQueue, declare
from ackline.producer import Publisher, Receipt
from tests import inboxed
from tests.amqp import Client
from tests.broker import Vhost
from tests.connections import close, connections
from tests.depths import depths
from tests.inboxed import BARE, CLAIM, INBOX, Paid, ReceiptIssued, payments
from tests.roles import RoleProcess, role
from tests.waiting import until

LONG = bool(os.environ.get("ACKLINE_TEST_LONG"))
MESSAGE_COUNT = 20_000 if LONG else 2_000
#: They are sent slice by slice, and when some of a slice is handled comes a fault.
FAULTS = 20 if LONG else 5
SLICE = MESSAGE_COUNT // FAULTS
PREFETCH = 50
RECEIPTS = "receipts"

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800 if LONG else 900)]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = database.connect(database_url)
    inboxed.service.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def settings(ackline_settings: Settings) -> Settings:
    """Of the application, whose receipts are kept in a queue for the test to count."""
    declare(ackline_settings.broker, [ConsumerQueue(RECEIPTS, ("test.inboxed.receipt",))])
    return ackline_settings.model_copy(update={"app": ("tests.inboxed",)})


def test_among_kills_and_lost_connections_each_effect_is_there_once_with_an_inbox(
    settings: Settings, vhost: Vhost, engine: Engine, database_url: str, say: Callable[[str], None]
) -> None:
    confirms: list[Future[Receipt]] = []
    faults: Counter[str] = Counter()
    arguments = ("worker", "--consumers", f"{INBOX},{BARE}", "--prefetch", str(PREFETCH))
    with (
        role(settings, *arguments, **{inboxed.DATABASE: database_url}) as worker,
        Publisher.connect(settings, timeout=60) as publisher,
    ):
        for fault in range(FAULTS):
            before = len(confirms)
            confirms += [publisher.submit(Paid(number=before + each), timeout=120) for each in range(SLICE)]
            until(lambda: _least(engine) > before + SLICE // 4, deadline=300, what="some of the slice")  # noqa: B023
            faults[_strike(fault, worker, vhost)] += 1
        assert all(confirm.exception() is None for confirm in confirms)
        until(lambda: _least(engine) == len(confirms), deadline=600, what="every message handled")
        empty = dict.fromkeys((INBOX, BARE, DEAD, UNROUTED), 0)
        until(lambda: depths(settings, *empty) == empty, deadline=300, what="empty queues")
        assert worker.stop() == 0

    rows = {consumer: _numbers(engine, consumer) for consumer in (INBOX, BARE)}
    receipts = _receipts(settings)
    duplicates = {consumer: sum(numbers.values()) - len(confirms) for consumer, numbers in rows.items()}
    again = sum(receipts[INBOX].values()) - len(receipts[INBOX])
    say(
        f"{engine.dialect.name}: {len(confirms)} messages, {', '.join(f'{n} {name}' for name, n in faults.items())}; "
        f"rows with the inbox: {sum(rows[INBOX].values())}; without: {sum(rows[BARE].values())}, "
        f"{duplicates[BARE]} of them duplicates; receipts published again, under the same id: {again}"
    )
    everything = set(range(len(confirms)))
    assert set(rows[INBOX]) == set(rows[BARE]) == everything
    assert duplicates[INBOX] == 0
    assert len(receipts[INBOX]) == len(everything), "what was enlisted with an effect is published, too"


@pytest.mark.parametrize("consumer", [INBOX, CLAIM])
def test_a_worker_that_dies_between_the_commit_and_what_follows_from_it_publishes_it_later(
    settings: Settings, engine: Engine, database_url: str, consumer: str, tmp_path: Path
) -> None:
    fatal = tmp_path / "died"
    environment = {inboxed.DATABASE: database_url, inboxed.DIES: str(fatal)}
    with (
        role(settings, "worker", "--consumers", consumer, **environment) as worker,
        Publisher.connect(settings, timeout=60) as publisher,
    ):
        publisher.publish(Paid(number=7), timeout=60)
        until(fatal.exists, what="the worker to die")
        with Client(settings.broker) as client:
            until(lambda: client.ready(RECEIPTS), deadline=200, what="the receipt")
        until(lambda: depths(settings, consumer) == {consumer: 0}, what="the message to be acked")
        assert worker.stop() == 0
    assert _numbers(engine, consumer) == {7: 1}, "the handler was not run again"
    assert list(_receipts(settings)[consumer].values()) == [1]


def _strike(number: int, worker: RoleProcess, vhost: Vhost) -> str:
    """Kill the worker, or close its connections; returns what was done."""
    if number % 2:
        # The broker lists a connection some seconds after it was opened.
        names = until(lambda: connections(vhost, "worker"), what="the worker's connections to be listed")
        close(vhost, names, missing_ok=True)
        return "times connections closed"
    worker.kill()
    worker.start()
    return "kills"


def _least(engine: Engine) -> int:
    """How many messages the slower of the consumers has handled, each counted once."""
    of_each = (
        select(func.count(payments.c.number.distinct())).where(payments.c.consumer == consumer)
        for consumer in (INBOX, BARE)
    )
    with database.reading(engine) as connection:
        return min(connection.scalar(counted) or 0 for counted in of_each)


def _numbers(engine: Engine, consumer: str) -> Counter[int]:
    """How many rows each message has."""
    with database.reading(engine) as connection:
        return Counter(connection.scalars(select(payments.c.number).where(payments.c.consumer == consumer)))


def _receipts(settings: Settings) -> dict[str, Counter[str]]:
    """How often each receipt was published, by its id, for each consumer; takes them."""
    found: dict[str, Counter[str]] = {consumer: Counter() for consumer in (INBOX, CLAIM, BARE)}
    with Client(settings.broker) as client:
        while (taken := client.take(RECEIPTS)) is not None:
            issued = ReceiptIssued.model_validate_json(taken.body)
            found[issued.consumer][str(taken.properties.message_id)] += 1
    return found
