"""Groups of equal failures: what they count, what people say of them, and when they are open again."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select, update

from ackline.dlq import arrivals, fingerprint
from ackline.dlq.deadletter import DeadLetter
from ackline.dlq.errors import Forbidden, Invalid, NotFound
from ackline.dlq.groups import Difference, Group, GroupFilter, Groups, Order, recount
from ackline.dlq.rights import Actor, Role
from ackline.dlq.store import Store
from ackline.dlq.transition import transitions
from ackline.infra import database
from ackline.infra.tables import (
    DeadLetterState,
    GroupStatus,
    actions,
    alerts,
    dead_letters,
    fingerprint_counts,
    fingerprint_rates,
    fingerprints,
)
from ackline.infra.wire import now
from tests.letters import handled, letter
from tests.sending import request_redrive, settle, take

ADA = Actor("ada", Role.OPERATOR)


@pytest.fixture
def store(engine: Engine) -> Store:
    return Store(engine, alerting=True)


@pytest.fixture
def groups(engine: Engine) -> Groups:
    return Groups(engine)


def dead(message_id: str, error: str = "ValueError", **more: Any) -> DeadLetter:
    """A dead letter of the kind *error*."""
    minute, redrive, consumer = more.pop("minute", 0), more.pop("redrive", None), more.pop("consumer", "billing")
    return replace(letter(message_id, minute=minute, redrive=redrive, consumer=consumer), error_type=error, **more)


def only(groups: Groups) -> Group:
    (group,) = groups.page(ADA).items
    return group


def redrive(store: Store, row_id: int) -> str:
    """Have the row redriven up to the broker's confirm; returns the item."""
    item_id = request_redrive(store, [row_id], "ada").items[row_id]
    take(store, 10, 30)
    settle(store, [item_id], {}, {}, again_in=1)
    return item_id


def told(engine: Engine) -> list[tuple[str, str]]:
    """(fingerprint, kind) of each alert, in order."""
    with engine.connect() as connection:
        return [
            (row.fingerprint, row.kind)
            for row in connection.execute(select(alerts.c.fingerprint, alerts.c.kind).order_by(alerts.c.id))
        ]


def differences(engine: Engine) -> list[Difference]:
    with database.reading(engine) as connection:
        return recount(connection)


# --- what they count --------------------------------------------------------------------------------------------------


def test_equal_failures_are_one_group(store: Store, groups: Groups) -> None:
    begun = now()
    store.ingest([dead("m-1"), dead("m-2"), dead("m-3", "KeyError")])
    store.ingest([dead("m-4"), dead("m-4")])
    value, key = sorted(groups.page(ADA).items, key=lambda group: -group.arrivals)
    assert (value.error_type, value.consumer, value.message, value.frame) == (
        "ValueError",
        "billing",
        "no such user",
        "",
    )
    assert (value.arrivals, key.arrivals) == (3, 1), "what was delivered twice failed once"
    assert value.counts == {"in review": 3, "redriving": 0, "handled": 0, "discarded": 0}
    assert sum(value.rate) == 3
    assert begun <= value.first_seen <= value.last_seen <= now()
    assert value.sample is not None
    assert value.sample.message_id == "m-4"
    assert (value.status, value.status_by, value.reopened) == ("open", "ackline reviewer", 0)
    assert groups.get(ADA, key.fingerprint) == key


def test_a_group_follows_its_dead_letters_through_their_states(store: Store, groups: Groups, engine: Engine) -> None:
    store.ingest([dead("m-1"), dead("m-2"), dead("m-3")])
    item = redrive(store, 1)
    redrive(store, 2)
    assert only(groups).counts == {"in review": 1, "redriving": 2, "handled": 0, "discarded": 0}
    store.outcomes([handled(item)])
    with database.writing(engine) as connection, transitions(connection) as moves:
        moves.move(
            [3],
            DeadLetterState.IN_REVIEW,
            DeadLetterState.DISCARDED,
            discarded_at=now(),
            discarded_by="ada",
            discard_reason="a test",
        )
    assert only(groups).counts == {"in review": 0, "redriving": 1, "handled": 1, "discarded": 1}
    assert differences(engine) == []


