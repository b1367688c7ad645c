"""Searching dead letters, and what people do with them, the same on SQLite and PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr
from sqlalchemy import Engine, func, insert, select, text

from ackline.consumers.masking import MASK
from ackline.dlq import search_values, selection, upkeep
from ackline.dlq.approvals import Approvals
from ackline.dlq.contracts import Contracts
from ackline.dlq.edits import Edits
from ackline.dlq.errors import Forbidden, Invalid, NeedsApproval, NoSuchDeadLetter, NotFound, Refused
from ackline.dlq.letters import CONFIRM_ABOVE, Letters
from ackline.dlq.readable import Kind
from ackline.dlq.rights import Actor, Role
from ackline.dlq.selection import Selection, rows
from ackline.infra import database, wire
from ackline.infra.database import reading
from ackline.infra.names import MESSAGES, UNROUTED
from ackline.infra.properties import Properties
from ackline.infra.settings import Settings
from ackline.infra.tables import (
    DeadLetterState,
    action_items,
    actions,
    dead_letters,
    fingerprint_counts,
    search_paths,
)
from ackline.infra.tables import search_values as found_at
from ackline.producer import message
from tests.letters import letter, read, worker_properties
from tests.review import ADA, Review

BOB, VERA = Actor("bob", Role.APPROVER), Actor("vera", Role.VIEWER)
EVERYTHING = Selection()


@pytest.fixture
def store(engine: Engine) -> Review:
    return Review(engine)


@pytest.fixture
def letters(store: Review) -> Letters:
    return store.letters


def found(store: Review, **filters: object) -> list[str]:
    """The message ids of a selection, newest first, in pages of two."""
    ids: list[str] = []
    after = None
    while True:
        page = store.letters.page(ADA, Selection.parse(**filters), after, limit=2)
        ids += [row.message_id for row in page.items]
        if page.next is None:
            return ids
        after = page.next


# --- searching --------------------------------------------------------------------------------------------------------


def test_every_filter_narrows_and_pages_hold_each_once(store: Review, letters: Letters) -> None:
    store.ingest([letter(f"m-{n}", consumer=("billing", "shipping")[n % 2]) for n in range(6)])
    odd = Properties(message_id="m-6", type="other", correlation_id="c-1", headers={"x": 1})
    store.ingest([replace(read(odd, exchange=MESSAGES, queue=UNROUTED), attempts=9, error_type="KeyError")])
    store.discard(1, "not needed")
    everyone = [f"m-{n}" for n in (6, 5, 4, 3, 2, 1, 0)]
    for filters, expected in (
        ({}, everyone),
        ({"ids": [1, 3, 99]}, ["m-2", "m-0"]),
        ({"ids": []}, []),
        ({"states": "in review"}, everyone[:-1]),
        ({"states": ["discarded", "handled"]}, ["m-0"]),
        ({"consumer": "billing"}, ["m-4", "m-2", "m-0"]),
        ({"consumer": "billing", "states": ["in review", "redriving"]}, ["m-4", "m-2"]),
        ({"consumer": ""}, ["m-6"]),
        ({"type": "order.placed", "consumer": "shipping"}, ["m-5", "m-3", "m-1"]),
        ({"fingerprint": letters.find(ADA, "m-2").fingerprint}, ["m-4", "m-2", "m-0"]),
        ({"source": "unrouted"}, ["m-6"]),
        ({"error_type": "KeyError"}, ["m-6"]),
        ({"message_id": "m-3"}, ["m-3"]),
        ({"correlation_id": "c-1"}, ["m-6"]),
        ({"attempts_min": 3}, ["m-6"]),
        ({"attempts_max": 2, "consumer": "shipping"}, ["m-5", "m-3", "m-1"]),
        ({"received_since": datetime(2000, 1, 1, tzinfo=UTC)}, everyone),
        ({"received_since": "0001-01-01", "received_until": "9999-12-31T23:59:59Z"}, everyone),
        ({"received_since": datetime(2100, 1, 1, tzinfo=UTC)}, []),
        ({"received_until": datetime(2000, 1, 1, tzinfo=UTC)}, []),
    ):
        assert found(store, **filters) == expected, filters
        counted = letters.counts(ADA, Selection.parse(**filters))
        assert sum(counted.values()) == len(expected), filters


def test_those_of_a_time_are_found_though_times_do_not_quite_follow_ids(store: Review, engine: Engine) -> None:
    ingest_orders(store, 300)
    began = datetime(2026, 1, 1, tzinfo=UTC)
    chance = random.Random(7)
    times = {n: began + timedelta(minutes=10 * n + chance.randrange(55)) for n in range(300)}
    with engine.begin() as connection:
        for n, at in times.items():
            connection.execute(
                dead_letters.update().where(dead_letters.c.message_id == f"m-{n}").values(received_at=at)
            )
    for _ in range(40):
        since, until = (began + timedelta(minutes=chance.randrange(-100, 3200)) for _ in range(2))
        selected = Selection.parse(received_since=since, received_until=until)
        with reading(engine) as connection:
            names = {row_id - 1 for row_id in selection.every(connection, selected)}
        assert names == {n for n, at in times.items() if since <= at < until}


def test_words_are_found_by_their_beginnings_in_any_case(store: Review, letters: Letters) -> None:
    first = replace(letter("m-1"), error_message="Größe of order_17 is wrong: 1.5e3", reason="rejected…")
    second = replace(letter("m-2"), error_message="connection refused (db-7.example.com:5432)", reason="x")
    store.ingest([first, second])
    for words, expected in (
        ("Größe", ["m-1"]),
        ("order_17", ["m-1"]),
        ("ORD wro", ["m-1"]),
        ("rejected", ["m-1"]),
        ("CONNECTION ref", ["m-2"]),
        ("example.com:5432", ["m-2"]),
        ("connection wrong", []),
        ("rder", []),
        ("o", ["m-1"]),
    ):
        assert found(store, text=words) == expected, words
        assert found(store, text=words, consumer="billing", states="in review") == expected, words
        assert sum(letters.counts(ADA, Selection.parse(text=words)).values()) == len(expected), words


def test_words_of_a_new_failure_are_found_and_those_of_the_old_one_are_not(store: Review, engine: Engine) -> None:
    store.ingest([replace(letter(), error_message="before")])
    with engine.begin() as connection:
        connection.execute(text("UPDATE dead_letters SET error_message = 'after'"))
    assert (found(store, text="before"), found(store, text="after")) == ([], ["m-1"])


def ingest_orders(store: Review, count: int) -> None:
    store.ingest([letter(f"m-{n}", body=b'{"order_id": "A-%d", "n": %d}' % (n % 3, n)) for n in range(count)])


def test_a_path_is_found_the_same_without_an_index_while_it_grows_and_with_it(store: Review, engine: Engine) -> None:
    ingest_orders(store, 9)
    wanted, narrow = 'payload.order_id = "A-1"', ['payload.order_id = "A-1"', "payload.n > 3"]
    expected = ["m-7", "m-4", "m-1"]

    def agree() -> None:
        assert found(store, where=wanted) == expected
        assert found(store, where=narrow) == [name for name in expected if int(name[2:]) > 3]
        assert found(store, where=wanted, states="discarded") == []
        assert sum(store.counts(where=wanted).values()) == len(expected)

    agree()
    search_values.register(engine, ["payload.order_id"])
    agree()
    store.ingest([letter("m-10", body=b'{"order_id": "A-1", "n": 10}')])
    expected.insert(0, "m-10")
    agree()
    while search_values.backfill(engine, 4):
        agree()
    agree()
    with reading(engine) as connection:
        assert rows(connection, Selection.parse(where=wanted), limit=50).scanned == 0
        assert rows(connection, Selection.parse(where=narrow), limit=50).scanned == len(expected)
    search_values.register(engine, [])
    agree()
    with reading(engine) as connection:
        assert connection.scalar(select(func.count()).select_from(found_at)) == 0


def test_an_edited_payload_is_found_as_it_is_now(store: Review, engine: Engine) -> None:
    search_values.register(engine, ["payload.order_id"])
    ingest_orders(store, 2)
    edits = Edits(engine, Contracts({}), Approvals(engine, Settings(amqp_url="amqp://127.0.0.1:1")))
    edits.edit(ADA, 1, b'{"order_id": "B-1", "n": 0}', reason="mistyped", expected_version=0)
    for also in ([], ["payload.n = 0"]):
        assert found(store, where=['payload.order_id = "B-1"', *also]) == ["m-0"]
        assert found(store, where=['payload.order_id = "A-0"', *also]) == []


def test_a_search_that_no_index_serves_ends_in_time_and_goes_on(
    store: Review, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "SCAN_ROWS", 4)
    ingest_orders(store, 10)
    sought = Selection.parse(where="payload.n = 0")
    with reading(engine) as connection:
        first = rows(connection, sought, limit=50)
        assert (first.ids, first.next, first.scanned) == ([], 7, 4)
        assert list(selection.every(connection, sought)) == [1]


def test_counting_what_takes_too_long_is_refused_and_says_what_to_do(
    store: Review, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "SCAN_ROWS", 1)
    ingest_orders(store, 12)
    with pytest.raises(Refused, match=r"narrow it.*ACKLINE_SEARCH_PATHS"):
        store.counts(where="payload.n = 0")


ATTEMPTS = (
    "' OR '1'='1",
    "'; DROP TABLE dead_letters; --",
    '" OR 1=1 --',
    "\\'; SELECT 1",
    "%",
    "_",
    "\x00",
    "$1",
    ":id",
    "%(id)s",
    "x' UNION SELECT password_hash FROM people --",
    "NEAR(a b) OR *",
    "error_message : x",
    "a & b | !c <-> d:*",
)


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_an_injection_is_a_value_like_any_other_or_invalid(store: Review, attempt: str) -> None:
    body = json.dumps({"a": attempt, attempt: 1}).encode()
    store.ingest([letter("m-1", body=body), letter("m-2")])
    for name in ("consumer", "type", "fingerprint", "error_type", "message_id", "correlation_id"):
        assert found(store, **{name: attempt}) == []
    quoted = json.dumps(attempt)
    assert found(store, where=f"payload.a = {quoted}") == ["m-1"]
    assert found(store, where=f"payload[{quoted}] = 1") == ["m-1"]
    for filters in ({"where": f"payload.a = {attempt}"}, {"where": attempt}, {"states": attempt}, {"ids": attempt}):
        with pytest.raises(Invalid):
            found(store, **filters)
    for filters in ({"where": f"payload.{attempt} = 2"}, {"text": attempt}):
        with contextlib.suppress(Invalid):  # for most of them
            assert found(store, **filters) == []
    with pytest.raises(NoSuchDeadLetter):
        store.find(attempt)
    assert len(store.page()) == 2


# --- what is hidden ---------------------------------------------------------------------------------------------------


class Payment(BaseModel):
    order_id: str
    card: SecretStr


@pytest.fixture
def secret(store: Review, own_registry: None) -> int:
    """A dead letter whose contract hides a field."""
    message("payment.made")(Payment)
    properties = worker_properties().copy(type="payment.made")
    store.ingest([read(properties, b'{"order_id": "A-1", "card": "4711"}')])
    return store.find("m-1").id


def test_what_the_contract_hides_is_shown_to_who_says_why_and_that_is_on_record(
    letters: Letters, secret: int, engine: Engine
) -> None:
    shown = letters.get(BOB, secret)
    assert (shown.payload.document, shown.masked) == ({"order_id": "A-1", "card": MASK}, True)
    assert json.loads(letters.payload(BOB, secret)) == {"order_id": "A-1", "card": MASK}
    assert "4711" not in repr(shown)
    with reading(engine) as connection:
        assert connection.scalar(select(func.count()).select_from(actions)) == 0
    open_ = letters.get(BOB, secret, unmask="a customer calls")
    assert (open_.payload.document, open_.masked) == ({"order_id": "A-1", "card": "4711"}, False)
    assert letters.payload(BOB, secret, unmask="the same one") == b'{"order_id": "A-1", "card": "4711"}'
    done = letters.get(BOB, secret).actions
    assert [(one.actor, one.action, one.reason) for one in done] == [
        ("bob", "unmask", "a customer calls"),
        ("bob", "unmask", "the same one"),
    ]
    with pytest.raises(Forbidden, match="may not unmask"):
        letters.get(Actor("olga", Role.OPERATOR), secret, unmask="curious")
    with pytest.raises(Invalid, match="for a reason"):
        letters.get(BOB, secret, unmask="  ")


def test_nobody_finds_a_secret_by_searching_for_it(store: Review, secret: int, engine: Engine) -> None:
    for paths in ([], ["payload.card", "payload.order_id"]):
        search_values.register(engine, paths)
        while search_values.backfill(engine, 100):
            pass
        assert found(store, where='payload.card = "4711"') == []
        assert found(store, where="payload.card exists") == []
        assert found(store, where='payload.order_id = "A-1"') == ["m-1"]


def test_an_export_hides_it_too_and_what_is_masked_is_not_imported(letters: Letters, secret: int) -> None:
    (line,) = letters.export(ADA, EVERYTHING)
    assert "4711" not in json.dumps(line)
    assert (
        letters.import_(ADA, [json.dumps(line)])
        .faults[0]
        .message.endswith("export it with the right to unmask, and a reason")
    )
    (line,) = letters.export(ADA, EVERYTHING, unmask="moving house")
    assert json.loads(line["payload"])["card"] == "4711"


# --- reading one ------------------------------------------------------------------------------------------------------


def test_everything_that_is_known_of_a_dead_letter_is_told(store: Review, letters: Letters, engine: Engine) -> None:
    search_values.register(engine, ["payload.order_id"])
    store.ingest([letter("m-1", mine="kept"), letter("m-1", consumer="shipping"), letter("m-2")])
    edits = Edits(engine, Contracts({}), Approvals(engine, Settings(amqp_url="amqp://127.0.0.1:1")))
    edits.edit(ADA, 1, b'{"order_id": "A-2"}', reason="mistyped", expected_version=0)
    letters.note(ADA, 1, " the customer knows ")
    shown = letters.get(VERA, 1)
    assert (shown.payload.kind, shown.payload.document, shown.version) == (Kind.JSON, {"order_id": "A-2"}, 1)
    assert shown.properties["headers"][wire.CONSUMER] == "billing"
    assert shown.headers == {"mine": "kept"}
    assert [(note.actor, note.text) for note in shown.notes] == [("ada", "the customer knows")]
    assert [(edit.version, edit.reason) for edit in shown.edits] == [(1, "mistyped")]
    assert [one.action for one in shown.actions] == ["edit", "note"]
    assert [(one.id, one.consumer) for one in shown.related] == [(2, "shipping")]
    assert shown.group is not None
    assert (shown.group.fingerprint, shown.group.arrivals) == (shown.fingerprint, 2)
    assert letters.payload(VERA, 1, version=0) == b'{"order_id": "A-1"}'
    assert letters.payload(VERA, 1) == letters.payload(VERA, 1, version=1) == b'{"order_id": "A-2"}'
    with pytest.raises(NotFound, match="no version 2"):
        letters.payload(VERA, 1, version=2)
    with pytest.raises(NoSuchDeadLetter):
        letters.get(VERA, 99)


def test_a_note_says_something_and_not_too_much(store: Review, letters: Letters) -> None:
    store.ingest([letter()])
    for said in ("", " \n", "x" * 10_001):
        with pytest.raises(Invalid):
            letters.note(ADA, 1, said)
    with pytest.raises(NoSuchDeadLetter):
        letters.note(ADA, 99, "hello")
    with pytest.raises(Forbidden):
        letters.note(VERA, 1, "hello")


# --- discarding and restoring -----------------------------------------------------------------------------------------


def states(store: Review) -> dict[int, str]:
    return {row.id: row.state for row in store.page(limit=1000)}


def group_counts(engine: Engine) -> dict[str, int]:
    """What the counters say, of all groups; and that it is what is there."""
    table = fingerprint_counts.c
    with reading(engine) as connection:
        kept = dict(connection.execute(select(table.state, func.sum(table["count"])).group_by(table.state)).all())
        there: dict[str, int] = dict(
            connection.execute(select(dead_letters.c.state, func.count()).group_by(dead_letters.c.state)).all()
        )
    assert {state: int(count) for state, count in kept.items() if count} == there
    return there


def test_a_selection_is_discarded_and_exactly_that_is_undone(store: Review, letters: Letters, engine: Engine) -> None:
    ingest_orders(store, 6)
    store.discard(2, "by hand")
    done = letters.discard(ADA, Selection.parse(where='payload.order_id = "A-1"'), " a test ")
    assert (done.count, states(store)[5]) == (1, "discarded")
    more = letters.discard(ADA, Selection.parse(type="order.placed"), "the rest", expect=4)
    assert group_counts(engine) == {"discarded": 6}
    shown = letters.get(ADA, 5)
    assert (shown.discarded_by, shown.discard_reason) == ("ada", "a test")
    undone = letters.undo(ADA, more.action, "they are needed")
    assert undone.count == 4
    assert states(store) == {
        1: "in review",
        2: "discarded",
        3: "in review",
        4: "in review",
        5: "discarded",
        6: "in review",
    }
    assert group_counts(engine) == {"discarded": 2, "in review": 4}
    with reading(engine) as connection:
        last = connection.execute(select(actions).where(actions.c.id == undone.action)).one()
    assert (last.action, last.details, last._mapping["count"]) == ("restore", {"undoes": more.action}, 4)
    with pytest.raises(Refused, match=f"Action {more.action} .discard. discarded nothing that is discarded still"):
        letters.undo(ADA, more.action, "again")
    with pytest.raises(NotFound):
        letters.undo(ADA, 999, "what")


def test_an_undo_leaves_what_was_restored_and_discarded_again(store: Review, letters: Letters) -> None:
    ingest_orders(store, 2)
    first = letters.discard(ADA, EVERYTHING, "first")
    letters.restore(ADA, [1], "by mistake")
    letters.discard(BOB, Selection(ids=(1,)), "second")
    assert letters.undo(ADA, first.action, "undo").count == 1
    assert states(store) == {1: "discarded", 2: "in review"}


def test_of_named_ones_all_are_discarded_or_none(store: Review, letters: Letters) -> None:
    ingest_orders(store, 3)
    store.discard(2, "by hand")
    with pytest.raises(Refused, match=r"1 of these 3 cannot be discarded: 2 is discarded\. Nothing was discarded\."):
        letters.discard(ADA, Selection(ids=(1, 2, 3)), "all three")
    with pytest.raises(NoSuchDeadLetter):
        letters.discard(ADA, Selection(ids=(1, 99)), "both")
    with pytest.raises(Refused, match="Dead letter 3 cannot be restored: it is in review"):
        letters.restore(ADA, [3], "why not")
    with pytest.raises(Refused, match="Nothing of that is in review"):
        letters.discard(ADA, Selection.parse(consumer="nobody"), "none")
    with pytest.raises(Refused, match="Nothing of that is in review"):
        letters.discard(ADA, Selection(ids=()), "none")
    assert list(states(store).values()).count("discarded") == 1


def test_above_a_size_who_discards_says_how_many(store: Review, letters: Letters) -> None:
    ingest_orders(store, CONFIRM_ABOVE + 1)
    with pytest.raises(Refused, match=f"These are {CONFIRM_ABOVE + 1} dead letters: say that you expect"):
        letters.discard(ADA, EVERYTHING, "all")
    with pytest.raises(Refused, match="not 100: nothing was discarded"):
        letters.discard(ADA, EVERYTHING, "all", expect=CONFIRM_ABOVE)
    assert store.counts()["discarded"] == 0
    assert letters.discard(ADA, EVERYTHING, "all", expect=CONFIRM_ABOVE + 1).count == CONFIRM_ABOVE + 1


def test_of_two_who_discard_at_once_one_is_refused(store: Review, letters: Letters, engine: Engine) -> None:
    ingest_orders(store, 20)
    gate = threading.Barrier(3)

    def discard(name: str) -> int:
        gate.wait()
        try:
            return letters.discard(Actor(name, Role.ADMIN), EVERYTHING, "all of them", expect=20).count
        except Refused:
            return 0

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(discard, ["a", "b", "c"])) == [0, 0, 20]
    with reading(engine) as connection:
        assert connection.scalar(select(func.count()).select_from(action_items)) == 20
    assert group_counts(engine) == {"discarded": 20}


def test_a_discard_that_takes_two_people_waits_with_exactly_those_that_it_was_asked_for(engine: Engine) -> None:
    store = Review(engine)
    rules = Settings(amqp_url="amqp://127.0.0.1:1", approval_rules=({"action": "discard", "over": 1},))
    approvals = Approvals(engine, rules)
    letters = Letters(engine, Contracts({}), approvals)
    ingest_orders(store, 2)
    with pytest.raises(NeedsApproval) as caught:
        letters.discard(ADA, EVERYTHING, "both")
    ingest_orders(store, 3)  # a third one comes in meanwhile
    assert approvals.approve(BOB, caught.value.approval).result == {"count": 2, "action": 3}
    assert states(store) == {1: "discarded", 2: "discarded", 3: "in review"}
    assert letters.get(ADA, 1).discarded_by == "ada"
    assert letters.discard(ADA, EVERYTHING, "one is not two").count == 1


def test_a_viewer_only_looks(store: Review, letters: Letters) -> None:
    store.ingest([letter()])
    assert letters.page(VERA, EVERYTHING).items
    for forbidden in (
        lambda: letters.discard(VERA, EVERYTHING, "no"),
        lambda: letters.restore(VERA, [1], "no"),
        lambda: letters.undo(VERA, 1, "no"),
        lambda: letters.export(VERA, EVERYTHING),
        lambda: letters.import_(VERA, []),
    ):
        with pytest.raises(Forbidden):
            forbidden()


# --- export and import ------------------------------------------------------------------------------------------------


def test_what_is_exported_is_imported_elsewhere_as_it_was(
    store: Review, letters: Letters, engine: Engine, tmp_path: Path
) -> None:
    odd = worker_properties("m-3").copy(correlation_id="c-3", timestamp=10**13)
    store.ingest(
        [letter("m-1", mine="kept"), letter("m-2", body=b"\x00\xff"), read(odd, b'{"a": 1.10}'), letter("m-4")]
    )
    edits = Edits(engine, Contracts({}), Approvals(engine, Settings(amqp_url="amqp://127.0.0.1:1")))
    edits.edit(ADA, 1, b'{"order_id": "A-2"}', reason="mistyped", expected_version=0)
    letters.note(ADA, 1, "hello")
    store.discard(4, "not needed")
    lines = [json.dumps(line, allow_nan=False).encode() + b"\n" for line in letters.export(BOB, EVERYTHING)]
    assert len(lines) == 4
    url = f"sqlite:///{tmp_path / 'other.db'}"
    database.upgrade(url)
    other = database.connect(url)
    search_values.register(other, ["payload.order_id"])
    try:
        there = Review(other)
        there.ingest([letter("m-9")])
        done = there.letters.import_(ADA, lines)
        assert (done.stored, done.duplicates, done.faulty) == (4, 0, 0)
        for name in ("m-1", "m-2", "m-3", "m-4"):
            before, after = store.get(store.find(name).id), there.get(there.find(name).id)
            for field in ("type", "consumer", "history", "attempts", "first_failed_at", "properties"):
                assert getattr(before, field) == getattr(after, field), (name, field)
            for field in ("payload", "correlation_id", "fingerprint", "version", "edits", "notes", "body_sha256"):
                assert getattr(before, field) == getattr(after, field), (name, field)
            assert store.payload(before.id) == there.payload(after.id)
            assert after.state == "in review"
        assert found(there, where='payload.order_id = "A-2"') == ["m-1"]
        assert group_counts(other) == {"in review": 5}
        again = there.letters.import_(ADA, lines)
        assert (again.stored, again.duplicates, again.faulty) == (0, 4, 0)
        assert {row.duplicates for row in there.page()} == {0}
    finally:
        other.dispose()


def broken(line: dict[str, Any], **changes: Any) -> str:
    return json.dumps(line | changes)


def test_a_line_that_cannot_be_used_is_named_and_costs_no_other_line_anything(
    store: Review, letters: Letters, engine: Engine
) -> None:
    ingest_orders(store, 2)
    first, second = letters.export(ADA, EVERYTHING)
    lines: list[bytes | str] = [
        "no json",
        broken(first, message_id="new-1"),
        "",
        "[]",
        broken(first, payload="changed"),
        broken(first, attempts=-1),
        broken(first, received_at="yesterday"),
        broken(first, source="me"),
        broken(first, ackline_dead_letter=2),
        broken(first, payload_base64="AA=="),
        broken(first, properties_base64="%"),
        broken(first, history=[{"attempt": "x"}]),
        b"\xff\xfe",
        broken(first, message_id="new-2"),
        broken(first, message_id="new-2"),
        broken(second),
    ]
    done = letters.import_(ADA, lines)
    assert (done.stored, done.duplicates, done.faulty) == (2, 2, 11)
    assert [fault.path for fault in done.faults] == [f"line {n}" for n in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)]
    assert "body_sha256" in done.faults[2].message
    assert {"new-1", "new-2"} < {row.message_id for row in store.page()}
    with reading(engine) as connection:
        imports = connection.scalars(select(actions.c["count"]).where(actions.c.action == "import"))
        assert list(imports) == [2]


def test_a_line_that_the_database_does_not_take_is_named(store: Review, letters: Letters, engine: Engine) -> None:
    ingest_orders(store, 1)
    (line,) = letters.export(ADA, EVERYTHING)
    lines = [broken(line, message_id=f"n-{n}") for n in range(3)]
    with engine.begin() as connection:
        condition = "NEW.message_id = 'n-1'"
        if engine.dialect.name == "sqlite":
            raising = f"SELECT RAISE(ABORT, 'not this one') WHERE {condition};"
            connection.execute(text(f"CREATE TRIGGER refuses BEFORE INSERT ON dead_letters BEGIN {raising} END"))
        else:
            body = f"BEGIN IF {condition} THEN RAISE 'not this one'; END IF; RETURN NEW; END"
            connection.execute(text(f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"))
            connection.execute(
                text("CREATE TRIGGER refuses BEFORE INSERT ON dead_letters FOR EACH ROW EXECUTE FUNCTION refuse()")
            )
    done = letters.import_(ADA, lines)
    assert (done.stored, [fault.path for fault in done.faults]) == (2, ["line 2"])
    assert "not this one" in done.faults[0].message


# --- upkeep -----------------------------------------------------------------------------------------------------------


def test_what_is_over_for_long_is_forgotten_and_what_is_in_review_never(
    store: Review, letters: Letters, engine: Engine
) -> None:
    search_values.register(engine, ["payload.order_id"])
    ingest_orders(store, 5)
    edits = Edits(engine, Contracts({}), Approvals(engine, Settings(amqp_url="amqp://127.0.0.1:1")))
    edits.edit(ADA, 1, b'{"order_id": "B"}', reason="mistyped", expected_version=0)
    letters.note(ADA, 1, "hello")
    letters.discard(ADA, Selection(ids=(1, 2, 3)), "not needed")
    later = wire.now() + timedelta(days=1)
    assert upkeep.forget(engine, DeadLetterState.DISCARDED, wire.now() - timedelta(days=1), 10) == 0
    assert upkeep.forget(engine, DeadLetterState.HANDLED, later, 10) == 0
    assert upkeep.forget(engine, DeadLetterState.DISCARDED, later, 2) == 2
    assert upkeep.forget(engine, DeadLetterState.DISCARDED, later, 2) == 1
    assert states(store) == {4: "in review", 5: "in review"}
    assert group_counts(engine) == {"in review": 2}
    with reading(engine) as connection:
        assert set(connection.scalars(select(found_at.c.dead_letter_id))) == {4, 5}
        told = connection.execute(select(actions).where(actions.c.action == "forget")).all()
    assert [(row.actor, row.details["count"]) for row in told] == [("ackline reviewer", 2), ("ackline reviewer", 1)]


def test_upkeep_does_what_the_settings_say(store: Review, engine: Engine) -> None:
    ingest_orders(store, 2)
    settings = Settings(amqp_url="amqp://127.0.0.1:1", search_paths=("payload.order_id",))
    for chore in upkeep.of_letters(engine, settings).values():
        while chore():
            pass
    with reading(engine) as connection:
        assert connection.execute(select(search_paths)).all() == [("payload.order_id", 1)]
    assert len(states(store)) == 2
    with pytest.raises(Invalid, match="order_id"):
        upkeep.of_letters(engine, settings.model_copy(update={"search_paths": ("order_id",)}))


def test_a_path_that_is_registered_while_others_store_dead_letters_misses_none(store: Review, engine: Engine) -> None:
    """A dead letter is in the index, or below the id from which on all are: a search finds each, once."""
    started = threading.Barrier(3)

    def take(part: int) -> None:
        for n in range(20):
            store.ingest([letter(f"m-{part}-{n}", body=b'{"order_id": "A"}')])
            if n == 2:
                started.wait()

    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(take, part) for part in range(2)]
        started.wait()
        search_values.register(engine, ["payload.order_id"])
        for future in done:
            future.result()
    assert len(found(store, where='payload.order_id = "A"')) == 40
    with reading(engine) as connection:
        since = connection.scalar(select(search_paths.c.since))
        indexed = set(connection.scalars(select(found_at.c.dead_letter_id)))
    assert set(range(since or 0, 41)) <= indexed


def test_a_dead_letter_that_was_deleted_leaves_no_row_in_the_index(engine: Engine, store: Review) -> None:
    search_values.register(engine, ["payload.order_id"])
    ingest_orders(store, 1)
    with pytest.raises(Exception, match="kept until it is handled"), engine.begin() as connection:
        connection.execute(dead_letters.delete())
    with engine.begin() as connection, pytest.raises(Exception, match=r"(?i)foreign key"):
        connection.execute(insert(found_at).values(path="payload.order_id", value="x", dead_letter_id=99))
