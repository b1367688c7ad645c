"""The token bucket: given a rate and times, how many messages may begin."""

from __future__ import annotations

import pytest

from ackline.consumers.rate import Bucket, per_second
from ackline.infra.errors import ConfigurationError


@pytest.mark.parametrize(
    ("written", "rate"), [("100/s", 100), ("10/m", 10 / 60), ("1000/h", 1000 / 3600), ("0.5/s", 0.5), (" 5 / s ", 5)]
)
def test_a_rate_is_messages_in_a_second_a_minute_or_an_hour(written: str, rate: float) -> None:
    assert per_second(written) == pytest.approx(rate)


@pytest.mark.parametrize("wrong", ["", "100", "100/d", "/s", "-1/s", "1e3/s", "many/s", 100])
def test_what_is_no_rate_is_refused_in_a_sentence(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is no rate: write '100/s', '10/m' or '1000/h'"):
        per_second(wrong)


def test_a_rate_that_would_hold_a_message_for_longer_than_the_broker_lets_it_is_refused() -> None:
    Bucket(per_second("4/h"), 0.0)
    with pytest.raises(ConfigurationError, match="3 messages an hour in each process is too slow"):
        Bucket(per_second("3/h"), 0.0)


def test_one_second_s_worth_may_begin_at_once_and_no_more() -> None:
    bucket = Bucket(100.0, 0.0)
    assert [bucket.take(60, 0.0), bucket.take(60, 0.0), bucket.take(60, 0.0)] == [60, 40, 0]


def test_time_without_messages_saves_up_one_second_s_worth_at_most() -> None:
    bucket = Bucket(100.0, 0.0)
    bucket.take(100, 0.0)
    assert bucket.take(1000, 3600.0) == 100


def test_a_rate_below_one_a_second_lets_one_message_begin_at_a_time() -> None:
    bucket = Bucket(0.1, 0.0)
    assert bucket.take(5, 0.0) == 1
    assert [bucket.take(5, now) for now in (5.0, 9.9, 10.0, 10.0, 20.0)] == [0, 0, 1, 0, 1]


def test_over_any_time_no_more_begin_than_the_rate_and_one_second_s_worth() -> None:
    bucket = Bucket(7.0, 0.0)
    assert sum(bucket.take(3, step / 1000) for step in range(60_001)) == 7 * 60 + 7


def test_who_waits_as_long_as_it_says_gets_a_token() -> None:
    bucket = Bucket(0.3, 0.0)
    assert bucket.wait(0.0) == 0.0
    bucket.take(1, 0.0)
    for now in (0.0, 1.1, 3.3):
        left = bucket.wait(now)
        assert left == pytest.approx(1 / 0.3 - now)
    assert bucket.take(1, 3.3 + left) == 1


def test_a_high_rate_is_looked_at_a_hundred_times_a_second_not_once_for_each_message() -> None:
    bucket = Bucket(10_000.0, 0.0)
    bucket.take(10_000, 0.0)
    assert bucket.wait(0.0) == 0.01
    assert bucket.take(10_000, 0.01) == 100


def test_what_is_held_waits_a_minute_for_its_token_or_is_the_only_one() -> None:
    assert Bucket(100.0, 0.0).prefetch == 6000
    assert Bucket(0.5, 0.0).prefetch == 30
    assert Bucket(per_second("4/h"), 0.0).prefetch == 1
