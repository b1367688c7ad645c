"""What the tables together say of a message, on both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import Engine, insert

from ackline.dlq.outcome import STATES, Outcome
from ackline.infra import database
from ackline.infra.names import MESSAGES, UNROUTED
from ackline.infra.properties import Properties
from ackline.infra.tables import OutboxState, outbox
from ackline.infra.wire import now, uuid7
from ackline.producer.status import Status, status, statuses, waiting
from tests.letters import letter, read
from tests.review import Review
from tests.sending import request_redrive

TYPE = "order.placed"
CONSUMERS = {TYPE: ["billing"]}


@pytest.fixture
def store(engine: Engine) -> Review:
    return Review(engine)


def told(event: str, attempt: int = 1, *, redrive: str = "", error: str | None = None) -> Outcome:
    """A report of `m-1` for `billing`."""
    return Outcome(STATES[event], "m-1", "billing", TYPE, redrive, attempt, now(), None, error, "host:1")


def look(engine: Engine, message_id: str = "m-1", type_: str | None = None) -> Status:
    """The status, of which there must be one."""
    with database.reading(engine) as connection:
        found = status(connection, message_id, type=type_, consumers=CONSUMERS)
    assert found is not None
    return found


def brief(found: Status) -> list[tuple[str | None, str, int, str | None]]:
    """Each delivery as (consumer, state, attempts, error)."""
    return [(one.consumer, one.state, one.attempts, one.error) for one in found.deliveries]


def test_of_what_nobody_knows_there_is_no_status_unless_it_was_accepted(engine: Engine) -> None:
    with database.reading(engine) as connection:
        assert status(connection, "m-1", consumers=CONSUMERS) is None
        assert status(connection, "m-1", type=TYPE, consumers=CONSUMERS) is None
    accepted = waiting("m-1", TYPE, CONSUMERS)
    assert (accepted.state, accepted.is_final, brief(accepted)) == ("waiting", False, [("billing", "waiting", 0, None)])
    nobody = waiting("m-1", "of.nobody", CONSUMERS)
    assert (nobody.state, nobody.is_final, nobody.deliveries) == ("waiting", False, ())


def test_the_consumers_that_are_expected_wait_and_those_that_reported_are_added(engine: Engine, store: Review) -> None:
    store.outcomes([replace(told("handled"), consumer="audit")])
    found = look(engine)
    assert brief(found) == [("audit", "handled", 1, None), ("billing", "waiting", 0, None)]
    assert (found.state, found.is_final) == ("waiting", False)
    store.outcomes([told("handled")])
    assert (look(engine).state, look(engine).is_final) == ("handled", True)


def test_a_dead_letter_and_what_the_worker_reported_of_it_are_one_delivery(engine: Engine, store: Review) -> None:
    store.outcomes([told("dead", 2, error="gave up")])
    assert brief(look(engine)) == [("billing", "in review", 2, "gave up")]  # the letter itself is still on its way
    store.ingest([letter()])
    assert brief(look(engine)) == [("billing", "in review", 2, letter().reason)]
    (row,) = store.page()
    store.discard(row.id, "nobody needs it", "ada")
    found = look(engine)
    assert (found.state, found.is_final) == ("discarded", True)


def test_a_dead_letter_of_a_message_that_is_not_tracked_is_known_too(engine: Engine, store: Review) -> None:
    store.ingest([letter()])
    assert brief(look(engine)) == [("billing", "in review", 2, letter().reason)]


def test_a_redrive_is_followed_and_its_tries_are_added(engine: Engine, store: Review) -> None:
    store.outcomes([told("dead", 2, error="gave up")])
    store.ingest([letter()])
    (row,) = store.page()
    item = request_redrive(store, [row.id], "ada").items[row.id]
    reason = letter().reason
    assert brief(look(engine)) == [("billing", "redriving", 2, reason)]
    store.outcomes([told("started", 1, redrive=item)])
    assert brief(look(engine)) == [("billing", "being handled", 3, reason)]
    store.outcomes([told("retried", 1, redrive=item, error="not yet")])
    assert brief(look(engine)) == [("billing", "waiting for a retry", 3, "not yet")]
    store.outcomes([told("handled", 2, redrive=item)])
    found = look(engine)
    assert brief(found) == [("billing", "handled", 4, None)]
    assert found.is_final
    store.ingest([letter(minute=7)])  # a late duplicate fails, after two tries more
    assert brief(look(engine)) == [("billing", "handled", 6, None)]


def test_a_redrive_that_failed_is_in_review_again_whatever_its_worker_reports_late(
    engine: Engine, store: Review
) -> None:
    store.ingest([letter()])
    (row,) = store.page()
    item = request_redrive(store, [row.id], "ada").items[row.id]
    store.ingest([letter(redrive=item, minute=5)])
    store.outcomes([told("started", 1, redrive=item)])
    assert brief(look(engine)) == [("billing", "in review", 4, letter().reason)]


def test_what_no_consumer_took_is_in_review_for_nobody(engine: Engine, store: Review) -> None:
    store.ingest([read(Properties(message_id="m-1", type=TYPE), exchange=MESSAGES, queue=UNROUTED)])
    found = look(engine)
    assert brief(found) == [(None, "in review", 0, f"No consumer takes messages of type {TYPE!r}.")]
    assert not found.is_final


def test_what_needs_somebody_most_is_the_state_of_the_whole(engine: Engine, store: Review) -> None:
    for event, state in (("retried", "waiting for a retry"), ("started", "waiting for a retry"), ("dead", "in review")):
        store.outcomes([replace(told(event), consumer=event)])
        assert look(engine).state == state


def test_an_id_of_another_type_is_another_message(engine: Engine, store: Review) -> None:
    store.outcomes([told("handled")])
    with database.reading(engine) as connection:
        assert status(connection, "m-1", type="order.cancelled", consumers=CONSUMERS) is None
    store.outcomes([replace(told("dead"), consumer="refunds", type="order.cancelled")])
    assert [one.consumer for one in look(engine, type_="order.cancelled").deliveries] == ["refunds"]
    assert [one.consumer for one in look(engine, type_=TYPE).deliveries] == ["billing"]


def put(engine: Engine, state: OutboxState, *, due_in: float | None = None, error: str | None = None) -> None:
    """A row of `m-1` in the outbox."""
    due_at = None if due_in is None else now() + timedelta(seconds=due_in)
    finished_at = None if state is OutboxState.WAITING else now()
    with database.writing(engine) as connection:
        connection.execute(
            insert(outbox).values(
                message_id="m-1",
                type=TYPE,
                properties=b"",
                payload=b"{}",
                created_at=now(),
                due_at=due_at,
                state=state,
                error=error,
                finished_at=finished_at,
            )
        )


@pytest.mark.parametrize(
    ("state", "due_in", "shown", "is_final"),
    [
        (OutboxState.WAITING, None, "accepted", False),
        (OutboxState.WAITING, 3600.0, "scheduled", False),
        (OutboxState.CANCELLED, 3600.0, "cancelled", True),
        (OutboxState.FAILED, None, "failed", False),
        (OutboxState.PUBLISHED, None, "waiting", False),
    ],
)
def test_a_message_in_the_outbox(
    engine: Engine, store: Review, state: OutboxState, due_in: float | None, shown: str, is_final: bool
) -> None:
    put(engine, state, due_in=due_in, error="why" if state is OutboxState.FAILED else None)
    found = look(engine)
    assert (found.state, found.is_final) == (shown, is_final)
    assert found.error == ("why" if shown == "failed" else None)
    assert (found.due_at is not None) == (shown == "scheduled")
    assert brief(found) == ([("billing", "waiting", 0, None)] if shown == "waiting" else [])
    store.outcomes([told("handled")])
    assert look(engine).state == "handled", "what was handled was published, though nobody has noted it"


def test_of_several_rows_in_the_outbox_the_newest_counts(engine: Engine) -> None:
    put(engine, OutboxState.CANCELLED)
    put(engine, OutboxState.WAITING)
    assert look(engine).state == "accepted"


def test_many_messages_are_asked_for_at_once(engine: Engine, store: Review) -> None:
    ids = [uuid7() for _ in range(1200)]
    store.outcomes([replace(told("handled"), message_id=id_) for id_ in ids[:1100]])
    with database.reading(engine) as connection:
        found = statuses(connection, [(id_, None) for id_ in ids], consumers=CONSUMERS)
    assert [id_ for id_, _ in found] == ids[:1100]
    assert {one.state for one in found.values()} == {"handled"}
