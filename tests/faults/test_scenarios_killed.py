"""Workers are killed in the middle of what handlers do that come with Ackline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
from sqlalchemy import Engine, func, select

from ackline.consumers import registered
from ackline.infra import database
from ackline.infra.names import DEAD
from ackline.infra.ports import LOOPBACK
from ackline.infra.settings import Settings
from ackline.infra.topology import declare
from ackline.producer import Publisher
from tests import scenario_app
from tests.amqp import Client
from tests.depths import depths
from tests.paged import items, paged, place
from tests.receiver import Answering, Received, Receiver
from tests.roles import role
from tests.scenario_app import (
    APP,
    DATABASE,
    DIES,
    SERVICE,
    SOURCE,
    CallService,
    Reading,
    SyncSource,
    products,
    readings,
)
from tests.waiting import until

#: Seconds that anything may take to happen.
PATIENCE = 120.0

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = database.connect(database_url)
    scenario_app.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def settings(ackline_settings: Settings) -> Settings:
    return ackline_settings.model_copy(update={"app": (APP,)})


class Held:
    """Answers, of which some are held back until the test lets them go."""

    def __init__(self, answers: Callable[[Received], Answering], holds: Callable[[Received], bool]) -> None:
        self._answers = answers
        self._holds = holds
        self._let_go = threading.Event()
        #: Requests that are held.
        self.held: SimpleQueue[Received] = SimpleQueue()

    def __call__(self, request: Received) -> Answering:
        if self._holds(request):
            self.held.put(request)
            self._let_go.wait(PATIENCE)
        return self._answers(request)

    def let_go(self) -> None:
        self._let_go.set()


def test_a_sync_whose_worker_is_killed_goes_on_from_the_last_page_and_stores_each_once(
    settings: Settings, engine: Engine, database_url: str, tmp_path: Path, client: Client, say: Callable[[str], None]
) -> None:
    count, killed_at = 95, {20, 60, 80}
    held_once = set(killed_at)

    def holds(request: Received) -> bool:
        first, _ = place(request)
        if first in held_once:
            held_once.discard(first)
            return True
        return False

    declare(settings.broker, [registered()["sync-source"].queue])
    answers = Held(paged(count), holds)
    with Receiver(answers) as api, Publisher.connect(settings, timeout=PATIENCE) as publisher:
        variables = {
            DATABASE: database_url,
            SOURCE: f"http://{LOOPBACK}:{api.port}/items",
            DIES: str(tmp_path / "died"),  # with the page at 50 written and not committed
        }
        with role(settings, "worker", "--consumers", "sync-source", **variables) as worker:
            publisher.publish(SyncSource(), timeout=PATIENCE)
            for _ in killed_at:
                answers.held.get(timeout=PATIENCE)
                worker.kill()
                worker.start()
            until(lambda: _ids(engine) == sorted(item["id"] for item in items(count)), what="all items, each once")
            until(lambda: _finished(engine), what="the end of the sync")
            answers.let_go()
    asked = [place(request)[0] for request in api.received]
    assert asked == [0, 10, 20, 20, 30, 40, 50, 50, 60, 60, 70, 80, 80, 90]
    assert (tmp_path / "died").exists()
    assert client.ready(DEAD) == 0
    say(f"{count} items in pages of 10, the worker killed 4 times: each is there once, {len(asked)} requests")


def _ids(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.execute(select(products.c.id).order_by(products.c.id)).scalars())


def _finished(engine: Engine) -> bool:
    with engine.connect() as connection:
        return bool(connection.exec_driver_sql("SELECT is_finished FROM ackline_sync").scalar_one())


def test_a_call_whose_worker_is_killed_is_made_again_under_the_same_key(settings: Settings, client: Client) -> None:
    answers = Held(lambda request: Answering(201), lambda request: len(service.received) == 1)
    declare(settings.broker, [registered()["call-service"].queue])
    with Receiver(answers) as service, Publisher.connect(settings, timeout=PATIENCE) as publisher:
        variables = {SERVICE: f"http://{LOOPBACK}:{service.port}", DATABASE: settings.database}
        with role(settings, "worker", "--consumers", "call-service", **variables) as worker:
            message_id = publisher.publish(CallService(path="/pay"), timeout=PATIENCE).message_id
            answers.held.get(timeout=PATIENCE)
            worker.kill()  # the service may have done it by now, and nobody here knows
            worker.start()
            until(lambda: len(service.received) == 2, what="the second call")
            answers.let_go()
            assert worker.stop() == 0  # what runs is finished
    assert [request.headers["Idempotency-Key"] for request in service.received] == [message_id] * 2
    assert (client.ready("call-service"), client.ready(DEAD)) == (0, 0)


def test_rows_of_a_burst_are_there_once_though_the_worker_is_killed(
    settings: Settings, engine: Engine, database_url: str, client: Client
) -> None:
    count = 3000
    declare(settings.broker, [registered()["readings"].queue])
    with Publisher.connect(settings, timeout=PATIENCE) as publisher:
        for confirm in [
            publisher.submit(Reading(meter="m", number=number), timeout=PATIENCE) for number in range(count)
        ]:
            confirm.result(PATIENCE)
    until(lambda: depths(settings, "readings") == {"readings": count}, what="RabbitMQ to count them")
    with role(settings, "worker", "--consumers", "readings", **{DATABASE: database_url}) as worker:
        for reached in (1, 1000, 2000):
            until(lambda reached=reached: _counts(engine)[0] >= reached, what=f"{reached} rows")  # type: ignore[misc]
            worker.kill()
            worker.start()
        until(lambda: _counts(engine)[1] == count, what="all rows")
        # What was written when the worker was killed comes once more.
        until(lambda: depths(settings, "readings") == {"readings": 0}, what="every message to be acked")
        assert worker.stop() == 0
    assert _counts(engine) == (count, count)
    assert (client.ready("readings"), client.ready(DEAD)) == (0, 0)


def _counts(engine: Engine) -> tuple[int, int]:
    """Rows, and different ones."""
    with engine.connect() as connection:
        rows, different = connection.execute(select(func.count(), func.count(func.distinct(readings.c.number)))).one()
        return rows, different
