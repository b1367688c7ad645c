"""The store of dead letters, the same on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, select, text, update
from sqlalchemy.exc import IntegrityError

from ackline.dlq import redrive
from ackline.dlq.deadletter import DeadLetter
from ackline.dlq.errors import AmbiguousMessageId, Invalid, NoSuchDeadLetter, Refused
from ackline.infra import wire
from ackline.infra.database import DatabaseUnavailable
from ackline.infra.names import MESSAGES, RETURN, UNROUTED
from ackline.infra.properties import Properties
from ackline.infra.tables import ItemState, dead_letters, redrive_items
from tests.letters import handled, letter, read, worker_headers, worker_properties
from tests.review import Review
from tests.sending import items_of, request_redrive, settle, take


@pytest.fixture
def store(engine: Engine) -> Review:
    return Review(engine)


def only(store: Review) -> int:
    """The id of the only dead letter."""
    (row,) = store.page()
    return row.id


def redriving(store: Review, row_id: int) -> str:
    """Have the row redriven up to the broker's confirm; returns the item."""
    item_id = request_redrive(store, [row_id], "ada").items[row_id]
    assert [claim.item_id for claim in take(store, 10, 30)] == [item_id]
    settle(store, [item_id], {}, {}, again_in=1)
    return item_id


# --- dead letters come in -----------------------------------------------------------------------------------------


def test_what_comes_in_is_read_back_as_it_was(store: Review) -> None:
    dead = letter()
    assert store.ingest([dead]) == []
    found = store.get(only(store))
    for field in ("message_id", "consumer", "type", "source", "reason", "error_type", "error_message", "traceback"):
        assert getattr(found, field) == getattr(dead, field)
    for field in ("attempts", "history", "first_failed_at"):
        assert getattr(found, field) == getattr(dead, field)
    assert (store.payload(found.id), found.body_sha256) == (dead.payload, dead.body_sha256.hex())
    assert (found.state, found.redrive_count, found.duplicates, found.flags) == ("in review", 0, 0, [])
    assert found.first_failed_at.tzinfo is UTC
    assert dead.received_at <= found.received_at == found.last_seen_at


def test_the_same_dead_letter_twice_is_one_row(store: Review) -> None:
    store.ingest([letter()])
    store.ingest([letter(), letter("m-2"), letter("m-2")])
    assert {row.message_id: row.duplicates for row in store.page()} == {"m-1": 1, "m-2": 1}
    found = store.get(store.find("m-1").id)
    assert (found.state, len(found.history), found.attempts) == ("in review", 2, 2)


def test_the_same_id_with_another_body_or_for_another_consumer_is_another_row(store: Review) -> None:
    store.ingest([letter(), letter(body=b"other"), letter(consumer="shipping")])
    assert len(store.page()) == 3
    with pytest.raises(AmbiguousMessageId, match="Several dead letters have the message id 'm-1'"):
        store.find("m-1")


def test_a_second_failure_of_the_same_delivery_is_kept_in_its_history(store: Review) -> None:
    store.ingest([letter(minute=0)])
    store.ingest([letter(minute=1)])
    found = store.get(only(store))
    assert (len(found.history), found.attempts, found.duplicates, found.flags) == (4, 4, 1, [])


def test_nul_bytes_and_what_is_no_utf_8_can_be_stored(store: Review) -> None:
    headers = worker_headers(consumer="b\x00\udcff") | {
        wire.HISTORY: '[{"attempt":1,"at":"\\u0000","worker":"\\ud800","error":"\\u0000","message":"\\udfff"}]',
        wire.REASON: "no\x00",
        wire.TRACEBACK: "\x00" * 10,
    }
    properties = Properties(message_id=b"\x00\xff", type=b"\xfe\x00", correlation_id=b"\xff", headers=headers)
    dead = read(properties, b"\x00\xff\xfe")
    assert store.ingest([dead]) == []
    found = store.get(only(store))
    assert (found.message_id, found.type, found.reason) == ("\\x00\\xff", "\\xfe\\x00", "no\\x00")
    assert store.payload(found.id) == b"\x00\xff\xfe"
    assert store.find("\\x00\\xff").id == found.id


