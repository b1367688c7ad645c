"""What the figures of the database and of the broker mean together."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from ackline.dlq.broker_counts import TO_REVIEWER, Counts, Depth, _depth
from ackline.dlq.ledger import _account, _limits, _missing, _takers, _unsure
from ackline.dlq.ledger_rows import Known, Place
from ackline.infra.names import OUTCOMES

AT = datetime(2026, 3, 4, tzinfo=UTC)
HANDLED = Known({Place.HANDLED: 5, Place.HANDLED_AFTER_REVIEW: 1, Place.IN_REVIEW: 2, Place.DISCARDED: 1})


def counts(billing: Depth | None = None, *, tiers: int = 0, outcomes: int = 0, problem: str | None = None) -> Counts:
    return Counts({"billing": billing}, tiers, dict.fromkeys(TO_REVIEWER, 0) | {OUTCOMES: outcomes}, None, problem)


def figures(known: Known, most: int, tiers: int = 0) -> dict[str, int]:
    """The figures that are not 0; accepted is their sum."""
    account = _account("billing", known, most, tiers)
    columns = ("handled", "waiting", "retrying", "in_review", "redriving", "discarded", "missing", "unclear")
    found = {column: value for column in columns if (value := getattr(account, column))}
    assert account.accepted == sum(found.values()) - account.unclear
    return found


def test_what_is_over_needs_no_queue() -> None:
    assert figures(HANDLED, most=0) == {"handled": 6, "in_review": 2, "discarded": 1}
    assert _missing({"billing": HANDLED}, {"billing": 0}, 0) == 0


@pytest.mark.parametrize(
    ("most", "tiers", "expected"),
    [
        (6, 0, {"waiting": 4, "retrying": 2}),
        (4, 2, {"waiting": 4, "retrying": 2}),
        (0, 9, {"waiting": 4, "retrying": 2}),
        (4, 1, {"waiting": 3, "retrying": 2, "missing": 1}),
        (0, 0, {"missing": 6}),
    ],
)
def test_what_is_unfinished_is_in_the_queue_or_in_a_tier_or_missing(
    most: int, tiers: int, expected: dict[str, int]
) -> None:
    known = Known({Place.BEING_HANDLED: 1, Place.WAITING_FOR_RETRY: 2}, untold=3)
    assert figures(known, most, tiers) == expected
    assert _missing({"billing": known}, {"billing": most}, tiers) == expected.get("missing", 0)


def test_the_tiers_hold_what_is_missing_in_one_queue_only_once() -> None:
    two = {"billing": Known(untold=2), "mail": Known(untold=2)}
    none = {"billing": 0, "mail": 0}
    assert [_missing(two, none, tiers) for tiers in (5, 4, 3, 0)] == [0, 0, 1, 4]


def test_what_a_worker_sent_to_review_and_is_not_there_is_missing() -> None:
    known = Known({Place.REPORTED_DEAD: 1})
    assert figures(known, most=5) == {"missing": 1}
    assert _missing({"billing": known}, {"billing": 5}, 5) == 1


@pytest.mark.parametrize(("most", "expected"), [(0, {"unclear": 3}), (2, {"waiting": 2, "unclear": 1})])
def test_what_may_be_from_before_a_consumer_is_its_own_as_far_as_its_queue_shows(
    most: int, expected: dict[str, int]
) -> None:
    assert figures(Known(doubtful=3), most) == expected
    assert _missing({"billing": Known(doubtful=3)}, {"billing": most}, 0) == 0


def test_what_workers_hold_counts_where_it_is_counted_and_makes_unsure_where_it_is_not() -> None:
    known = {"billing": Known(untold=3)}
    assert Depth(1, held=2).most == 3
    assert Depth(0, held=0, together=3).most == 3, "a worker took them between the two counts"
    assert Depth(1).most is None
    for depth, ready, with_held in ((None, 0, 0), (Depth(1), 1, 1), (Depth(1, held=2), 1, 3)):
        assert _limits(known, counts(depth)) == {"billing": ready}
        assert _limits(known, counts(depth), with_held=True) == {"billing": with_held}
    said = _unsure(known, counts(Depth(1), problem="It does not answer."), is_settled=True, waited=30)
    assert said == "Workers of billing may hold messages, which is not known: It does not answer."
    assert _unsure(known, counts(Depth(1, held=1)), is_settled=True, waited=30) is None
    assert _unsure(known, counts(None), is_settled=True, waited=30) is None


def test_what_is_on_its_way_to_the_reviewer_makes_unsure() -> None:
    known = {"billing": Known(untold=1)}
    said = _unsure(known, counts(Depth(0, held=0), outcomes=1200), is_settled=False, waited=30)
    assert said == "Messages wait for the reviewer (1,200 in ackline.outcomes): does it run? Then ask again."
    said = _unsure(known, counts(Depth(0, held=0)), is_settled=False, waited=5)
    assert said == "5 s were too short to tell what moves from what is missing: wait for 24 s."


def test_the_consumers_of_a_type_are_the_applications_else_those_that_had_it_and_are_there() -> None:
    seen = {("billing", "order.placed"): AT, ("billing", "order.odd"): AT, ("gone", "order.odd"): AT, ("", "x"): AT}
    found = _takers({"order.placed": ["mail"]}, seen, Counts({"billing": Depth(0), "gone": None}, 0, {}, None))
    assert found == {"order.placed": ("mail",), "order.odd": ("billing",)}


def test_a_consumers_queues_are_that_of_its_name_or_its_shards() -> None:
    def queue(name: str, held: int | None, **stats: int) -> dict[str, object]:
        return {"name": name, "messages_unacknowledged": held, "messages": 7, "message_stats": stats}

    live = [queue("billing", 1, publish=9, ack=8), queue("billing.eu", 5), queue("mail.1", 2), queue("mail.2", 3)]
    assert _depth(4, "billing", live) == Depth(4, 1, 9, 8, 7)
    assert _depth(4, "mail", live) == Depth(4, 5, 0, 0, 14)
    assert _depth(4, "mail", [queue("mail.1", None)]).held is None
