"""The record of what was done: an unbroken chain on SQLite and PostgreSQL, and whatever is changed in it is found."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, Table, delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from ackline.dlq.audit import Action, Audit, Entry, append, given, unmasked
from ackline.dlq.chain import START, Head, Item, Recorded, Verdict, chained, line, verify_lines
from ackline.dlq.errors import Forbidden, Invalid, NotFound
from ackline.dlq.rights import Actor, Role
from ackline.infra import database
from ackline.infra.tables import action_items, actions
from ackline.infra.wire import now

ADA = Actor("ada", Role.ADMIN)
#: What JSON and both databases could change on the way.
ODD = {
    "float": [0.1, 1.0, 1e300, -0.0, 5e-324, 2**70],
    "text": 'é 漢 \U0001f600 "\\/\b\n\x7f\x00\ud800',
    "z": {"b": 1, "a": [None, True, {}]},
    "a": "",
    "ключ": [],
}


@pytest.fixture
def audit(engine: Engine) -> Audit:
    return Audit(engine)


def record(engine: Engine, *entries: Entry) -> int:
    with database.writing(engine) as connection:
        return append(connection, entries)


def items(*ids: int) -> list[Item]:
    return [(row_id, "in review", "discarded") for row_id in ids]


def five(engine: Engine) -> None:
    """Five actions, of which the third has everything that can be changed."""
    record(engine, Entry("ada", "discard", "test orders", items(1, 2)), Entry("bob", "add person", ""))
    record(engine, Entry("zoë", "discard", "größer als 9", items(12, 11, 700), {"filter": {"type": "a"}, "n": 1.5}))
    record(engine, Entry("ada", "restore", "", items(1)), Entry("bob", "note", "", items(1)))


def broken(verdict: Verdict) -> tuple[int, str]:
    assert verdict.broken is not None
    return verdict.broken.id, verdict.broken.kind


def defenceless(engine: Engine) -> None:
    """Take away what keeps everybody from changing the record, as whoever owns the database can."""
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            query = text(
                "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name IN ('actions', 'action_items')"
            )
            for name in connection.execute(query).scalars().all():
                connection.execute(text(f"DROP TRIGGER {name}"))
        else:
            connection.execute(text("ALTER TABLE actions DISABLE TRIGGER ALL"))
            connection.execute(text("ALTER TABLE action_items DISABLE TRIGGER ALL"))


def tamper(engine: Engine, statement: Any) -> None:
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
            connection.exec_driver_sql("BEGIN")
        else:
            connection.execute(text("SET session_replication_role = replica"))
        connection.execute(statement)
        connection.commit()
        connection.invalidate()


# --- what is written is what is read -----------------------------------------------------------------------------


def test_a_chain_is_verified_as_it_was_written(engine: Engine, audit: Audit) -> None:
    assert audit.verify(ADA) == Verdict(0, START)
    five(engine)
    verdict = audit.verify(ADA)
    assert (verdict.count, verdict.head.number, verdict.broken) == (5, 5, None)
    assert audit.verify(ADA, expect=verdict.head) == verdict
    record(engine, Entry("ada", "later", ""))
    grown = audit.verify(ADA, expect=verdict.head)
    assert (grown.count, grown.broken) == (6, None)


def test_what_json_can_say_in_several_ways_is_verified(engine: Engine, audit: Audit) -> None:
    record(
        engine, Entry("ada\x00", "odd", "no \ud800\x00", (), ODD), Entry("ada", "int key", "", (), {"k": {2: 1, 10: 2}})
    )
    assert audit.verify(ADA).broken is None
    second, first = audit.page(ADA).items
    assert first.details == ODD
    assert str(first.details["float"]) == str(ODD["float"])
    assert (first.actor, first.reason) == ("ada\\x00", "no \\ud800\\x00")
    assert second.details == {"k": {"2": 1, "10": 2}}


def test_what_json_cannot_say_is_not_recorded(engine: Engine, audit: Audit) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        record(engine, Entry("ada", "odd", "", (), {"n": float("nan")}))
    assert audit.verify(ADA).count == 0


def test_who_approved_and_by_which_token_is_on_record(engine: Engine, audit: Audit) -> None:
    record(engine, Entry(Actor("ada", Role.ADMIN, "ci", 7, "grace"), "discard", "", items(1), {"n": 1}))
    [found] = audit.page(ADA).items
    assert found.actor == "ada"
    assert found.details == {"n": 1, "token": "ci", "approval": 7, "approved_by": "grace"}


def test_many_who_add_at_once_make_one_chain_without_gaps(engine: Engine, audit: Audit) -> None:
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(
            lambda n: record(engine, Entry(f"p{n}", "note", "", items(n)), Entry("x", "y", "")), range(40)
        ):
            pass
    verdict = audit.verify(ADA)
    assert (verdict.count, verdict.head.number, verdict.broken) == (80, 80, None)


def test_no_program_changes_or_removes_what_is_on_record(engine: Engine, audit: Audit) -> None:
    five(engine)
    for table in (actions, action_items):
        column = "reason" if table is actions else "state_after"
        for statement in (update(table).values({column: "x"}), delete(table)):
            with pytest.raises(DBAPIError, match="what was done is on record for good"), engine.begin() as connection:
                connection.execute(statement)
    assert audit.verify(ADA).broken is None


# --- whatever is changed is found --------------------------------------------------------------------------------

COLUMNS = [(table, column.name) for table in (actions, action_items) for column in table.c]


@pytest.mark.parametrize(("table", "column"), COLUMNS, ids=[f"{table.name}.{column}" for table, column in COLUMNS])
def test_one_flipped_byte_in_any_column_is_found(engine: Engine, audit: Audit, table: Table, column: str) -> None:
    five(engine)
    defenceless(engine)
    key = [table.c.id == 3] if table is actions else [table.c.action_id == 3, table.c.dead_letter_id == 12]
    saved = dump(engine)
    for statement in flips(engine, table, column, key):
        tamper(engine, statement)
        assert broken(audit.verify(ADA)) in ((3, "changed"), (3, "missing")), str(statement)
        restore(engine, saved)
    assert audit.verify(ADA).broken is None


def flips(engine: Engine, table: Table, column: str, key: list[Any]) -> Iterator[Any]:
    """A statement for each byte of a field, which flips a bit of it."""
    with engine.connect() as connection:
        value = connection.execute(select(table.c[column]).where(*key)).scalar_one()
        shown = f"CAST({column} AS BLOB)" if engine.dialect.name == "sqlite" else f"{column}::text"
        number = "id = 3" if table is actions else "action_id = 3 AND dead_letter_id = 12"
        raw = connection.execute(text(f"SELECT {shown} FROM {table.name} WHERE {number}")).scalar_one()
    change = update(table).where(*key)
    if isinstance(value, int):
        yield from (change.values({column: value ^ 1 << bit}) for bit in (3, 6, 20))
    elif isinstance(value, bytes):
        yield from (change.values({column: flipped(value, at, at % 8)}) for at in range(len(value)))
    elif engine.dialect.name == "sqlite":  # takes any bytes for a text
        for at in range(len(raw)):
            flipping = text(f"UPDATE {table.name} SET {column} = CAST(:raw AS TEXT) WHERE {number}")
            yield flipping.bindparams(raw=flipped(raw, at, at * 3 % 8))
    elif column == "at":
        yield from (change.values({column: value + timedelta(microseconds=10**power)}) for power in range(10))
    else:
        for at in range(len(raw)):
            changed = raw[:at] + chr(ord(raw[at]) ^ 1) + raw[at + 1 :]
            if column != "details" or is_json(engine, changed):  # PostgreSQL takes no other
                kind = "::json" if column == "details" else ""
                flipping = text(f"UPDATE {table.name} SET {column} = CAST(:raw AS text){kind} WHERE {number}")
                yield flipping.bindparams(raw=changed)


def is_json(engine: Engine, written: str) -> bool:
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT CAST(:raw AS text)::json"), {"raw": written})
        return True
    except DBAPIError:
        return False


def flipped(raw: bytes, at: int, bit: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]


def dump(engine: Engine) -> list[tuple[Table, list[dict[str, Any]]]]:
    with engine.connect() as connection:
        return [
            (table, [dict(row) for row in connection.execute(select(table)).mappings()])
            for table in (actions, action_items)
        ]


def restore(engine: Engine, saved: list[tuple[Table, list[dict[str, Any]]]]) -> None:
    for table, _ in reversed(saved):
        tamper(engine, delete(table))
    for table, rows in saved:
        tamper(engine, insert(table).values(rows))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (delete(actions).where(actions.c.id == 1), (1, "missing")),
        (delete(actions).where(actions.c.id == 3), (3, "missing")),
        (update(actions).where(actions.c.id == 3).values(id=6), (3, "missing")),
        (delete(actions).where(actions.c.id == 5), (5, "stray")),
        (delete(action_items).where(action_items.c.dead_letter_id == 11), (3, "changed")),
        (delete(action_items).where(action_items.c.action_id == 1), (1, "changed")),
        (update(action_items).where(action_items.c.dead_letter_id == 700).values(action_id=2), (2, "changed")),
        (update(action_items).where(action_items.c.dead_letter_id == 700).values(action_id=9), (3, "changed")),
        (insert(action_items).values(action_id=2, dead_letter_id=7, state_before="a", state_after="b"), (2, "changed")),
        (insert(action_items).values(action_id=0, dead_letter_id=7, state_before="a", state_after="b"), (0, "stray")),
    ],
)
def test_what_is_removed_added_or_moved_is_found(
    engine: Engine, audit: Audit, change: Any, found: tuple[int, str]
) -> None:
    five(engine)
    defenceless(engine)
    tamper(engine, change)
    assert broken(audit.verify(ADA)) == found


def test_two_actions_in_each_others_place_are_found(engine: Engine, audit: Audit) -> None:
    five(engine)
    defenceless(engine)
    for old, new in ((2, 99), (5, 2), (99, 5)):
        tamper(engine, update(actions).where(actions.c.id == old).values(id=new))
    assert broken(audit.verify(ADA)) == (2, "changed")


def test_a_removed_end_is_found_by_who_noted_it(engine: Engine, audit: Audit) -> None:
    five(engine)
    noted = audit.verify(ADA).head
    defenceless(engine)
    tamper(engine, delete(action_items).where(action_items.c.action_id >= 4))
    tamper(engine, delete(actions).where(actions.c.id >= 4))
    assert audit.verify(ADA).broken is None
    assert broken(audit.verify(ADA, expect=noted)) == (4, "cut off")


def test_a_chain_that_was_written_anew_is_found_by_who_noted_its_end(engine: Engine, audit: Audit) -> None:
    five(engine)
    noted = audit.verify(ADA).head
    defenceless(engine)
    tamper(engine, delete(action_items))
    tamper(engine, delete(actions))
    record(engine, *(Entry("eve", "nothing to see", "") for _ in range(9)))
    assert audit.verify(ADA).broken is None
    assert broken(audit.verify(ADA, expect=noted)) == (5, "rewritten")


def test_a_long_chain_and_a_large_action_are_verified_in_bounded_memory(engine: Engine, audit: Audit) -> None:
    many = [(row_id, "in review", "discarded") for row_id in range(1, 30_001)]
    record(engine, Entry("ada", "discard", "all of them", many))
    record(engine, *(Entry("ada", "note", "x" * 2_000, [many[0]]) for _ in range(6_000)))
    del many
    audit.verify(ADA)  # what is made once is made
    tracemalloc.start()
    verdict = audit.verify(ADA)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (verdict.count, verdict.broken) == (6_001, None)
    assert peak < 8_000_000, peak  # all of the rows at once take more than 25 MB


# --- lines to be kept elsewhere ----------------------------------------------------------------------------------


def exported(audit: Audit, after: int = 0) -> list[bytes]:
    return [written.encode() + b"\n" for written in audit.export(ADA, after)]


def test_what_was_exported_is_verified_without_the_database(engine: Engine, audit: Audit) -> None:
    five(engine)
    record(engine, Entry("ada", "odd", "no \ud800", (), ODD))
    lines, verdict = exported(audit), audit.verify(ADA)
    assert verify_lines(lines) == verdict
    assert verify_lines([], expect=None) == Verdict(0, START)
    rest = verify_lines(exported(audit, after=4), expect=verdict.head)
    assert (rest.count, rest.head, rest.broken) == (2, verdict.head, None)
    assert broken(verify_lines(lines[:-1], expect=verdict.head)) == (6, "cut off")
    assert broken(verify_lines([*lines[:2], *lines[3:]])) == (3, "changed")
    assert broken(verify_lines([lines[0], lines[2], lines[1]])) == (2, "changed")
    assert broken(verify_lines([*lines, b"\n"])) == (7, "changed")
    with pytest.raises(NotFound, match="There is no action 7"):
        exported(audit, after=7)


def test_one_flipped_byte_of_a_line_is_found(engine: Engine, audit: Audit) -> None:
    five(engine)
    lines, head = exported(audit), audit.verify(ADA).head
    dice = random.Random(5)
    for number, written in enumerate(lines):
        for at in range(len(written) - 1):
            changed = [*lines[:number], flipped(written, at, dice.randrange(8)), *lines[number + 1 :]]
            assert verify_lines(changed, expect=head).broken is not None, changed[number]


def test_a_line_holds_no_more_than_its_hash_covers(engine: Engine) -> None:
    at = now()
    told = {"actor": "a", "action": "b", "reason": "c", "details": {}, "items": items(7)}
    found = Recorded(1, at, **told, count=1, hash=chained(START.hash, 1, at, **told))  # type: ignore[arg-type]
    assert verify_lines([line(found, START.hash).encode()]).broken is None
    forged = line(replace(found, reason="d"), START.hash).encode()
    assert broken(verify_lines([forged])) == (1, "changed")


@pytest.mark.parametrize(
    "written", ["", "7", "7:", "x:" + "0" * 64, "7:" + "0" * 62, "-1:" + "0" * 64, "7:" + "g" * 64]
)
def test_what_is_no_end_of_a_chain_is_a_sentence(written: str) -> None:
    with pytest.raises(Invalid, match="is no end of a chain: that reads NUMBER:HASH"):
        Head.parse(written)
    assert Head.parse(str(Head(7, bytes(32)))) == Head(7, bytes(32))


# --- reading it --------------------------------------------------------------------------------------------------


def test_actions_are_found_by_who_what_when_and_dead_letter(engine: Engine, audit: Audit) -> None:
    five(engine)

    def ids(**filters: Any) -> list[int]:
        return [action.id for action in audit.page(ADA, **filters).items]

    assert ids() == [5, 4, 3, 2, 1]
    assert ids(actor="ada") == [4, 1]
    assert ids(action="discard") == [3, 1]
    assert ids(dead_letter=1) == [5, 4, 1]
    assert ids(dead_letter=1, actor="bob") == [5]
    assert ids(actor="' OR 1=1 --") == []
    third = next(action for action in audit.page(ADA).items if action.id == 3)
    assert (third.actor, third.count, third.dead_letter) == ("zoë", 3, 11)
    assert ids(since=third.at) == [5, 4, 3]
    assert ids(until=third.at) == [2, 1]
    assert audit.items(ADA, 3) == items(11, 12, 700)
    assert audit.items(ADA, 3, after=11, limit=1) == items(12)
    with pytest.raises(NotFound, match="There is no action 6"):
        audit.items(ADA, 6)


def test_pages_of_actions_follow_each_other_while_more_are_added(engine: Engine, audit: Audit) -> None:
    five(engine)
    found: list[Action] = []
    after = None
    while True:
        page = audit.page(ADA, after=after, limit=2)
        found += page.items
        record(engine, Entry("ada", "meanwhile", ""))
        if (after := page.next) is None:
            break
    assert [action.id for action in found] == [5, 4, 3, 2, 1]


def test_the_record_takes_a_right_and_so_does_unmasking(engine: Engine, audit: Audit) -> None:
    operator = Actor("eve", Role.OPERATOR)
    for call in (audit.page, audit.verify, audit.export, lambda who: audit.items(who, 1)):
        with pytest.raises(Forbidden, match="eve is an operator and may not read the audit: that takes an approver"):
            call(operator)
    with pytest.raises(Forbidden, match="may not unmask"), database.writing(engine) as connection:
        unmasked(connection, operator, 7, "in review", "curious")
    with pytest.raises(Invalid, match="give a reason"), database.writing(engine) as connection:
        unmasked(connection, ADA, 7, "in review", " ")
    with database.writing(engine) as connection:
        unmasked(connection, ADA, 7, "in review", " a customer called ")
    [found] = audit.page(ADA).items
    assert (found.action, found.reason, found.dead_letter) == ("unmask", "a customer called", 7)


def test_a_reason_says_something() -> None:
    assert given("  it is a test ") == "it is a test"
    with pytest.raises(Invalid) as caught:
        given("\n\t ")
    assert [fault.path for fault in caught.value.faults] == ["reason"]
