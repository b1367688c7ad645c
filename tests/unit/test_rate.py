"""The token bucket: given a rate and times, how many messages may begin."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ackline.consumers.delivery import Delivery
from ackline.consumers.rate import Bucket, Throttle, per_second
from ackline.infra.errors import ConfigurationError
from ackline.infra.properties import Properties


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
    Bucket(per_second("10/h"), 0.0)
    with pytest.raises(ConfigurationError, match="9 messages an hour in each process is too slow"):
        Bucket(per_second("9/h"), 0.0)


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


def test_what_is_held_waits_two_seconds_for_its_token_or_is_the_only_one() -> None:
    assert Bucket(100.0, 0.0).prefetch == 200
    assert Bucket(1.5, 0.0).prefetch == 3
    assert Bucket(per_second("10/h"), 0.0).prefetch == 1


class Bench:
    """A throttle with a clock and timers that the test runs."""

    def __init__(self, rate: float) -> None:
        self.now = 0.0
        self.begun: list[int] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.generation = 0
        self.throttle = Throttle(Bucket(rate, 0.0), self.submit, self.later, lambda: self.now)

    def submit(self, deliveries: list[Delivery]) -> None:
        self.begun += [delivery.tag for delivery in deliveries]

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        self.timers.append((self.now + seconds, function))

    def add(self, *tags: int) -> None:
        source = self
        self.throttle.add(
            [Delivery("", "", Properties(), b"", tag=t, generation=self.generation, source=source) for t in tags]
        )

    def run_timer(self) -> None:
        [(at, function)] = self.timers
        self.timers.clear()
        self.now = at
        function()


def test_deliveries_begin_in_order_as_the_rate_allows() -> None:
    bench = Bench(2.0)
    bench.add(1, 2, 3)
    bench.add(4, 5)
    assert bench.begun == [1, 2]
    seen = []
    while bench.timers:
        bench.run_timer()
        seen.append((bench.now, list(bench.begun)))
    assert seen == [(0.5, [1, 2, 3]), (1.0, [1, 2, 3, 4]), (1.5, [1, 2, 3, 4, 5])]


def test_nothing_begins_between_two_tokens_however_often_something_is_delivered() -> None:
    bench = Bench(1.0)
    for tag in range(1, 50):
        bench.now = tag / 100
        bench.add(tag)
    assert bench.begun == [1]
    assert len(bench.timers) == 1


def test_what_is_taken_back_does_not_begin() -> None:
    bench = Bench(1.0)
    bench.add(1, 2, 3, 4)
    assert [delivery.tag for delivery in bench.throttle.withdraw(lambda delivery: delivery.tag != 3)] == [2, 4]
    bench.run_timer()
    assert bench.begun == [1, 3]
    assert bench.timers == []
    assert bench.throttle.withdraw() == []


def test_what_a_lost_connection_made_void_takes_no_token() -> None:
    bench = Bench(1.0)
    bench.add(1, 2, 3)
    bench.generation += 1
    bench.add(1)
    bench.run_timer()
    assert bench.begun == [1, 1]
    assert bench.timers == []
