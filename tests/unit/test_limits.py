"""The token bucket of a key, by a clock that stands until it is moved."""

from __future__ import annotations

from ackline.producer.gateway.limits import Bucket


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def bucket(rate: int) -> tuple[Bucket, Clock]:
    clock = Clock()
    return Bucket(rate, clock), clock


def test_as_many_calls_as_the_rate_get_in_at_once_and_the_next_waits() -> None:
    limited, clock = bucket(5)
    assert [limited.admit() for _ in range(6)] == [0, 0, 0, 0, 0, 1]
    clock.now += 0.2
    assert [limited.admit() for _ in range(2)] == [0, 1]


def test_in_the_long_run_the_rate_holds_and_what_was_not_used_is_kept_for_a_second_only() -> None:
    limited, clock = bucket(10)
    admitted = 0
    for _ in range(1000):
        clock.now += 0.01
        admitted += limited.admit() == 0
    assert 109 <= admitted <= 110, "ten seconds, and what was there in the beginning"
    clock.now += 3600
    assert sum(limited.admit() == 0 for _ in range(100)) == 10


def test_a_batch_longer_than_the_rate_gets_in_and_what_follows_waits_until_it_is_paid_for() -> None:
    limited, clock = bucket(100)
    assert limited.admit() == 0
    assert limited.charge(499) == 0
    assert limited.admit() == 5, "400 owed and one wanted, at 100 a second: 4.01 s, in whole seconds"
    clock.now += 4
    assert limited.admit() == 1
    clock.now += 0.02
    assert limited.admit() == 0


def test_of_batches_that_came_in_together_only_the_first_is_let_through() -> None:
    limited, _ = bucket(2)
    assert (limited.admit(), limited.admit()) == (0, 0)
    assert limited.charge(499) == 0
    assert limited.charge(499) == 250


def test_one_a_second_still_takes_a_batch() -> None:
    limited, _ = bucket(1)
    assert limited.admit() == 0
    assert limited.charge(9) == 0
    assert limited.admit() == 10


def test_the_time_to_wait_is_never_less_than_a_second() -> None:
    limited, clock = bucket(1000)
    while limited.admit() == 0:
        pass
    clock.now += 0.0009
    assert limited.admit() == 1
