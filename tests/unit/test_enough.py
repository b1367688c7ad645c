"""How much a worker holds unacked, by the time that its handlers take."""

from __future__ import annotations

from ackline.consumers.runner import HELD_SECONDS, enough


def test_quick_handlers_are_given_work_for_a_second() -> None:
    assert enough(0.001, concurrency=8) == 8 + 8 * HELD_SECONDS / 0.001


def test_slow_handlers_are_given_little_more_than_what_is_in_them() -> None:
    assert enough(60.0, concurrency=8) == 9


def test_one_that_takes_long_does_not_starve_the_quick_ones_beside_it() -> None:
    assert enough(0.01, concurrency=8, long=1) == 8 + 7 * HELD_SECONDS / 0.01


def test_nothing_is_held_besides_when_all_take_long() -> None:
    assert enough(0.01, concurrency=8, long=8) == 8
    assert enough(0.01, concurrency=8, long=9) == 8


def test_a_batch_is_as_much_as_its_messages() -> None:
    assert enough(1.0, concurrency=2, size=100) == 200 + 2
