"""Redrives as people plan and run them, on SQLite and PostgreSQL; the broker's and the worker's part by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine, func, select, update

from ackline.dlq import planning, redrive
from ackline.dlq.approvals import Approvals
from ackline.dlq.contracts import Contracts
from ackline.dlq.edits import Edits
from ackline.dlq.errors import Forbidden, Invalid, NeedsApproval, NoSuchDeadLetter, NotFound, Refused
from ackline.dlq.planning import Planner, abandoned
from ackline.dlq.queues import Queues
from ackline.dlq.redrive import Claim
from ackline.dlq.redrives import Redrive, Redrives
from ackline.dlq.rights import Actor, Role
from ackline.dlq.runner import Runner
from ackline.dlq.selection import Selection
from ackline.dlq.store import Store
from ackline.dlq.transition import transitions
from ackline.infra import database
from ackline.infra.database import reading, writing
from ackline.infra.names import RETURN
from ackline.infra.settings import Settings
from ackline.infra.tables import (
    DeadLetterState,
    DeliveryState,
    ItemState,
    RedriveState,
    actions,
    dead_letters,
    deliveries,
    edits,
    fingerprint_counts,
    redrive_items,
    redrives,
)
from ackline.infra.wire import HISTORY, now, trail, uuid7
from ackline.producer import message
from tests.letters import entry, handled, letter, read, worker_properties

ADA = Actor("ada", Role.OPERATOR)
BOB = Actor("bob", Role.OPERATOR)
EVERYTHING = Selection()


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings with a database, and without a broker."""
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path / 'ackline.db'}" if sqlite else request.getfixturevalue("postgresql_url")
    return Settings(database_url=url, data_dir=tmp_path)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    database.upgrade(settings.database)
    engine = database.connect(settings.database)
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: Engine) -> Store:
    return Store(engine)


@pytest.fixture
def desk(engine: Engine, settings: Settings) -> Redrives:
    return Redrives(engine, settings, Contracts({}), Approvals(engine, settings))


class Depths(Queues):
    """Queues as deep as a test says."""

    def __init__(self, **depths: int) -> None:
        super().__init__(None)
        self.depths = depths

    def depth(self, consumer: str) -> int | None:
        return self.depths.get(consumer)


class Reviewing:
    """The reviewer, step by step."""

    def __init__(self, store: Store, engine: Engine) -> None:
        self.store = store
        self.engine = engine
        self.queues = Depths(billing=0, shipping=0)
        self.runner = Runner(engine, self.queues, lambda: Contracts({}))

    def send(self, limit: int = 500) -> list[Claim]:
        """Publish what is due, and have the broker confirm it."""
        claims = self.runner.claims(limit, 1_000_000, 30)
        with writing(self.engine) as connection:
            redrive.confirmed(connection, [claim.item_id for claim in claims])
        return claims

    def succeed(self, claims: Sequence[Claim]) -> None:
        self.store.outcomes([handled(claim.item_id, claim.consumer) for claim in claims])

    def fail(self, claims: Sequence[Claim], **headers: Any) -> None:
        failed = []
        for claim in claims:
            assert claim.properties.message_id is not None
            failed.append(letter(claim.properties.message_id.decode(), claim.payload, redrive=claim.item_id, **headers))
        assert self.store.ingest(failed) == []

    def work(self) -> int:
        """Send and handle until there is nothing left; how many messages that were."""
        count = 0
        while claims := self.send():
            self.succeed(claims)
            count += len(claims)
        assert self.send() == []  # ends what is over
        return count


@pytest.fixture
def reviewing(store: Store, engine: Engine) -> Reviewing:
    return Reviewing(store, engine)


