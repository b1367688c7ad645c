"""Worker, reviewer and broker are killed among tracked messages: the ledger adds up by id, and names what was taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from ackline.dlq.contracts import Contracts
from ackline.dlq.desk import Desk
from ackline.dlq.selection import Selection
from ackline.infra import database
from ackline.infra.database import reading
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from ackline.infra.tables import DeadLetterState, DeliveryState, accepted, dead_letters, deliveries
from ackline.producer import Publisher, Receipt
from tests.amqp import Client
from tests.review import ADA
from tests.roles import role, run
from tests.tracked import FOLDER, Task, Tracked
from tests.waiting import until

MESSAGES = 2_000
#: They are sent slice by slice, and somebody is killed when some of a slice is done. A kill that came when all of it
#: was done shows nothing and does not count; the next slice is for another one.
SLICE, MOST_SLICES = 300, 30
#: Of a hundred messages so many are rejected until they are repaired, or for ever, or are handled at the second try.
REPAIRED, BROKEN, RETRIED = 2, 2, 3
DISCARDED = 10
CONSUMER = "tracked"

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def task(number: int) -> tuple[Task, str]:
    """What the message of that number asks for, and the file that repairs it."""
    place = number % 100
    if place < REPAIRED + BROKEN:
        return "fail until repaired", "repaired" if place < REPAIRED else "never"
    return ("retry once" if place < REPAIRED + BROKEN + RETRIED else "succeed"), ""


def test_the_ledger_adds_up_by_id_after_kills_and_lists_what_somebody_took_away(
    own_broker: Broker, own_broker_settings: Settings, tmp_path: Path, say: Callable[[str], None]
) -> None:
    settings = own_broker_settings.model_copy(update={"app": ("tests.tracked",)})
    database.upgrade(settings.database)
    engine = database.connect(settings.database)
    confirms: list[Future[Receipt]] = []

    def send(publisher: Publisher, count: int) -> None:
        for number in range(len(confirms), len(confirms) + count):
            what, file = task(number)
            confirms.append(publisher.submit(Tracked(task=what, file=file), timeout=300))

    killed: list[str] = []
    with (
        role(settings, "reviewer") as reviewer,
        role(settings, "worker", **{FOLDER: str(tmp_path)}) as worker,
        Publisher.connect(settings, timeout=60) as publisher,
    ):

        def tried() -> int:
            return _count(engine, deliveries.c.state.in_((DeliveryState.HANDLED, DeliveryState.IN_REVIEW)))

        def recorded() -> int:
            return _count(engine, accepted.c.type == "test.tracked")

        victims: list[tuple[str, Callable[[], int], Callable[[], None], Callable[[], None]]] = [
            ("worker", tried, worker.kill, worker.start),
            ("reviewer", recorded, reviewer.kill, reviewer.start),
            ("broker", tried, own_broker.kill, own_broker.start),
        ]
        for name, done, kill, start in victims:
            for _ in range(MOST_SLICES):
                before = done()
                send(publisher, SLICE)
                until(lambda: done() > before, deadline=200, what=f"some of the slice, for the {name}")  # noqa: B023
                kill()
                some = done()
                start()
                if some < len(confirms):
                    killed.append(f"the {name} at {some:,} of {len(confirms):,}")
                    break
            else:
                pytest.fail(f"the {name} was never killed in the middle; nothing was shown")
        send(publisher, max(0, MESSAGES - len(confirms)))
        ids = {confirm.result(300).message_id for confirm in confirms}
        kinds = [task(number) for number in range(len(confirms))]
        broken = kinds.count(("fail until repaired", "never"))
        repaired = kinds.count(("fail until repaired", "repaired"))
        until(lambda: _count(engine, dead_letters.c.id > 0) == broken + repaired, deadline=300, what="all dead letters")
        _repair_and_discard(engine, settings, tmp_path)

        def balanced() -> dict[str, int] | None:
            found = _balance(settings)
            [account] = found["accounts"]
            is_over = account["handled"] + account["in_review"] + account["discarded"] == len(ids)
            return dict(account) if found["adds_up"] and is_over else None

        account = until(balanced, deadline=300, what="a ledger that adds up")
        assert account == {
            "consumer": CONSUMER,
            "accepted": len(ids),
            "handled": len(ids) - broken,
            "in_review": broken - DISCARDED,
            "discarded": DISCARDED,
            **dict.fromkeys(("waiting", "retrying", "redriving", "missing", "unclear"), 0),
        }
        with reading(engine) as connection:
            assert set(connection.scalars(select(accepted.c.message_id))) == ids
        assert worker.stop() == 0
        lost = publisher.publish(Tracked(), timeout=60).message_id
        until(lambda: _count(engine, accepted.c.message_id == lost) == 1, what="the record of it")
    with Client(settings.broker) as client:
        assert client.take(CONSUMER) is not None
    found = _balance(settings)
    assert (found["missing"], [candidate["message_id"] for candidate in found["candidates"]]) == (1, [lost])
    engine.dispose()
    say(f"killed {', '.join(killed)}; {len(ids):,} accounted for by id, {broken} broken, {repaired} redriven, 1 taken")


def _repair_and_discard(engine: Engine, settings: Settings, folder: Path) -> None:
    """Send back all that is repaired now, and discard some of the others."""
    desk = Desk(engine, settings, Contracts.of(settings))
    (folder / "repaired").touch()
    rows = desk.letters.page(ADA, Selection(), limit=1000).items
    payloads = {row.id: json.loads(desk.letters.payload(ADA, row.id)) for row in rows}
    fixed = [row_id for row_id, payload in payloads.items() if payload["file"] == "repaired"]
    broken = [row_id for row_id, payload in payloads.items() if payload["file"] == "never"]
    assert len(desk.redrives.retry(ADA, fixed).items) == len(fixed)
    chosen = Selection(ids=tuple(broken[:DISCARDED]))
    assert desk.letters.discard(ADA, chosen, "test orders", expect=DISCARDED).count == DISCARDED
    until(lambda: _count(engine, dead_letters.c.state == DeadLetterState.HANDLED) == len(fixed), what="the redrive")


def _balance(settings: Settings) -> dict[str, Any]:
    done = run(settings, "ledger", "--json", "--wait", "60")
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["adds_up"] else 3 if found["unsure"] else 1)
    return found


def _count(engine: Engine, condition: Any) -> int:
    with reading(engine) as connection:
        return int(connection.scalar(select(func.count()).where(condition)) or 0)
