"""Retry policies and durations."""

from __future__ import annotations

import math

import pytest

from ackline.consumers import RetryPolicy, exponential, fixed
from ackline.infra.durations import MAX_DELAY, seconds
from ackline.infra.errors import ConfigurationError


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("250ms", 0.25),
        ("1s", 1),
        ("1.5 s", 1.5),
        ("5m", 300),
        ("2h", 7200),
        ("1d", 86400),
        (" 10 ", 10),
        (0, 0),
        (0.5, 0.5),
        ("3650d", MAX_DELAY),
    ],
)
def test_a_duration_is_a_number_of_seconds_or_has_a_unit(written: str | float, value: float) -> None:
    assert seconds(written) == value


@pytest.mark.parametrize(
    "written", ["", "soon", "-1s", "1w", "1s 5ms", "1e3", "nan", -1, math.nan, math.inf, "3651d", MAX_DELAY + 1]
)
def test_what_is_no_duration_or_longer_than_ten_years_is_refused_in_a_sentence(written: str | float) -> None:
    with pytest.raises(ConfigurationError, match="is no duration: write '250ms', '1s', '5m', '2h', '1d', or seconds"):
        seconds(written)


def test_exponential_doubles_up_to_its_cap() -> None:
    policy = exponential(attempts=9, first="1s", cap="10s")
    assert [policy.delay(attempt) for attempt in range(1, 9)] == [1, 2, 4, 8, 10, 10, 10, 10]


def test_fixed_waits_the_same_each_time() -> None:
    assert {fixed(attempts=4, delay="5s").delay(attempt) for attempt in range(1, 5)} == {5.0}


def test_exponential_never_waits_longer_than_its_cap_however_late_the_attempt() -> None:
    assert exponential(attempts=2_000_000).delay(1_000_000) == 300


def test_a_first_delay_above_the_cap_is_the_cap() -> None:
    assert exponential(first="1h", cap="5m").delay(1) == 300


@pytest.mark.parametrize("attempts", [0, -1])
def test_a_policy_without_a_first_attempt_is_refused(attempts: int) -> None:
    with pytest.raises(ConfigurationError, match="the first try counts, so it is at least 1"):
        exponential(attempts=attempts)


def test_the_default_policy_is_five_attempts_from_a_second_to_five_minutes() -> None:
    assert exponential() == RetryPolicy(attempts=5, first=1.0, cap=300.0, factor=2.0)