def test_a_large_payload_and_large_headers_are_kept_whole(store: Review) -> None:
    body = bytes(range(256)) * 20_000
    dead = read(worker_properties(padding="x" * 100_000), body)
    assert store.ingest([dead]) == []
    found = store.get(only(store))
    assert (found.payload.size, found.payload.cut) == (len(body), True)
    assert store.payload(found.id) == body
    assert found.properties["headers"]["padding"] == "x" * 100_000


def test_a_row_that_cannot_be_stored_does_not_fail_its_batch(store: Review, engine: Engine) -> None:
    refuse(engine, "m-3")
    batch = [letter(f"m-{number}") for number in range(6)]
    (unstored,) = store.ingest(batch)
    assert unstored.index == 3
    assert "not this one" in unstored.reason
    assert sorted(row.message_id for row in store.page()) == ["m-0", "m-1", "m-2", "m-4", "m-5"]


def test_a_row_that_cannot_be_stored_is_stored_when_it_can_be(store: Review, engine: Engine) -> None:
    refuse(engine, "m-1")
    assert len(store.ingest([letter()])) == 1
    with engine.begin() as connection:
        on_table = " ON dead_letters" if engine.dialect.name == "postgresql" else ""
        connection.execute(text(f"DROP TRIGGER refuses{on_table}"))
    assert store.ingest([letter()]) == []
    assert store.get(only(store)).duplicates == 0