def states(engine: Engine) -> dict[str, int]:
    """How many dead letters are in each state, which the counts of their groups must say too."""
    with reading(engine) as connection:
        query = select(dead_letters.c.state, func.count().label("letters")).group_by(dead_letters.c.state)
        counted = {row.state: row.letters for row in connection.execute(query)}
        kept = select(fingerprint_counts.c.state, func.sum(fingerprint_counts.c["count"])).group_by(
            fingerprint_counts.c.state
        )
        assert {state: count for state, count in connection.execute(kept) if count} == counted
    return counted


def ids(engine: Engine) -> list[int]:
    with reading(engine) as connection:
        return list(connection.scalars(select(dead_letters.c.id).order_by(dead_letters.c.id)))


def letters(store: Store, count: int, **headers: Any) -> None:
    assert store.ingest([letter(f"m-{number}", **headers) for number in range(count)]) == []


def acted(engine: Engine) -> list[tuple[str, str, int]]:
    with reading(engine) as connection:
        query = select(actions.c.actor, actions.c.action, actions.c["count"]).order_by(actions.c.id)
        return [tuple(row) for row in connection.execute(query)]


def what(found: Redrive) -> dict[str, int]:
    """How many items are in which state."""
    return {state: count for state, count in found.items.items() if count}


# --- sending back at once -----------------------------------------------------------------------------------------


def test_a_retry_is_sent_at_once_and_ends_with_a_statement(
    desk: Redrives, store: Store, engine: Engine, reviewing: Reviewing
) -> None:
    letters(store, 3)
    asked = desk.retry(ADA, ids(engine)[:2], "the bug is fixed")
    assert (len(asked.items), asked.refused) == (2, {})
    assert states(engine) == {"in review": 1, "redriving": 2}
    assert reviewing.work() == 2
    assert states(engine) == {"in review": 1, "handled": 2}
    found = desk.get(ADA, asked.redrive_id)
    assert (found.state, found.reason, found.plan, what(found)) == ("done", "the bug is fixed", None, {"handled": 2})
    said = desk.statement(ADA, asked.redrive_id)
    assert (said.adds_up, said.planned, said.open, said.unanswered, said.odd) == (True, 2, 0, [], {})
    assert acted(engine) == [("ada", "redrive", 2), ("ackline reviewer", "handled", 2)]


def test_who_comes_second_is_told_who_has_it(desk: Redrives, store: Store, engine: Engine) -> None:
    letters(store, 2)
    one, other = ids(engine)
    asked = desk.retry(ADA, [one])
    with pytest.raises(Refused) as refused:
        desk.retry(BOB, [one])
    said = f"Dead letter {one} cannot be redriven: it is being redriven by ada (redrive {asked.redrive_id})."
    assert str(refused.value) == said
    assert desk.retry(BOB, [one, other, 999]).refused == {one: said, 999: "There is no dead letter 999."}
    with pytest.raises(NoSuchDeadLetter):
        desk.retry(BOB, [999])
    with pytest.raises(Invalid):
        desk.retry(BOB, [])


def test_of_many_who_reach_for_the_same_one_gets_it(
    desk: Redrives, store: Store, engine: Engine, reviewing: Reviewing
) -> None:
    letters(store, 5)
    planned = desk.plan(ADA, EVERYTHING, canary=False)
    desk.start(ADA, planned.id)

    def reach(name: str) -> int:
        try:
            return len(desk.retry(Actor(name, Role.OPERATOR), ids(engine)).items)
        except Refused:
            return 0

    with ThreadPoolExecutor(3) as pool:
        sent = pool.submit(reviewing.send)
        taken = sum(pool.map(reach, ["bob", "eve"]))
        claims = sent.result() + reviewing.send()
    assert len(claims) == len({claim.dead_letter_id for claim in claims}) == 5
    reviewing.succeed(claims)
    assert reviewing.send() == []
    assert states(engine) == {"handled": 5}
    found = desk.get(ADA, planned.id)
    assert found.state == "done"
    assert found.items["handled"] == 5 - taken
    assert found.items["skipped"] == taken


# --- planning -----------------------------------------------------------------------------------------------------


