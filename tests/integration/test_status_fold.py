"""The fold of what workers report: the same row for every order of the same reports, on both databases."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from ackline.dlq import tracking
from ackline.dlq.outcome import STATES, Outcome
from ackline.dlq.store import Store
from ackline.infra import database
from ackline.infra.tables import deliveries

BEGAN = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
FIRST, SECOND = "0199f4a0-0000-7000-8000-000000000000", "0199f4a0-0000-7000-9000-000000000000"


def told(
    event: str,
    attempt: int = 1,
    *,
    redrive: str = "",
    at: float = 0.0,
    worker: str = "host:1",
    progress: float | None = None,
) -> Outcome:
    """A report, *at* seconds after the beginning."""
    return Outcome(
        state=STATES[event],
        message_id="m-1",
        consumer="billing",
        type="order.placed",
        redrive_item_id=redrive,
        attempt=attempt,
        at=BEGAN + timedelta(seconds=at),
        due_at=BEGAN + timedelta(seconds=at + 5) if event == "retried" else None,
        error=f"failed {attempt}" if event in ("retried", "dead") else None,
        worker=worker,
        ordering_key="A-1",
        progress=progress,
        progress_text=None if progress is None else f"{progress:.0%}",
    )


#: Lives of one delivery, with the state, redrive and attempt that each must end in.
LIVES = {
    "handled after a retry": (
        [told("started", 1, at=0), told("retried", 1, at=1), told("started", 2, at=2), told("handled", 2, at=3)],
        ("handled", None, 2),
    ),
    "a worker died": (
        [told("started", 1, at=0), told("started", 1, at=5, worker="host:2"), told("retried", 1, at=6)],
        ("waiting for a retry", None, 1),
    ),
    "a worker died, and another has it": (
        [told("started", 2, at=0), told("started", 2, at=5, worker="host:2"), told("retried", 1, at=-5)],
        ("being handled", None, 2),
    ),
    "dead, and dead again after a redrive": (
        [
            told("retried", 1, at=1),
            told("dead", 2, at=2),
            told("started", 1, redrive=FIRST, at=10),
            told("dead", 1, redrive=FIRST, at=11),
        ],
        ("in review", FIRST, 1),
    ),
    "handled by the second redrive": (
        [
            told("dead", 3, at=2),
            told("dead", 2, redrive=FIRST, at=20),
            told("started", 1, redrive=SECOND, at=30),
            told("retried", 1, redrive=SECOND, at=31),
            told("handled", 2, redrive=SECOND, at=32),
        ],
        ("handled", SECOND, 2),
    ),
    "handled first, and by a late duplicate not": (
        [told("handled", 1, at=1), told("retried", 4, at=2), told("dead", 5, at=3), told("started", 1, redrive=FIRST)],
        ("handled", None, 1),
    ),
    "its handler tells how far it is": (
        [
            told("started", 1, at=0),
            told("progress", 1, at=1, progress=0.25),
            told("progress", 1, at=2, progress=0.5),
            told("progress", 1, at=3, progress=0.4),
        ],
        ("being handled", None, 1),
    ),
    "it failed after it told how far it was": (
        [told("progress", 2, at=1, progress=0.9), told("started", 2, at=0.5), told("retried", 2, at=2)],
        ("waiting for a retry", None, 2),
    ),
    "handled twice": (
        [told("handled", 1, at=1), told("handled", 1, at=4, worker="host:2"), told("handled", 1, redrive=FIRST, at=2)],
        ("handled", FIRST, 1),
    ),
}


def as_message(number: int, outcome: Outcome) -> Outcome:
    return replace(outcome, message_id=f"m-{number}")


def rows(engine: Engine) -> list[tuple[Any, ...]]:
    """All rows, without their message ids."""
    columns = [column for column in deliveries.c if column.name != "message_id"]
    with database.reading(engine) as connection:
        return [tuple(row) for row in connection.execute(select(*columns))]


@pytest.mark.parametrize("life", LIVES)
def test_the_row_is_the_same_whatever_the_order_the_repeats_and_the_batches(engine: Engine, life: str) -> None:
    reports, (state, redrive, attempts) = LIVES[life]
    seeded = random.Random(life)
    orders: list[Sequence[Outcome]] = []
    for permuted in permutations(reports):
        orders += [permuted, [*permuted, *seeded.choices(permuted, k=3)]]
    steps = max(map(len, orders))
    with database.writing(engine) as connection:
        # One report of each order at a time, each order on a message of its own: so the database does the folding ...
        for step in range(steps):
            batch = [as_message(n, order[step]) for n, order in enumerate(orders) if step < len(order)]
            tracking.fold(connection, batch)
        # ... and in two batches, so that half of it is done before the database sees them.
        for half in (0, 1):
            for n, order in enumerate(orders, len(orders)):
                cut = n % (len(order) + 1)
                tracking.fold(connection, [as_message(n, told) for told in (order[cut:] if half else order[:cut])])
    found = rows(engine)
    assert len(found) == 2 * len(orders)
    assert len(set(found)) == 1
    row = dict(zip([column.name for column in deliveries.c if column.name != "message_id"], found[0], strict=True))
    assert (row["state"], row["redrive"], row["attempts"]) == (state, redrive, attempts)
    assert row["ordering_key"] == "A-1"
    assert row["first_at"] == min(report.at for report in reports)
    # What is told of progress is that of the last report, and of none that came before it.
    last = max((report for report in reports if report.state == state), key=lambda report: report.at)
    assert (row["progress"], row["progress_text"]) == (last.progress, last.progress_text)


def test_deliveries_of_one_message_to_two_consumers_are_two_rows(engine: Engine) -> None:
    store = Store(engine)
    assert store.outcomes([told("handled"), replace(told("dead"), consumer="shipping")]) == []
    assert sorted((row[0], row[2]) for row in rows(engine)) == [("billing", "handled"), ("shipping", "in review")]


def test_one_report_that_the_database_does_not_take_does_not_fail_the_others(engine: Engine) -> None:
    # None that `outcome.read` makes; should there ever be one all the same.
    bad = replace(told("handled"), message_id="m-2", worker="\ud800")
    store = Store(engine)
    assert store.outcomes([told("started"), bad, replace(told("handled"), message_id="m-3")]) == [bad]
    assert sorted(row[2] for row in rows(engine)) == ["being handled", "handled"]


def test_a_redrive_that_nobody_asked_for_is_named_and_its_batch_is_stored(engine: Engine) -> None:
    stranger = told("handled", redrive=FIRST)
    assert Store(engine).outcomes([replace(told("started"), message_id="m-2"), stranger]) == [stranger]
    assert len(rows(engine)) == 2


def test_old_rows_are_forgotten_in_bounded_batches(engine: Engine) -> None:
    store = Store(engine)
    store.outcomes([as_message(n, told("handled", at=n)) for n in range(25)])
    before = BEGAN + timedelta(seconds=20)
    assert [store.forget_deliveries(before, 15) for _ in range(3)] == [15, 5, 0]
    with database.reading(engine) as connection:
        assert connection.execute(select(func.count(), func.min(deliveries.c.changed_at))).one() == (5, before)
