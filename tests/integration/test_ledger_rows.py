"""What the ledger reads of the database: where each delivery of what was accepted is, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, select

from ackline.dlq import acceptance, ledger_rows, tracking, upkeep
from ackline.dlq.acceptance import Accepted
from ackline.dlq.ledger_rows import Delivery, Known, Place, Takers, Window
from ackline.dlq.outcome import STATES, Outcome
from ackline.dlq.store import Store
from ackline.dlq.transition import transitions
from ackline.infra.database import reading, writing
from ackline.infra.tables import DeadLetterState, dead_letters
from tests.letters import letter

BEGAN = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
TYPE = "order.placed"
TAKERS: Takers = {TYPE: ("billing", "mail")}
ALL = Window(BEGAN, BEGAN + timedelta(days=1))


def accept(engine: Engine, *message_ids: str, minute: float = 0, type: str = TYPE) -> None:  # noqa: A002
    at = BEGAN + timedelta(minutes=minute)
    with writing(engine) as connection:
        acceptance.record(connection, [Accepted(message_id, type, at) for message_id in message_ids])


def report(engine: Engine, event: str, *message_ids: str, consumer: str = "billing", attempt: int = 1) -> None:
    with writing(engine) as connection:
        tracking.fold(
            connection,
            [
                Outcome(STATES[event], message_id, consumer, TYPE, "", attempt, BEGAN, None, None, "host:1")
                for message_id in message_ids
            ],
        )


def discard(engine: Engine, message_id: str) -> None:
    with writing(engine) as connection, transitions(connection) as moves:
        query = select(dead_letters.c.id).where(dead_letters.c.message_id == message_id)
        said = {"discarded_at": BEGAN, "discarded_by": "ada", "discard_reason": "a test order"}
        ids = connection.scalars(query).all()
        moves.move(ids, DeadLetterState.IN_REVIEW, DeadLetterState.DISCARDED, **said)


def known(engine: Engine, window: Window = ALL, takers: Takers = TAKERS) -> dict[str, Known]:
    with reading(engine) as connection:
        return ledger_rows.known(connection, window, takers, ledger_rows.consumers_seen(connection))


def unfinished(engine: Engine, window: Window = ALL, takers: Takers = TAKERS) -> list[Delivery]:
    with reading(engine) as connection:
        seen = ledger_rows.consumers_seen(connection)
        return ledger_rows.unfinished(connection, window, takers, seen, 100)


def test_each_delivery_is_where_the_latest_of_report_and_dead_letter_says(engine: Engine) -> None:
    ids = ["handled", "retrying", "running", "sent", "review", "discarded", "succeeded late"]
    accept(engine, *ids)
    report(engine, "handled", "handled")
    report(engine, "retried", "retrying")
    report(engine, "started", "running")
    report(engine, "dead", "sent", "review", "discarded")
    Store(engine).ingest([letter(message_id) for message_id in ("review", "discarded", "succeeded late")])
    report(engine, "handled", "succeeded late")
    discard(engine, "discarded")
    billing = known(engine, takers={TYPE: ("billing",)})["billing"]
    assert billing == Known(
        {
            Place.HANDLED: 2,
            Place.WAITING_FOR_RETRY: 1,
            Place.BEING_HANDLED: 1,
            Place.REPORTED_DEAD: 1,
            Place.IN_REVIEW: 1,
            Place.DISCARDED: 1,
        }
    )


def test_what_nobody_tells_of_is_each_of_its_consumers(engine: Engine) -> None:
    accept(engine, "m-1", "m-2", "m-3")
    report(engine, "handled", "m-1", "m-2")
    report(engine, "handled", "m-1", consumer="mail")
    assert known(engine) == {
        "billing": Known({Place.HANDLED: 2}, untold=1),
        "mail": Known({Place.HANDLED: 1}, untold=2),
    }
    assert {(found.message_id, found.consumer, found.last) for found in unfinished(engine)} == {
        ("m-2", "mail", "nothing"),
        ("m-3", "billing", "nothing"),
        ("m-3", "mail", "nothing"),
    }


def test_what_was_accepted_before_a_consumer_had_any_of_its_type_may_not_be_its_own(engine: Engine) -> None:
    accept(engine, "m-1", minute=0)
    accept(engine, "m-2", "m-3", minute=1)
    for message_id in ("m-1", "m-2", "m-3"):
        report(engine, "handled", message_id)
    assert known(engine)["mail"] == Known(doubtful=3)
    report(engine, "handled", "m-2", consumer="mail")
    assert known(engine)["mail"] == Known({Place.HANDLED: 1}, untold=1, doubtful=1)
    assert [found.message_id for found in unfinished(engine)] == ["m-3"]


def test_a_message_that_no_consumer_takes_is_on_its_way_to_review_until_it_is_there(engine: Engine) -> None:
    accept(engine, "m-1", "m-2", type="nobody.knows")
    assert known(engine) == {"": Known(untold=2)}
    Store(engine).ingest([letter("m-1")])
    assert known(engine)[""] == Known(untold=1)
    assert [(found.message_id, found.consumer) for found in unfinished(engine)] == [("m-2", "")]


def test_a_window_has_what_was_accepted_in_it_for_the_consumer_that_it_names(engine: Engine) -> None:
    for minute in range(4):
        accept(engine, f"m-{minute}", minute=minute)
        report(engine, "handled", f"m-{minute}")
        report(engine, "handled", f"m-{minute}", consumer="mail")
    some = Window(BEGAN + timedelta(minutes=1), BEGAN + timedelta(minutes=3))
    assert {name: found.at(Place.HANDLED) for name, found in known(engine, some).items()} == {"billing": 2, "mail": 2}
    assert known(engine, some._replace(consumer="mail")) == {"mail": Known({Place.HANDLED: 2})}


def test_many_consumers_are_asked_for_in_several_queries(engine: Engine) -> None:
    takers = {TYPE: tuple(f"consumer-{number}" for number in range(450))}
    accept(engine, "m-1", "m-2")
    for consumer in takers[TYPE]:
        report(engine, "handled", "m-1", consumer=consumer)
    found = known(engine, takers=takers)
    assert len(found) == 450
    assert set(map(repr, found.values())) == {repr(Known({Place.HANDLED: 1}, untold=1))}


def test_the_first_time_of_a_message_counts(engine: Engine) -> None:
    accept(engine, "m-1", minute=0)
    accept(engine, "m-1", minute=5)
    with reading(engine) as connection:
        assert ledger_rows.latest(connection, ALL.until) == BEGAN


def test_a_record_is_forgotten_with_any_of_what_became_of_its_message(engine: Engine) -> None:
    accept(engine, "old", minute=-10)
    accept(engine, "m-1", "m-2", minute=0)
    report(engine, "handled", "m-1")
    accept(engine, "new", minute=60 * 24 * 30)
    store, before = Store(engine), BEGAN + timedelta(minutes=1)
    assert store.forget_deliveries(before, 1) == 1
    while store.forget_deliveries(before, 1):
        pass
    with reading(engine) as connection:
        assert not acceptance.has_old(connection, before)
    assert known(engine, Window(BEGAN - timedelta(days=1), BEGAN + timedelta(days=90)))["billing"].doubtful == 1


def test_a_record_is_forgotten_with_a_dead_letter_of_its_message(engine: Engine) -> None:
    accept(engine, "m-1", "m-2")
    Store(engine).ingest([letter("m-1"), letter("m-2")])
    discard(engine, "m-1")
    later = BEGAN + timedelta(days=1)
    assert upkeep.forget(engine, DeadLetterState.DISCARDED, later, 10) == 1
    assert known(engine)["billing"] == Known({Place.IN_REVIEW: 1})
    assert unfinished(engine, takers={}) == []


def test_what_became_of_a_message_is_not_forgotten_before_its_record(engine: Engine) -> None:
    accept(engine, "m-1", minute=5)  # read late, after the worker's report
    report(engine, "handled", "m-1")
    Store(engine).forget_deliveries(BEGAN + timedelta(minutes=1), 100)
    assert known(engine) == {}