def test_a_plan_is_a_frozen_set_that_says_what_it_holds(desk: Redrives, store: Store, engine: Engine) -> None:
    letters(store, 4)
    store.ingest([letter(f"s-{number}", consumer="shipping") for number in range(2)])
    desk.retry(BOB, ids(engine)[:1])
    found = desk.plan(ADA, EVERYTHING, rate=2.5, reason="fixed in 2.1")
    store.ingest([letter("late")])
    assert found.state == "planned"
    assert found.plan is not None
    assert (found.plan.messages, found.plan.consumers) == (5, {"billing": 3, "shipping": 2})
    assert found.plan.types == {"order.placed": 5}
    assert found.plan.ineligible == {"it is being redriven by bob (redrive 1)": 1}
    assert found.seconds == 2.0
    assert what(found) == {"planned": 5, "ineligible": 1}
    assert states(engine) == {"in review": 6, "redriving": 1}
    (ineligible,) = desk.items(ADA, found.id, ItemState.INELIGIBLE).items
    assert ineligible.dead_letter_id == ids(engine)[0]
    assert desk.statement(ADA, found.id).adds_up
    first = desk.items(ADA, found.id, limit=4)
    assert [item.dead_letter_id for item in first.items + desk.items(ADA, found.id, after=first.next).items] == ids(
        engine
    )[:6]


def test_a_filter_without_states_is_of_what_waits_for_an_end_and_one_that_names_ids_of_all_of_them(
    desk: Redrives, store: Store, engine: Engine
) -> None:
    letters(store, 2)
    gone, _ = ids(engine)
    with writing(engine) as connection, transitions(connection) as moves:
        moves.move([gone], *_DISCARD, discarded_at=now(), discarded_by="eve", discard_reason="a test")
    assert what(desk.plan(ADA, EVERYTHING)) == {"planned": 1}
    found = desk.plan(ADA, Selection(ids=(gone,)))
    assert found.plan is not None
    assert found.plan.ineligible == {"it was discarded by eve": 1}
    with pytest.raises(Refused, match="nothing to send"):
        desk.start(ADA, found.id)


_DISCARD = (DeadLetterState.IN_REVIEW, DeadLetterState.DISCARDED)


def test_what_is_known_to_be_handled_is_left_out_unless_it_is_asked_for(
    desk: Redrives, store: Store, engine: Engine
) -> None:
    letters(store, 2)
    outcome = replace(handled(""), message_id="m-1")
    store.outcomes([outcome, replace(outcome, message_id="m-0", consumer="shipping")])
    found = desk.plan(ADA, EVERYTHING)
    assert found.plan is not None
    assert found.plan.ineligible == {"its consumer has handled this message already": 1}
    assert what(desk.plan(ADA, EVERYTHING, include_handled=True)) == {"planned": 2}


def test_what_a_newer_message_of_its_key_has_overtaken_is_left_out(
    engine: Engine, settings: Settings, store: Store
) -> None:
    contracts = Contracts({})
    contracts.__class__ = type("Ordered", (Contracts,), {"ordered": ["billing"]})
    desk = Redrives(engine, settings, contracts, Approvals(engine, settings))
    before, after = uuid7(), uuid7()
    store.ingest([letter(before), letter(uuid7()), letter("m-1"), letter(uuid7(), consumer="shipping")])
    with writing(engine) as connection:
        connection.execute(update(dead_letters).where(dead_letters.c.id != 2).values(ordering_key="A-1"))
        connection.execute(
            deliveries.insert().values(
                message_id=after,
                consumer="billing",
                type="order.placed",
                state=DeliveryState.HANDLED,
                attempts=1,
                first_at=now(),
                changed_at=now(),
                worker="host:1",
                ordering_key="A-1",
            )
        )
    found = desk.plan(ADA, EVERYTHING)
    assert found.plan is not None
    assert found.plan.ineligible == {"its consumer has handled a newer message of the same key already": 1}
    assert [item.dead_letter_id for item in desk.items(ADA, found.id, ItemState.INELIGIBLE).items] == [1]


