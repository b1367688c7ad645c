"""How many messages of a redrive are due, and when it waits or stops."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ackline.dlq.pacing import ALL, STAGES, Facts, Send, Stop, Wait, following, full_at, next_step

AT = datetime(2026, 1, 2, 3, tzinfo=UTC)
FACTS = Facts(rate=None, paced_at=AT, paced_from=0, sent=0, run_from=0, stage=ALL, planned=True, unanswered=False)


def after(seconds: float) -> datetime:
    return AT + timedelta(seconds=seconds)


def test_without_a_rate_and_a_canary_everything_is_due_a_batch_at_a_time() -> None:
    assert next_step(FACTS, AT, 500) == Send(500, ALL)


def test_a_canary_goes_from_one_to_six_to_31_to_156_to_all() -> None:
    stages = [STAGES[0]]
    while stages[-1] != ALL:
        stages.append(following(stages[-1]))
    assert stages == [1, 6, 31, 156, ALL]


def test_each_stage_sends_what_is_missing_and_the_next_begins_when_all_has_been_answered() -> None:
    facts = replace(FACTS, stage=1)
    assert next_step(facts, AT, 500) == Send(1, 1)
    assert next_step(replace(facts, sent=1, unanswered=True), AT, 500) == Wait(
        "canary: waits for what becomes of the first message"
    )
    assert next_step(replace(facts, sent=1), AT, 500) == Send(5, 6)
    assert next_step(replace(facts, stage=6, sent=4, unanswered=True), AT, 500) == Send(2, 6)
    assert next_step(replace(facts, stage=31, sent=31, unanswered=True), AT, 500) == Wait(
        "canary: waits for what becomes of the first 31"
    )
    assert next_step(replace(facts, stage=156, sent=156), AT, 500) == Send(500, ALL)


def test_a_run_that_is_resumed_counts_its_own_messages_only() -> None:
    assert next_step(replace(FACTS, stage=1, sent=6, run_from=6), AT, 500) == Send(1, 1)
    assert next_step(replace(FACTS, stage=6, sent=7, run_from=6, unanswered=True), AT, 500) == Send(5, 6)


def test_trouble_stops_it_whatever_else_is_so() -> None:
    assert next_step(replace(FACTS, trouble="it failed", full="full", planned=False), AT, 500) == Stop("it failed")


def test_a_full_queue_makes_it_wait_and_says_so() -> None:
    assert next_step(replace(FACTS, full="the queue is full"), AT, 500) == Wait("the queue is full")


def test_when_nothing_is_planned_any_more_there_is_nothing_to_do() -> None:
    assert next_step(replace(FACTS, planned=False), AT, 500) == Wait()


@pytest.mark.parametrize(
    ("rate", "seconds", "sent", "due"),
    [
        (100, 0.0, 0, 1),  # the first one at once
        (100, 0.5, 1, 50),
        (100, 0.5, 51, 0),
        (100, 1.0, 51, 50),
        (0.5, 1.9, 1, 0),
        (0.5, 2.0, 1, 1),
        (0.1, -5.0, 0, 1),  # a clock that was set back costs no more than the time
        (0.1, -15.0, 0, 0),
    ],
)
def test_a_rate_has_so_many_due(rate: float, seconds: float, sent: int, due: int) -> None:
    step = next_step(replace(FACTS, rate=rate, sent=sent), after(seconds), 500)
    assert step == (Send(due, ALL) if due else Wait())


def test_what_was_missed_is_not_caught_up_with_beyond_a_second() -> None:
    assert next_step(replace(FACTS, rate=10), after(3600), 500) == Send(10, ALL, pace_anew=True)
    assert next_step(replace(FACTS, rate=0.2), after(3600), 500) == Send(1, ALL, pace_anew=True)


def test_a_rate_holds_within_a_canary_too() -> None:
    assert next_step(replace(FACTS, rate=2, stage=31, sent=6, paced_from=6), after(0.6), 500) == Send(2, 31)


def test_a_queue_is_full_at_ten_seconds_of_the_rate_but_not_below_a_thousand() -> None:
    assert [full_at(rate) for rate in (1, 100, 200, None)] == [1000, 1000, 2000, 5000]