def refuse(engine: Engine, message_id: str) -> None:
    """Have the database refuse the dead letter *message_id*."""
    condition = f"NEW.message_id = '{message_id}'"
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            raising = f"SELECT RAISE(ABORT, 'not this one') WHERE {condition};"
            connection.execute(text(f"CREATE TRIGGER refuses BEFORE INSERT ON dead_letters BEGIN {raising} END"))
        else:
            body = f"BEGIN IF {condition} THEN RAISE 'not this one'; END IF; RETURN NEW; END"
            connection.execute(text(f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"))
            connection.execute(
                text("CREATE TRIGGER refuses BEFORE INSERT ON dead_letters FOR EACH ROW EXECUTE FUNCTION refuse()")
            )


def test_a_database_that_takes_nothing_at_all_is_unavailable_and_keeps_nothing(store: Review, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE dead_letters RENAME TO moved_away"))
    with pytest.raises(DatabaseUnavailable):
        store.ingest([letter("m-1"), letter("m-2")])


def test_two_reviewers_that_take_the_same_dead_letters_at_once_make_one_row_of_each(store: Review) -> None:
    batches = [[letter(f"m-{number}") for number in range(200)] for _ in range(4)]
    gate = threading.Barrier(len(batches))

    def take(batch: list[DeadLetter]) -> int:
        gate.wait()
        return len(store.ingest(batch))

    with ThreadPoolExecutor(len(batches)) as pool:
        assert sum(pool.map(take, batches)) == 0
    rows = store.page(limit=1000)
    assert len(rows) == 200
    assert sum(row.duplicates for row in rows) == 600


# --- redrives -----------------------------------------------------------------------------------------------------


def test_a_redrive_that_is_handled_ends_the_dead_letter(store: Review, engine: Engine) -> None:
    store.ingest([letter()])
    row_id = only(store)
    item_id = redriving(store, row_id)
    assert store.get(row_id).state == "redriving"
    assert store.outcomes([handled(item_id)]) == []
    found = store.get(row_id)
    assert (found.state, found.handled_at, found.flags) == ("handled", datetime(2026, 1, 2, 5, tzinfo=UTC), [])
    assert [(done.actor, done.action, done.state_after) for done in found.actions] == [
        ("ada", "redrive", "redriving"),
        ("ackline reviewer", "handled", "handled"),
    ]
    assert items_of(store, [item_id])[0].state == ItemState.HANDLED


def test_a_redrive_that_fails_is_in_review_again_with_the_new_error(store: Review) -> None:
    store.ingest([letter()])
    row_id = only(store)
    item_id = redriving(store, row_id)
    later = replace(
        letter(redrive=item_id, minute=5), reason="failed once more", error_type="KeyError", error_message="'x'"
    )
    store.ingest([later])
    found = store.get(row_id)
    assert (found.state, found.redrive_count, found.duplicates, found.attempts) == ("in review", 1, 0, 4)
    assert (found.reason, found.error_type, found.error_message) == ("failed once more", "KeyError", "'x'")
    assert [entry.get("redrive") for entry in found.history] == [None, None, 1, 1]
    assert items_of(store, [item_id])[0].state == ItemState.FAILED
    assert redriving(store, row_id) != item_id


def test_a_redriven_message_is_known_by_its_redrive_even_under_another_id(store: Review) -> None:
    store.ingest([letter("m-1")])
    row_id = only(store)
    store.ingest([letter("m-1-again", redrive=redriving(store, row_id), minute=5)])
    found = store.get(only(store))
    assert (found.state, found.redrive_count, found.message_id) == ("in review", 1, "m-1")


def test_the_dead_letter_of_a_redrive_that_is_delivered_twice_counts_once(store: Review) -> None:
    store.ingest([letter()])
    row_id = only(store)
    failed = letter(redrive=redriving(store, row_id), minute=5)
    store.ingest([failed])
    store.ingest([failed])
    found = store.get(row_id)
    assert (found.redrive_count, found.duplicates, len(found.history), found.flags) == (1, 1, 4, [])


def test_handled_wins_over_a_failure_that_arrives_later(store: Review) -> None:
    store.ingest([letter()])
    row_id = only(store)
    item_id = redriving(store, row_id)
    store.outcomes([handled(item_id)])
    store.ingest([letter(redrive=item_id, minute=5)])
    found = store.get(row_id)
    assert (found.state, found.duplicates, len(found.history)) == ("handled", 1, 4)
    assert found.flags == ["It failed once more after it had been handled."]


def test_handled_wins_over_a_failure_of_the_same_redrive_that_arrived_before(store: Review) -> None:
    store.ingest([letter()])
    row_id = only(store)
    item_id = redriving(store, row_id)
    store.ingest([letter(redrive=item_id, minute=5)])
    store.outcomes([handled(item_id)])
    found = store.get(row_id)
    assert (found.state, found.flags) == ("handled", ["It was handled by a redrive whose failure had arrived before."])


def test_a_failure_of_an_older_redrive_changes_no_state(store: Review) -> None:
    store.ingest([letter()])
    row_id = only(store)
    older = redriving(store, row_id)
    store.ingest([letter(redrive=older, minute=5)])
    newer = redriving(store, row_id)
    store.ingest([letter(redrive=older, minute=7)])
    found = store.get(row_id)
    assert (found.state, found.redrive_item_id, found.redrive_count, found.duplicates) == ("redriving", newer, 1, 1)
    assert found.flags == ["It failed once more, out of turn, while a redrive was under way."]


def test_success_of_an_older_redrive_ends_the_newer_one(store: Review) -> None:
    store.ingest([letter()])
    row_id = only(store)
    older = redriving(store, row_id)
    store.ingest([letter(redrive=older, minute=5)])
    newer = request_redrive(store, [row_id], "ada").items[row_id]
    store.outcomes([handled(older)])
    assert store.get(row_id).state == "handled"
    assert items_of(store, [newer])[0].state == ItemState.SUPERSEDED
    assert take(store, 10, 30) == []


def test_success_after_a_discard_is_flagged_and_the_discard_stands(store: Review) -> None:
    store.ingest([letter()])
    row_id = only(store)
    item_id = redriving(store, row_id)
    store.ingest([letter(redrive=item_id, minute=5)])
    store.discard(row_id, "customer gave up", "ada")
    store.outcomes([handled(item_id)])
    found = store.get(row_id)
    assert (found.state, found.flags) == ("discarded", ["It was handled after it had been discarded."])


def test_an_outcome_counts_only_for_the_redrive_and_the_consumer_that_it_names(store: Review) -> None:
    store.ingest([letter()])
    row_id = only(store)
    item_id = redriving(store, row_id)
    strange = [handled("no such item"), handled(item_id, consumer="shipping")]
    assert store.outcomes([strange[0]]) == [strange[0]]
    assert store.outcomes([strange[1]]) == [strange[1]]
    assert store.get(row_id).state == "redriving"


def test_a_redrive_id_on_another_message_is_not_believed(store: Review) -> None:
    store.ingest([letter()])
    row_id = only(store)
    item_id = redriving(store, row_id)
    store.ingest([letter("m-2", body=b"other", redrive=item_id), letter("m-3", consumer="shipping", redrive=item_id)])
    assert store.get(row_id).state == "redriving"
    assert len(store.page()) == 3


def test_two_people_who_retry_at_once_send_it_once(store: Review) -> None:
    store.ingest([letter()])
    row_id = only(store)
    gate = threading.Barrier(4)

    def ask(name: str) -> int:
        gate.wait()
        try:
            return len(request_redrive(store, [row_id], name).items)
        except Refused:
            return 0

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(ask, ["a", "b", "c", "d"])) == 1
    assert len(take(store, 10, 30)) == 1


def test_a_retry_of_what_is_not_in_review_says_why_not(store: Review) -> None:
    store.ingest([letter()])
    row_id = only(store)
    store.discard(row_id, "not needed", "ada")
    with pytest.raises(Refused) as refused:
        request_redrive(store, [row_id, 999, row_id], "bob")
    assert str(refused.value) == (
        f"Dead letter {row_id} cannot be redriven: it was discarded by ada. There is no dead letter 999."
    )


def test_a_redrive_sends_on_what_was_published_and_sets_aside_what_would_lose_it(store: Review) -> None:
    original = {"exchange": MESSAGES, "routing_key": "order.placed", "reply_to": "answers"}
    properties = Properties(
        message_id="m-1",
        type="order.placed",
        content_type="text/plain",
        correlation_id="c-1",
        timestamp=10**13,
        expiration="5000",
        headers=worker_headers() | {wire.ORIGINAL: original} | {"mine": "kept", "x-delivery-count": 3, "CC": ["q"]},
    )
    dead = read(properties)
    store.ingest([dead])
    row_id = only(store)
    item_id = request_redrive(store, [row_id], "ada").items[row_id]
    (claim,) = take(store, 10, 30)
    sent = claim.properties
    assert (claim.item_id, claim.dead_letter_id, claim.consumer, claim.payload) == (
        item_id,
        row_id,
        "billing",
        dead.payload,
    )
    assert (sent.message_id, sent.type, sent.content_type) == (b"m-1", b"order.placed", b"text/plain")
    assert (sent.correlation_id, sent.timestamp, sent.expiration, sent.delivery_mode) == (b"c-1", 10**13, None, 2)
    assert sent.headers.text("mine") == "kept"
    assert not {b"x-delivery-count", b"CC", b"ackline-history", b"ackline-reason"} & set(sent.headers.names())
    trail = wire.trail(sent, RETURN, "billing")
    assert (trail.consumer, trail.attempt, trail.redrive, trail.history) == ("billing", 1, item_id, ())
    assert trail.set_aside.text("expiration") == "5000"
    assert trail.set_aside.text("reply_to") == "answers", "set aside when it was first published again"
    assert (trail.exchange, trail.routing_key) == (MESSAGES, "order.placed")


def test_a_message_without_an_id_is_redriven_under_the_id_of_its_row(store: Review) -> None:
    store.ingest([letter(None)])
    row_id = only(store)
    request_redrive(store, [row_id], "ada")
    (claim,) = take(store, 10, 30)
    assert claim.properties.message_id == store.get(row_id).message_id.encode()


def test_a_claim_is_one_reviewers_until_it_runs_out(store: Review, engine: Engine) -> None:
    store.ingest([letter()])
    row_id = only(store)
    item_id = request_redrive(store, [row_id], "ada").items[row_id]
    assert len(take(store, 10, 30)) == 1
    assert take(store, 10, 30) == []
    with engine.begin() as connection:  # the reviewer that claimed it crashed half a minute ago
        ago = datetime.now(UTC) - timedelta(seconds=1)
        connection.execute(update(redrive_items).values(claimed_until=ago))
    (claim,) = take(store, 10, 30)
    assert claim.item_id == item_id
    settle(store, [item_id], {}, {}, again_in=1)
    assert items_of(store, [item_id])[0].state == ItemState.CONFIRMED
    assert take(store, 10, 30) == []


def test_looking_for_redrives_reads_no_finished_ones(engine: Engine) -> None:
    looking = str(redrive.looking().compile(engine, compile_kwargs={"literal_binds": True}))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # of an empty table it would read all
            connection.execute(text("SET LOCAL enable_seqscan = off"))
        explain = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
        plan = "\n".join(map(str, connection.exec_driver_sql(f"{explain} {looking}").all()))
    assert "ix_redrive_items_unsent" in plan


def test_several_reviewers_share_the_claims(store: Review) -> None:
    store.ingest([letter(f"m-{number}") for number in range(40)])
    request_redrive(store, [row.id for row in store.page(limit=100)], "ada")
    gate = threading.Barrier(4)

    def claim(_: int) -> list[str]:
        gate.wait()
        return [found.item_id for found in take(store, 20, 30)]

    with ThreadPoolExecutor(4) as pool:
        claimed = [item for items in pool.map(claim, range(4)) for item in items]
    assert len(claimed) == len(set(claimed)) == 40


def test_what_cannot_be_sent_is_in_review_again_and_says_why(store: Review) -> None:
    store.ingest([letter()])
    row_id = only(store)
    item_id = request_redrive(store, [row_id], "ada").items[row_id]
    take(store, 10, 30)
    settle(store, [], {}, {item_id: "could not be sent: too large"}, again_in=1)
    found = store.get(row_id)
    assert (found.state, found.send_error, found.redrive_count) == ("in review", "could not be sent: too large", 0)
    assert found.reason.startswith("failed 2 of 2")
    assert [done.action for done in found.actions] == ["redrive", "not sent"]


def test_an_unrouted_dead_letter_goes_to_the_one_consumer_that_takes_its_type_now(store: Review) -> None:
    store.ingest([read(worker_properties(), exchange=MESSAGES, queue=UNROUTED)])
    row_id = only(store)
    with pytest.raises(Refused, match="no consumer in ACKLINE_APP takes"):
        request_redrive(store, [row_id], "ada", {})
    with pytest.raises(Refused, match=r"2 consumers take messages of type 'order.placed' \(a, b\)"):
        request_redrive(store, [row_id], "ada", {"order.placed": ["a", "b"]})
    assert store.get(row_id).state == "in review"
    item_id = request_redrive(store, [row_id], "ada", {"order.placed": ["billing"]}).items[row_id]
    (claim,) = take(store, 10, 30)
    assert claim.consumer == "billing"
    assert wire.trail(claim.properties, RETURN, "billing").history == ()
    store.outcomes([handled(item_id)])
    assert (store.get(row_id).state, store.get(row_id).consumer) == ("handled", "billing")


def test_an_unrouted_dead_letter_whose_consumer_has_the_message_already_is_refused(store: Review) -> None:
    store.ingest([letter(), read(worker_properties(), exchange=MESSAGES, queue=UNROUTED)])
    unrouted = store.page(consumer="")[0].id
    with pytest.raises(Refused, match="consumer 'billing' has the same message already, as dead letter 1"):
        request_redrive(store, [unrouted], "ada", {"order.placed": ["billing"]})


# --- people -------------------------------------------------------------------------------------------------------


def test_a_discard_keeps_who_and_why(store: Review) -> None:
    store.ingest([letter()])
    row_id = only(store)
    store.discard(row_id, " customer gave up ", "ada")
    found = store.get(row_id)
    assert (found.state, found.discarded_by, found.discard_reason) == ("discarded", "ada", "customer gave up")
    assert [(done.actor, done.action, done.reason) for done in found.actions] == [
        ("ada", "discard", "customer gave up")
    ]
    with pytest.raises(Refused, match="it is discarded"):
        store.discard(row_id, "again", "bob")


def test_a_discard_needs_a_reason(store: Review) -> None:
    store.ingest([letter()])
    with pytest.raises(Invalid, match="for a reason"):
        store.discard(only(store), " \n", "ada")
    with pytest.raises(NoSuchDeadLetter):
        store.discard(999, "why not", "ada")
    assert store.page()[0].state == "in review"


def test_pages_follow_each_other_without_a_gap(store: Review) -> None:
    store.ingest([letter(f"m-{number}", consumer=("billing", "shipping")[number % 2]) for number in range(25)])
    seen: list[int] = []
    after = None
    while page := store.page(after, limit=10):
        seen += [row.id for row in page]
        after = page[-1].id
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == 25
    assert len(store.page(consumer="billing")) == 13
    assert store.page(type="nobody.knows") == []
    assert store.counts(consumer="shipping") == {"in review": 12, "redriving": 0, "handled": 0, "discarded": 0}


def test_a_dead_letter_is_found_by_its_id_and_by_its_message_id(store: Review) -> None:
    store.ingest([letter("m-1"), letter("7")])
    assert store.find("1").message_id == "m-1"
    assert store.find("m-1").id == 1
    with pytest.raises(NoSuchDeadLetter, match="There is no dead letter '7'"):
        store.find("7")  # a number is an id, never a message id
    with pytest.raises(NoSuchDeadLetter):
        store.find("9" * 30)


# --- what the database itself refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"state": "lost"},
        {"state": "redriving"},
        {"state": "handled"},
        {"state": "discarded", "discarded_at": datetime(2026, 1, 1, tzinfo=UTC), "discarded_by": "ada"},
        {"source": "rumour"},
        {"redrive_item_id": "x"},
    ],
    ids=str,
)
def test_a_state_that_cannot_be_is_refused_by_the_database(
    store: Review, engine: Engine, wrong: dict[str, object]
) -> None:
    store.ingest([letter()])
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(update(dead_letters).values(**wrong))