def test_what_no_consumer_took_goes_to_the_one_that_takes_it_or_that_is_named(
    desk: Redrives, store: Store, engine: Engine, reviewing: Reviewing
) -> None:
    store.ingest([letter("m-1", consumer=""), letter("m-2", consumer=""), letter("m-2")])
    found = desk.plan(ADA, EVERYTHING)
    assert found.plan is not None
    (said,) = found.plan.ineligible
    assert said.startswith("no consumer in ACKLINE_APP takes messages of type 'order.placed'")
    found = desk.plan(ADA, EVERYTHING, consumer="billing", canary=False)
    assert found.plan is not None
    assert found.plan.ineligible == {
        "consumer 'billing' has the same message already, as dead letter 3: discard this one": 1
    }
    desk.start(ADA, found.id)
    assert reviewing.work() == 2
    with reading(engine) as connection:
        rows = select(dead_letters.c.consumer, dead_letters.c.state).order_by(dead_letters.c.id)
        assert [tuple(row) for row in connection.execute(rows)] == [
            ("billing", "handled"),
            ("", "in review"),
            ("billing", "handled"),
        ]


def test_a_redrive_to_another_consumer_leaves_the_dead_letter_with_its_own(
    desk: Redrives, store: Store, engine: Engine, reviewing: Reviewing
) -> None:
    letters(store, 2)
    desk.start(ADA, desk.plan(ADA, EVERYTHING, consumer="shipping", canary=False).id)
    claims = reviewing.send()
    assert [trail(claim.properties, RETURN, "shipping").consumer for claim in claims] == ["shipping", "shipping"]
    reviewing.fail(claims[:1], consumer="shipping")
    reviewing.succeed(claims[1:])
    assert states(engine) == {"in review": 1, "handled": 1}
    with reading(engine) as connection:
        assert connection.scalars(select(dead_letters.c.consumer)).all() == ["billing", "billing"]


def test_a_plan_whose_maker_was_killed_is_finished_by_another_as_it_was_begun(
    desk: Redrives, store: Store, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "CHUNK", 3)
    letters(store, 10)
    with writing(engine) as connection:
        options = planning.Options()
        redrive_id = planning.begin(connection, ADA, EVERYTHING, options, "", rate=None, canary=True)
    store.ingest([letter("late")])
    planner = Planner(engine, Contracts({}), Depths(billing=0))
    assert planner.step(redrive_id)
    with writing(engine) as connection:
        assert abandoned(connection) == []
        long_ago = now() - timedelta(seconds=planning.ABANDONED_SECONDS + 60)
        connection.execute(update(redrives).values(planned_at=long_ago))
        assert abandoned(connection) == [redrive_id]
    with ThreadPoolExecutor(3) as pool:  # whoever tries at once
        for _ in range(3):
            pool.submit(planner.finish, redrive_id)
    found = desk.get(ADA, redrive_id)
    assert (found.state, what(found)) == ("planned", {"planned": 10})
    assert desk.statement(ADA, redrive_id).adds_up


def test_a_consumer_whose_queue_is_gone_is_ineligible(desk: Redrives, store: Store, engine: Engine) -> None:
    letters(store, 1)
    store.ingest([letter("s-1", consumer="shipping")])
    with writing(engine) as connection:
        redrive_id = planning.begin(connection, ADA, EVERYTHING, planning.Options(), "", rate=None, canary=True)
    Planner(engine, Contracts({}), Depths(shipping=0)).finish(redrive_id)
    found = desk.get(ADA, redrive_id)
    assert found.plan is not None
    assert found.plan.ineligible == {"consumer 'billing' has no queue: start its worker, or name another consumer": 1}


# --- running ------------------------------------------------------------------------------------------------------