def test_a_redriven_dead_letter_that_fails_otherwise_is_in_another_group(
    store: Store, groups: Groups, engine: Engine
) -> None:
    store.ingest([dead("m-1"), dead("m-2")])
    first = only(groups)
    item = redrive(store, 2)
    store.ingest([dead("m-2", "KeyError", redrive=item, minute=5)])
    (then,) = (group for group in groups.page(ADA).items if group != first and group.error_type == "KeyError")
    before = groups.get(ADA, first.fingerprint)
    assert (before.counts["in review"], before.counts["redriving"], before.arrivals) == (1, 0, 2)
    assert (then.counts["in review"], then.arrivals) == (1, 1)
    assert then.sample is not None
    assert before.sample is not None
    assert (before.sample.message_id, then.sample.message_id) == ("m-1", "m-2")
    assert differences(engine) == []


def test_a_redriven_dead_letter_that_fails_again_counts_as_another_arrival(store: Store, groups: Groups) -> None:
    store.ingest([dead("m-1")])
    item = redrive(store, 1)
    again = dead("m-1", redrive=item, minute=5)
    store.ingest([again, again])
    assert (only(groups).arrivals, only(groups).counts["in review"]) == (2, 1)


def test_arrivals_are_shown_by_the_hour(store: Store, groups: Groups) -> None:
    this_hour = now().replace(minute=30)
    ago = [dead(f"m-{hours}", received_at=this_hour - timedelta(hours=hours)) for hours in (0, 2, 2.2, 22, 26)]
    store.ingest([replace(one, message_id=f"m-{number}") for number, one in enumerate(ago)])
    found = only(groups)
    assert sum(found.rate) == 4, "one was longer ago than a day"
    # The next hour may have begun meanwhile.
    assert (sum(found.rate[-2:]), sum(found.rate[-4:]), sum(found.rate[:2])) == (1, 3, 1)
    assert found.first_seen == this_hour - timedelta(hours=26)
    assert found.last_seen == this_hour


def test_rates_are_forgotten_when_they_are_old(store: Store, groups: Groups, engine: Engine) -> None:
    store.ingest([dead(f"m-{days}", received_at=now() - timedelta(days=days)) for days in range(10)])
    with database.writing(engine) as connection:
        while arrivals.forget_rates(connection, now() - arrivals.RATES_KEPT, limit=2):
            pass
        kept = connection.scalars(select(fingerprint_rates.c.bucket)).all()
    assert len(kept) == 7
    assert (only(groups).arrivals, sum(only(groups).rate)) == (10, 1)


def test_counters_that_are_wrong_are_named(store: Store, groups: Groups, engine: Engine) -> None:
    store.ingest([dead("m-1"), dead("m-2")])
    name = only(groups).fingerprint
    assert differences(engine) == []
    with engine.begin() as connection:
        connection.execute(update(fingerprint_counts).values(count=5))
        connection.execute(insert(fingerprint_counts).values(fingerprint="f", state="handled", count=1))
    assert differences(engine) == [Difference(name, "in review", 5, 2), Difference("f", "handled", 1, 0)]


def test_the_counts_are_right_whatever_several_reviewers_do_at_once(store: Store, engine: Engine) -> None:
    kinds = [f"Error{number}" for number in range(20)]
    batches = [[dead(f"m-{batch}-{number}", kinds[number % 20]) for number in range(60)] for batch in range(4)]
    for batch in batches:
        random.Random(len(batch)).shuffle(batch)

    def work(batch: list[DeadLetter]) -> int:
        return len(store.ingest(batch[:30])) + len(store.ingest(batch[20:]))

    with ThreadPoolExecutor(len(batches)) as pool:
        assert sum(pool.map(work, batches)) == 0
    assert differences(engine) == []
    with engine.connect() as connection:
        assert sorted(connection.execute(select(fingerprints.c.arrivals)).scalars()) == [12] * 20
    assert len(told(engine)) == 20, "each is told of once, whoever found it first"


