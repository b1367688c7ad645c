"""An ordered consumer whose handler fails at random, on three workers of which one is killed and comes back."""

from __future__ import annotations

import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import Engine, func, select

from ackline.infra import database
from ackline.infra.names import DEAD, UNROUTED
from ackline.infra.settings import Settings
from ackline.producer import Publisher
from tests import ordered_rows
from tests.amqp import Client
from tests.ordered_rows import DATABASE, SHARDS, Step, steps
from tests.roles import role
from tests.waiting import until

LONG = bool(os.environ.get("ACKLINE_TEST_LONG"))
KEYS, EACH = (100, 200) if LONG else (20, 50)
MESSAGES = KEYS * EACH
WORKERS = 3

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800 if LONG else 900)]


@pytest.fixture
def engine(postgresql_url: str) -> Iterator[Engine]:
    engine = database.connect(postgresql_url)
    ordered_rows.service.create_all(engine)
    yield engine
    engine.dispose()


def test_each_key_is_in_order_and_every_message_is_handled_once(
    ackline_settings: Settings, engine: Engine, postgresql_url: str, say: Callable[[str], None]
) -> None:
    settings = ackline_settings.model_copy(update={"app": ("tests.ordered_rows",)})
    with ExitStack() as stack:
        workers = [
            stack.enter_context(role(settings, "worker", "--concurrency", "8", **{DATABASE: postgresql_url}))
            for _ in range(WORKERS)
        ]
        publisher = stack.enter_context(Publisher.connect(settings, timeout=60))
        accounts = [f"account-{number}" for number in range(KEYS)]
        waiting = {account: iter(range(1, EACH + 1)) for account in accounts}
        order = random.sample(accounts * EACH, MESSAGES)
        confirms = [publisher.submit(Step(account=each, number=next(waiting[each])), timeout=120) for each in order]
        until(lambda: _count(engine) > MESSAGES // 3, deadline=600, what="a third of the messages to be handled")
        workers[0].kill()
        until(lambda: _count(engine) > MESSAGES * 2 // 3, deadline=600, what="two thirds to be handled")
        workers[0].start()
        assert all(confirm.exception() is None for confirm in confirms)
        until(lambda: _count(engine) >= MESSAGES, deadline=900, what="all of them to be handled")
        assert [worker.stop() for worker in workers] == [0] * WORKERS

    found: dict[str, list[int]] = defaultdict(list)
    attempts: Counter[int] = Counter()
    by_worker: Counter[int] = Counter()
    with database.reading(engine) as connection:
        for row in connection.execute(select(steps).order_by(steps.c.id)):
            found[row.account].append(row.number)
            attempts[row.attempt] += 1
            by_worker[row.worker] += 1
    say(
        f"{MESSAGES} messages of {KEYS} keys in order, each handled once; {MESSAGES - attempts[1]} after retries in "
        f"place; by {len(by_worker)} worker processes: {', '.join(map(str, by_worker.values()))}"
    )
    assert found == {account: list(range(1, EACH + 1)) for account in accounts}
    with Client(settings.broker) as client:
        assert {client.ready(f"account-book.{shard}") for shard in range(1, SHARDS + 1)} == {0}
        assert [client.take(queue) for queue in (DEAD, UNROUTED)] == [None, None]


def _count(engine: Engine) -> int:
    with database.reading(engine) as connection:
        return connection.scalar(select(func.count()).select_from(steps)) or 0