def test_a_second_open_item_for_a_dead_letter_is_refused_by_the_database(store: Review, engine: Engine) -> None:
    store.ingest([letter()])
    request_redrive(store, [only(store)], "ada")
    with engine.begin() as connection:
        item = dict(connection.execute(select(redrive_items)).one()._mapping)
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(redrive_items.insert().values(**item | {"id": "another"}))


FORBIDDEN = {
    "it begins anywhere but in review": "INSERT INTO dead_letters SELECT * FROM dead_letters",
    "a discarded one is handled": "UPDATE dead_letters SET state = 'handled', redrive_item_id = 'x'",
    "its payload is changed": "UPDATE dead_letters SET payload = properties",
    "what is in review is deleted": "DELETE FROM dead_letters",
    "an action is changed": "UPDATE actions SET actor = 'eve'",
    "an action is removed": "DELETE FROM actions",
    "an action's dead letter is changed": "UPDATE action_items SET dead_letter_id = 2",
    "an action's dead letter is removed": "DELETE FROM action_items",
}


@pytest.mark.parametrize("statement", FORBIDDEN.values(), ids=FORBIDDEN)
def test_the_database_itself_refuses(engine: Engine, store: Review, statement: str) -> None:
    store.ingest([letter(), letter("m-2")])
    store.discard(store.find("m-1").id, "a test", "ada")
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(text(statement))