def test_dead_letters_without_a_fingerprint_get_theirs(store: Store, groups: Groups, engine: Engine) -> None:
    store.ingest([dead(f"m-{number}", f"Error{number % 3}") for number in range(10)])
    store.outcomes([handled(redrive(store, 1))])
    before = groups.page(ADA).items
    with engine.begin() as connection:  # as an earlier version left them
        connection.execute(update(dead_letters).values(fingerprint=""))
        for table in (fingerprints, fingerprint_counts, fingerprint_rates, alerts):
            connection.execute(table.delete())
    done = []
    while count := complete(engine, 4):
        done.append(count)
    assert done == [4, 4, 2]
    assert differences(engine) == []
    after = groups.page(ADA).items
    assert [(group.fingerprint, group.counts, group.arrivals) for group in sorted_(after)] == [
        (group.fingerprint, group.counts, group.arrivals) for group in sorted_(before)
    ]
    assert told(engine) == [], "it is no news"


def complete(engine: Engine, limit: int) -> int:
    with database.writing(engine) as connection:
        return arrivals.complete(connection, now(), limit)


def sorted_(found: list[Group]) -> list[Group]:
    return sorted(found, key=lambda group: group.fingerprint)


# --- news -------------------------------------------------------------------------------------------------------------


def test_a_resolved_group_is_open_again_with_its_next_failure(store: Store, groups: Groups, engine: Engine) -> None:
    store.ingest([dead("m-1")])
    name = only(groups).fingerprint
    groups.triage(ADA, name, status=GroupStatus.RESOLVED, resolved_in="2.1")
    assert only(groups).status == "resolved"
    store.ingest([dead("m-2", "KeyError")])
    assert groups.get(ADA, name).status == "resolved", "another failed"
    store.ingest([dead("m-3")])
    found = groups.get(ADA, name)
    assert (found.status, found.status_by, found.reopened) == ("open", "ackline reviewer", 1)
    assert found.resolved_in == "2.1", "that is where it was thought to be"
    store.ingest([dead("m-4")])
    assert groups.get(ADA, name).reopened == 1
    other = fingerprint.of(dead("m", "KeyError")).id
    assert told(engine) == [(name, "new"), (other, "new"), (name, "reopened")]


def test_an_acknowledged_group_stays_so(store: Store, groups: Groups, engine: Engine) -> None:
    store.ingest([dead("m-1")])
    groups.triage(ADA, only(groups).fingerprint, status=GroupStatus.ACKNOWLEDGED)
    store.ingest([dead("m-2")])
    assert (only(groups).status, only(groups).status_by) == ("acknowledged", "ada")
    assert len(told(engine)) == 1


def test_nobody_is_told_when_nobody_asked(engine: Engine) -> None:
    Store(engine).ingest([dead("m-1")])
    assert told(engine) == []


def test_the_failure_of_a_redrive_opens_a_resolved_group_again(store: Store, groups: Groups) -> None:
    store.ingest([dead("m-1")])
    item = redrive(store, 1)
    groups.triage(ADA, only(groups).fingerprint, status=GroupStatus.RESOLVED)
    store.ingest([dead("m-1", redrive=item, minute=5)])
    assert (only(groups).status, only(groups).reopened) == ("open", 1)


# --- what people say --------------------------------------------------------------------------------------------------


def test_what_is_said_of_a_group_is_kept_and_on_record(store: Store, groups: Groups, engine: Engine) -> None:
    store.ingest([dead("m-1")])
    name = only(groups).fingerprint
    found = groups.triage(
        ADA, name, status=GroupStatus.ACKNOWLEDGED, owner=" billing team ", note="see #7", runbook="https://wiki/x"
    )
    assert (found.status, found.status_by, found.owner) == ("acknowledged", "ada", "billing team")
    assert (found.note, found.runbook) == ("see #7", "https://wiki/x")
    groups.triage(ADA, name, owner="")
    groups.triage(ADA, name, note="see #7")  # as it was
    assert only(groups).owner is None
    with engine.connect() as connection:
        rows = connection.execute(select(actions).order_by(actions.c.id)).all()
    assert [(row.actor, row.action, row.details["fingerprint"]) for row in rows] == [("ada", "triage", name)] * 2
    assert rows[0].details["before"] == {"status": "open", "owner": None, "note": None, "runbook": None}
    assert rows[1].details["before"] == {"owner": "billing team"}
    assert rows[1].details["after"] == {"owner": None}