def test_a_canary_of_a_bug_that_is_not_fixed_stops_at_the_first(
    desk: Redrives, store: Store, engine: Engine, reviewing: Reviewing
) -> None:
    letters(store, 40)
    planned = desk.plan(ADA, EVERYTHING)
    desk.start(ADA, planned.id)
    (first,) = reviewing.send()
    assert trail(first.properties, RETURN, "billing").attempts == 1
    assert reviewing.send() == []
    assert desk.get(ADA, planned.id).why == "canary: waits for what becomes of the first message"
    reviewing.fail([first])
    assert reviewing.send() == []
    found = desk.get(ADA, planned.id)
    assert found.state == "stopped"
    assert found.why == (
        "the canary failed: 1 of the first 1 failed again, as dead letter 1 did: "
        "failed 2 of 2 attempts: ValueError: no such user"
    )
    assert states(engine) == {"in review": 40}
    assert ("ackline reviewer", "stop a redrive", 0) in acted(engine)


def test_a_canary_goes_on_as_everything_is_handled_and_a_resumed_one_begins_anew(
    desk: Redrives, store: Store, engine: Engine, reviewing: Reviewing
) -> None:
    letters(store, 200)
    planned = desk.plan(ADA, EVERYTHING)
    desk.start(ADA, planned.id)
    reviewing.succeed(reviewing.send())
    five = reviewing.send()
    assert len(five) == 5
    reviewing.fail(five[:1])
    reviewing.succeed(five[1:])
    assert reviewing.send() == []
    assert desk.get(ADA, planned.id).state == "stopped"
    desk.resume(BOB, planned.id)
    sizes = []
    while claims := reviewing.send():
        sizes.append(len(claims))
        wants = 1 if len(claims) <= 125 and sum(sizes) <= 156 else None
        assert {trail(claim.properties, RETURN, "billing").attempts for claim in claims} == {wants}
        reviewing.succeed(claims)
    assert sizes == [1, 5, 25, 125, 38]
    found = desk.get(ADA, planned.id)
    assert (found.state, what(found)) == ("done", {"handled": 199, "failed": 1})
    assert states(engine) == {"in review": 1, "handled": 199}
    assert desk.statement(ADA, planned.id).adds_up


