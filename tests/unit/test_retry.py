"""Retry policies and durations."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ackline.consumers import RetryPolicy, exponential, fixed, schedule
from ackline.consumers.retry import spread
from ackline.infra.durations import MAX_DELAY, seconds, written
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


@pytest.mark.parametrize(
    ("value", "shown"), [(7200, "2h"), (5400, "90m"), (90, "90s"), (172800, "2d"), (0.25, "0.25s"), (0, "0s")]
)
def test_a_duration_is_written_as_it_is_read(value: float, shown: str) -> None:
    assert written(value) == shown
    assert seconds(shown) == value


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
    assert exponential() == RetryPolicy(attempts=5, delays=(1, 2, 4, 8, 16, 32, 64, 128, 256, 300))


def test_a_first_delay_of_nothing_stays_nothing() -> None:
    assert exponential(first=0).delay(4) == 0


def test_a_schedule_has_one_more_try_than_delays() -> None:
    policy = schedule(["1s", "30s", 300])
    assert policy.attempts == 4
    assert [policy.delay(attempt) for attempt in (1, 2, 3)] == [1, 30, 300]
    assert schedule([]).attempts == 1


# --- jitter ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delay", "own", "other"), [(5, 5, 1), (8, 15, 5), (60, 60, 15), (3600, 3600, 900), (1, 1, 5), (0, 1, 5)]
)
def test_jitter_sends_half_of_a_herd_to_the_tier_before(delay: float, own: float, other: float) -> None:
    assert {spread(delay, chance) for chance in (0.0, 0.2, 0.499)} == {own}
    assert {spread(delay, chance) for chance in (0.5, 0.7, 0.999)} == {other}


def test_jitter_makes_a_long_delay_any_between_its_half_and_its_whole() -> None:
    assert [spread(10_000, chance) for chance in (0.0, 0.5, 1.0)] == [10_000, 7_500, 5_000]


def test_only_a_policy_with_jitter_takes_the_chance() -> None:
    assert fixed(delay="60s").delay(1, 0.9) == 60
    assert fixed(delay="60s", jitter=True).delay(1, 0.9) == 15


# --- which errors ------------------------------------------------------------------------------------------


def test_without_lists_every_error_is_retried() -> None:
    assert fixed().retries(ValueError())
    assert fixed().retries(SystemExit())


def test_with_retry_on_all_else_is_not_retried() -> None:
    policy = fixed(retry_on=(ConnectionError, TimeoutError))
    assert policy.retries(ConnectionResetError())
    assert policy.retries(TimeoutError())
    assert not policy.retries(ValueError())


def test_with_reject_on_all_else_is_retried() -> None:
    policy = fixed(reject_on=ValueError)
    assert not policy.retries(UnicodeDecodeError("utf-8", b"", 0, 1, "no"))
    assert policy.retries(KeyError())


def test_where_both_match_the_most_specific_class_decides() -> None:
    policy = fixed(retry_on=(OSError, BrokenPipeError), reject_on=ConnectionError)
    assert policy.retries(PermissionError())  # OSError
    assert not policy.retries(ConnectionResetError())  # ConnectionError before OSError
    assert policy.retries(BrokenPipeError())  # itself before ConnectionError


@pytest.mark.parametrize("wrong", ["ValueError", int, ValueError(), None])
def test_what_is_no_class_of_exceptions_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="is no class of exceptions"):
        fixed(retry_on=(wrong,))


def test_a_class_in_both_lists_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="KeyError cannot be in retry_on and in reject_on"):
        schedule(["1s"], retry_on=(KeyError, OSError), reject_on=KeyError)