@pytest.mark.parametrize(
    "wrong",
    [
        {"runbook": "javascript:alert(1)"},
        {"runbook": "https://"},
        {"runbook": "https://[x"},
        {"runbook": "https://a b"},
        {"note": "x" * 10_001},
        {"owner": "x" * 256},
        {"resolved_in": "2.1"},
        {"resolved_in": "2.1", "status": GroupStatus.OPEN},
    ],
    ids=lambda wrong: str(wrong)[:40],
)
def test_what_cannot_be_said_changes_nothing(store: Store, groups: Groups, wrong: dict[str, Any]) -> None:
    store.ingest([dead("m-1")])
    before = only(groups)
    with pytest.raises(Invalid):
        groups.triage(ADA, before.fingerprint, **wrong)
    assert only(groups) == before


def test_a_group_that_is_not_there_is_not_found(groups: Groups) -> None:
    for name in ("nobody", "\x00", "' OR 1=1 --"):
        with pytest.raises(NotFound, match="There is no group"):
            groups.get(ADA, name)
        with pytest.raises(NotFound):
            groups.triage(ADA, name, note="x")


def test_a_viewer_reads_and_says_nothing(store: Store, groups: Groups) -> None:
    store.ingest([dead("m-1")])
    viewer = Actor("eve", Role.VIEWER)
    (group,) = groups.page(viewer).items
    with pytest.raises(Forbidden, match="eve is a viewer and may not triage"):
        groups.triage(viewer, group.fingerprint, note="x")


# --- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", Order)
def test_pages_follow_each_other_without_a_gap(store: Store, groups: Groups, order: Order) -> None:
    at = now()
    store.ingest(
        [
            # Two at a time are of the same moment, and three have the same count.
            dead(f"m-{kind}-{number}", f"Error{kind}", received_at=at - timedelta(seconds=kind // 2))
            for kind in range(25)
            for number in range(1 + kind // 3)
        ]
    )
    seen: list[Group] = []
    after = None
    while True:
        page = groups.page(ADA, after=after, limit=4, order=order)
        seen += page.items
        after = page.next
        if after is None:
            break
        assert len(page.items) == 4
    assert len({group.fingerprint for group in seen}) == len(seen) == 25
    keys = [group.last_seen if order is Order.LAST_SEEN else group.counts["in review"] for group in seen]
    assert keys == sorted(keys, reverse=True)


@pytest.mark.parametrize("after", ["", "x", "[1]", '["x", "y"]', "[1e9, 1]", f'[{10**30}, "a"]', "[" * 10_000, "null"])
@pytest.mark.parametrize("order", Order)
def test_what_is_no_cursor_is_refused(groups: Groups, after: str, order: Order) -> None:
    with pytest.raises(Invalid):
        groups.page(ADA, after=after, order=order)


def test_groups_are_filtered(store: Store, groups: Groups) -> None:
    store.ingest(
        [
            dead("m-1", "TimeoutError", error_message="the bank did not answer within 5 s"),
            dead("m-2", "KeyError", consumer="shipping", error_message="100% of_it"),
            dead("m-3", "TypeError", error_message="no total"),
        ]
    )
    names = {group.error_type: group.fingerprint for group in groups.page(ADA).items}
    groups.triage(ADA, names["TypeError"], owner="ada", status=GroupStatus.RESOLVED)

    def found(**wanted: Any) -> set[str]:
        return {group.error_type for group in groups.page(ADA, GroupFilter(**wanted)).items}

    assert found() == {"TimeoutError", "KeyError", "TypeError"}
    assert found(status=GroupStatus.RESOLVED) == found(owner="ada") == {"TypeError"}
    assert found(owner="") == {"TimeoutError", "KeyError"}
    assert found(consumer="shipping") == {"KeyError"}
    assert found(text="BANK answer") == {"TimeoutError"}
    assert found(text="bank total") == set()
    assert found(text="%") == {"KeyError"}, "it is a word like another"
    assert found(text="_it") == {"KeyError"}
    assert found(text="'; DROP TABLE fingerprints; --") == set()
    assert found(text="\x00") == set()
    store.outcomes([handled(redrive(store, 1))])
    assert found(state=DeadLetterState.IN_REVIEW) == {"KeyError", "TypeError"}
    assert found(state=DeadLetterState.HANDLED) == {"TimeoutError"}