def test_after_its_canary_it_stops_when_the_same_failure_returns_and_not_for_another(
    desk: Redrives, store: Store, engine: Engine, reviewing: Reviewing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ackline.dlq.pacing.STAGES", (1,))
    letters(store, 10)
    planned = desk.plan(ADA, EVERYTHING)
    desk.start(ADA, planned.id)
    reviewing.succeed(reviewing.send())
    other = reviewing.send(limit=2)
    reviewing.fail(other, **{HISTORY: json.dumps([entry(error="KeyError", message="x")])})
    more = reviewing.send(limit=2)
    assert len(more) == 2
    reviewing.fail(more)
    assert reviewing.send() == []
    found = desk.get(ADA, planned.id)
    assert found.state == "stopped"
    assert found.why is not None
    assert found.why.startswith("the failure is back: 2 of 5 failed again, as dead letter 4 did: ")
    assert what(found) == {"handled": 1, "failed": 4, "planned": 5}


def test_without_a_canary_nothing_stops_it(desk: Redrives, store: Store, engine: Engine, reviewing: Reviewing) -> None:
    letters(store, 5)
    planned = desk.plan(ADA, EVERYTHING, canary=False)
    desk.start(ADA, planned.id)
    claims = reviewing.send()
    assert len(claims) == 5
    assert trail(claims[0].properties, RETURN, "billing").attempts is None
    reviewing.fail(claims)
    assert reviewing.send() == []
    found = desk.get(ADA, planned.id)
    assert (found.state, what(found)) == ("done", {"failed": 5})


def test_a_full_queue_makes_it_wait_until_half_of_that_is_gone(
    desk: Redrives, store: Store, engine: Engine, reviewing: Reviewing
) -> None:
    letters(store, 3)
    planned = desk.plan(ADA, EVERYTHING, canary=False, rate=1000)
    desk.start(ADA, planned.id)
    for depth, sends in ((10_001, False), (9_000, False), (4_999, True)):
        reviewing.queues.depths["billing"] = depth
        assert bool(reviewing.send()) == sends
        why = desk.get(ADA, planned.id).why
        assert why == (
            None if sends else "waits: more than 10,000 messages are in the queue of 'billing'; goes on below 5,000"
        )


def test_paused_resumed_slowed_down_and_cancelled(
    desk: Redrives, store: Store, engine: Engine, reviewing: Reviewing
) -> None:
    letters(store, 20)
    planned = desk.plan(ADA, EVERYTHING, canary=False)
    with pytest.raises(Refused, match="cannot be paused: it is planned"):
        desk.pause(ADA, planned.id)
    assert reviewing.send() == []
    desk.start(ADA, planned.id)
    with pytest.raises(Refused, match="cannot be started: it is running"):
        desk.start(ADA, planned.id)
    sent = reviewing.send(limit=5)
    assert desk.pause(BOB, planned.id).why == "paused by bob"
    assert reviewing.send() == []
    reviewing.succeed(sent)
    assert desk.resume(ADA, planned.id).state == RedriveState.RUNNING
    assert desk.rate(ADA, planned.id, 0.001).rate == 0.001
    assert len(reviewing.send()) == 1
    assert reviewing.send() == []
    with pytest.raises(Invalid):
        desk.rate(ADA, planned.id, 0)
    cancelled = desk.cancel(BOB, planned.id)
    assert (cancelled.state, what(cancelled)) == ("cancelled", {"handled": 5, "confirmed": 1, "skipped": 14})
    assert reviewing.send() == []
    said = desk.statement(ADA, planned.id)
    assert (said.adds_up, said.open, said.unanswered) == (True, 1, [6])
    assert states(engine) == {"handled": 5, "redriving": 1, "in review": 14}
    for change in (desk.pause, desk.resume, desk.cancel, desk.start):
        with pytest.raises(Refused, match="it is cancelled"):
            change(ADA, planned.id)


def test_what_was_changed_after_the_plan_is_skipped_and_says_why(
    desk: Redrives, store: Store, engine: Engine, reviewing: Reviewing
) -> None:
    letters(store, 4)
    planned = desk.plan(ADA, EVERYTHING, canary=False)
    desk.retry(BOB, [1])
    with writing(engine) as connection, transitions(connection) as moves:
        moves.move([2], *_DISCARD, discarded_at=now(), discarded_by="eve", discard_reason="a test")
        connection.execute(update(dead_letters).where(dead_letters.c.id == 3).values(version=1))
    desk.start(ADA, planned.id)
    assert reviewing.work() == 2
    assert {item.dead_letter_id: item.error for item in desk.items(ADA, planned.id, ItemState.SKIPPED).items} == {
        1: "it is being redriven by bob (redrive 2)",
        2: "it was discarded by eve",
        3: "it was edited after the redrive was planned",
    }
    assert desk.statement(ADA, planned.id).adds_up


def test_a_reviewer_that_dies_after_its_claim_leaves_it_to_another(
    desk: Redrives, store: Store, engine: Engine, reviewing: Reviewing
) -> None:
    letters(store, 3)
    planned = desk.plan(ADA, EVERYTHING, canary=False)
    desk.start(ADA, planned.id)
    lost = reviewing.runner.claims(500, 1_000_000, 30)
    assert len(lost) == 3
    assert reviewing.send() == []
    with writing(engine) as connection:
        connection.execute(update(redrive_items).values(claimed_until=now() - timedelta(minutes=1)))
    again = reviewing.send()
    assert {claim.item_id for claim in again} == {claim.item_id for claim in lost}
    # Both were published: each message is handled twice, which is one outcome and one duplicate.
    reviewing.succeed(lost)
    late = [replace(handled(claim.item_id), at=now()) for claim in again]
    store.outcomes(late)
    store.outcomes([*late[:1], handled(again[0].item_id)])
    assert reviewing.send() == []
    said = desk.statement(ADA, planned.id)
    assert (said.adds_up, said.items["handled"], said.state) == (True, 3, "done")
    assert said.duplicates >= 3


def test_payloads_in_memory_are_bounded_and_a_large_one_still_goes(
    desk: Redrives, store: Store, engine: Engine, reviewing: Reviewing
) -> None:
    store.ingest([letter(f"m-{number}", body=b'"' + b"x" * 1000 + b'"') for number in range(5)])
    desk.start(ADA, desk.plan(ADA, EVERYTHING, canary=False).id)
    sizes = []
    while claims := reviewing.runner.claims(500, 2500, 30):
        sizes.append(len(claims))
    assert sizes == [2, 2, 1]
    with writing(engine) as connection:
        connection.execute(update(redrive_items).values(claimed_until=now() - timedelta(minutes=1)))
    assert [len(reviewing.runner.claims(500, 10, 30)) for _ in range(5)] == [1] * 5


def test_who_may_only_look_cannot_redrive(desk: Redrives, store: Store, engine: Engine) -> None:
    letters(store, 1)
    viewer = Actor("vic", Role.VIEWER)
    planned = desk.plan(ADA, EVERYTHING)
    for attempt in (
        lambda: desk.retry(viewer, [1]),
        lambda: desk.plan(viewer, EVERYTHING),
        lambda: desk.start(viewer, planned.id),
        lambda: desk.pause(viewer, planned.id),
        lambda: desk.resume(viewer, planned.id),
        lambda: desk.rate(viewer, planned.id, 1),
        lambda: desk.cancel(viewer, planned.id),
    ):
        with pytest.raises(Forbidden):
            attempt()
    assert desk.get(viewer, planned.id).state == "planned"
    assert [found.id for found in desk.page(viewer).items] == [planned.id]
    with pytest.raises(NotFound):
        desk.get(viewer, 999)


def test_a_statement_names_what_does_not_add_up(
    desk: Redrives, store: Store, engine: Engine, reviewing: Reviewing
) -> None:
    letters(store, 4)
    planned = desk.plan(ADA, EVERYTHING, canary=False)
    desk.start(ADA, planned.id)
    claims = reviewing.send()
    reviewing.succeed(claims[:2])
    with writing(engine) as connection:  # somebody's hand in the database
        connection.execute(update(redrive_items).where(redrive_items.c.dead_letter_id == 3).values(state="failed"))
        connection.execute(
            update(redrive_items).where(redrive_items.c.dead_letter_id == 1).values(state=ItemState.CONFIRMED)
        )
    said = desk.statement(ADA, planned.id)
    assert not said.adds_up
    assert said.odd == {
        1: "it waits for an answer, and is handled",
        3: "its redrive has ended, and it is still redriving",
    }
    assert said.unanswered == [1, 4]


# --- with a patch, and with a second person -----------------------------------------------------------------------


@message("test.redrives.order")
class Order(BaseModel):
    order_id: str
    total: float = 0.0


def test_a_patch_is_tried_on_each_when_it_is_planned_and_is_an_edit_when_its_turn_comes(
    desk: Redrives, store: Store, engine: Engine, reviewing: Reviewing
) -> None:
    typed = worker_properties("m-1").copy(type="test.redrives.order")
    bodies = (b'{"order_id": "A-1", "sum": 1}', b'{"order_id": "A-2"}', b'{"sum": 2}', b"no JSON")
    store.ingest([read(typed.copy(message_id=f"m-{number}"), body) for number, body in enumerate(bodies)])
    patch = [{"op": "move", "from": "/sum", "path": "/total"}]
    found = desk.plan(ADA, EVERYTHING, patch=patch, canary=False, reason="the field is called total")
    assert what(found) == {"planned": 1, "ineligible": 3}
    errors = [item.error or "" for item in desk.items(ADA, found.id, ItemState.INELIGIBLE).items]
    assert all(said.startswith("the patch is not for it: ") for said in errors)
    assert "there is no such place" in errors[0]
    assert "order_id" in errors[1]
    desk.start(BOB, found.id)

    def broken() -> Contracts:
        raise ModuleNotFoundError("No module named 'shop'")

    assert Runner(engine, reviewing.queues, broken).claims(500, 1_000_000, 30) == []
    assert "cannot import the application: ModuleNotFoundError" in str(desk.get(ADA, found.id).why)
    (claim,) = reviewing.send()
    assert json.loads(claim.payload) == {"order_id": "A-1", "total": 1}
    with reading(engine) as connection:
        edit = connection.execute(select(edits)).one()
        item = connection.execute(select(redrive_items).where(redrive_items.c.state == ItemState.CONFIRMED)).one()
    assert (edit.version, edit.actor, edit.reason) == (1, "bob", "the field is called total")
    assert (item.version, item.body_sha256) == (1, hashlib.sha256(claim.payload).digest())
    # What comes back is told by what was sent, not by what first came.
    reviewing.fail([claim])
    assert states(engine) == {"in review": 4}
    assert what(desk.get(ADA, found.id)) == {"failed": 1, "ineligible": 3}
    assert [done[1] for done in acted(engine)] == [
        "plan a redrive",
        "start a redrive",
        "edit",
        "redrive",
        "failed again",
    ]


def test_what_is_edited_is_sent_as_it_was_edited(
    desk: Redrives, store: Store, engine: Engine, settings: Settings, reviewing: Reviewing
) -> None:
    letters(store, 1)
    editing = Edits(engine, Contracts({}), Approvals(engine, settings))
    editing.edit(ADA, 1, b'{"order_id": "A-2"}', reason="a typing error", expected_version=0)
    desk.retry(ADA, [1])
    (claim,) = reviewing.send()
    assert claim.payload == b'{"order_id": "A-2"}'
    reviewing.fail([claim])
    assert states(engine) == {"in review": 1}
    editing.edit(ADA, 1, b'{"order_id": "A-3"}', reason="once more", expected_version=1)
    desk.start(ADA, desk.plan(ADA, EVERYTHING).id)
    (claim,) = reviewing.send()
    assert claim.payload == b'{"order_id": "A-3"}'
    reviewing.succeed([claim])
    assert states(engine) == {"handled": 1}


def test_what_the_rules_say_waits_for_a_second_person_who_approves_exactly_that(
    engine: Engine, settings: Settings, store: Store, reviewing: Reviewing
) -> None:
    rules = ({"action": "redrive", "over": 1},)
    approvals = Approvals(engine, settings.model_copy(update={"approval_rules": rules}))
    desk = Redrives(engine, settings, Contracts({}), approvals)
    eve = Actor("eve", Role.APPROVER)
    letters(store, 4)
    desk.retry(ADA, [1])
    with pytest.raises(NeedsApproval) as asked:
        desk.retry(ADA, [2, 3], "fixed")
    planned = desk.plan(ADA, Selection(ids=(2, 3, 4)), canary=False)
    with pytest.raises(NeedsApproval) as start:
        desk.start(ADA, planned.id)
    with pytest.raises(NeedsApproval) as stale:
        desk.retry(ADA, [2, 3])
    assert states(engine) == {"in review": 3, "redriving": 1}
    assert approvals.approve(eve, asked.value.approval).result == {"redrive": 3, "refused": []}
    assert approvals.approve(eve, start.value.approval).state == "done"
    assert len(reviewing.send()) == 4
    found = desk.get(ADA, planned.id)
    assert (found.started_by, what(found)) == ("ada", {"confirmed": 1, "skipped": 2})
    refused = approvals.approve(eve, stale.value.approval)
    assert refused.state == "failed"
    assert "it is being redriven by ada" in str(refused.result)
