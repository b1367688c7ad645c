"""The decision: from what a handler did to what becomes of its delivery."""

from __future__ import annotations

import pytest

from ackline.consumers import (
    Ack,
    AlreadyHandled,
    Failure,
    Park,
    Reject,
    Retry,
    RetryLater,
    decide,
    exponential,
    fixed,
    schedule,
)
from ackline.infra.errors import ConfigurationError


def test_success_is_an_ack_whatever_the_policy() -> None:
    assert decide(None, fixed(attempts=1)) == Ack()


@pytest.mark.parametrize(("attempt", "delay"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0)])
def test_each_failure_below_the_bound_waits_as_the_policy_says(attempt: int, delay: float) -> None:
    assert decide(Failure(ValueError("no"), attempt), exponential(attempts=5)) == Retry(delay)


@pytest.mark.parametrize("attempt", [3, 4, 1_000_000])
def test_at_the_bound_and_beyond_it_goes_to_review_with_the_number_of_attempts(attempt: int) -> None:
    decision = decide(Failure(ValueError("no such account"), attempt), fixed(attempts=3))
    assert decision == Reject(f"failed after {attempt} attempts: ValueError: no such account")


def test_a_single_attempt_reads_as_one() -> None:
    assert decide(Failure(KeyError("iban"), 1), fixed(attempts=1)) == Reject("failed after 1 attempt: KeyError: 'iban'")


def test_an_error_without_words_is_called_by_its_type() -> None:
    assert decide(Failure(TimeoutError(), 1), fixed(attempts=1)) == Reject("failed after 1 attempt: TimeoutError")


def test_reject_goes_to_review_at_once_with_the_handlers_own_reason() -> None:
    assert decide(Failure(Reject("the account is closed"), 1), fixed(attempts=5)) == Reject("the account is closed")


def test_retry_later_waits_as_long_as_the_handler_says_not_as_the_policy_does() -> None:
    assert decide(Failure(RetryLater("90s"), 1), fixed(attempts=5, delay="1s")) == Retry(90.0)


def test_retry_later_counts_so_that_it_ends_at_the_bound() -> None:
    decision = decide(Failure(RetryLater("90s", "the partner is closed"), 5), fixed(attempts=5))
    assert decision == Reject("failed after 5 attempts: RetryLater: the partner is closed")


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), MemoryError(), RecursionError(), GeneratorExit()]
)
def test_what_is_no_ordinary_error_is_retried_like_any_other(error: BaseException) -> None:
    assert decide(Failure(error, 1), fixed(attempts=2, delay="5s")) == Retry(5.0)
    assert isinstance(decide(Failure(error, 2), fixed(attempts=2)), Reject)


def test_retry_later_with_a_delay_that_is_none_says_how_to_write_one() -> None:
    with pytest.raises(ConfigurationError, match="'soon' is no duration: write '250ms'"):
        RetryLater("soon")


def test_a_class_that_is_not_to_be_retried_goes_to_review_at_once() -> None:
    policy = fixed(attempts=5, retry_on=ConnectionError)
    assert decide(Failure(KeyError("iban"), 1), policy) == Reject("not retried: KeyError: 'iban'")
    assert decide(Failure(ConnectionResetError(), 1), policy) == Retry(5.0)


def test_retry_later_is_retried_whatever_classes_the_policy_names() -> None:
    assert decide(Failure(RetryLater("1m"), 1), fixed(retry_on=OSError, reject_on=Exception)) == Retry(60.0)


# --- the time budget ---------------------------------------------------------------------------------------


def test_a_retry_that_would_come_back_after_the_budget_goes_to_review_instead() -> None:
    policy = schedule(["5s", "1m", "15m", "15m"], give_up_after="20m")
    assert decide(Failure(OSError("down"), 3, failing_for=65), policy) == Retry(900.0)
    assert decide(Failure(OSError("down"), 4, failing_for=965), policy) == Reject(
        "given up after 4 attempts, for another would be later than 20m: OSError: down"
    )


def test_the_budget_knows_how_long_a_tier_really_is() -> None:
    # 16 s wait in the tier of a minute, which would end after the budget of half a minute.
    assert decide(Failure(OSError(), 1), fixed(delay="15s", give_up_after="30s")) == Retry(15.0)
    assert isinstance(decide(Failure(OSError(), 1), fixed(delay="16s", give_up_after="30s")), Reject)


def test_a_retry_just_within_the_budget_is_one() -> None:
    assert decide(Failure(OSError(), 2, failing_for=55), fixed(delay="5s", give_up_after="1m")) == Retry(5.0)
    assert isinstance(decide(Failure(OSError(), 2, failing_for=55.01), fixed(delay="5s", give_up_after="1m")), Reject)


def test_retry_later_is_bound_by_the_budget_and_so_is_a_delay_beyond_the_longest_tier() -> None:
    policy = fixed(give_up_after="3h")
    assert decide(Failure(RetryLater("2h"), 1, failing_for=3600), policy) == Retry(7200.0)
    assert isinstance(decide(Failure(RetryLater("2h"), 1, failing_for=3601), policy), Reject)


# --- jitter, middleware ------------------------------------------------------------------------------------


def test_jitter_takes_its_chance_and_leaves_what_the_handler_asked_for() -> None:
    policy = fixed(delay="1m", jitter=True)
    assert decide(Failure(OSError(), 1), policy, 0.1) == Retry(60.0)
    assert decide(Failure(OSError(), 1), policy, 0.9) == Retry(15.0)
    assert decide(Failure(RetryLater("1m"), 1), policy, 0.9) == Retry(60.0)


def test_what_was_handled_before_is_acked() -> None:
    assert decide(Failure(AlreadyHandled(), 7), fixed(attempts=1, reject_on=Exception)) == Ack()


@pytest.mark.parametrize("attempt", [1, 5, 1_000])
def test_what_is_parked_comes_back_whatever_the_attempt_and_the_policy(attempt: int) -> None:
    decision = decide(Failure(Park("5s"), attempt, failing_for=1e6), fixed(attempts=1, reject_on=Exception))
    assert decision == Park(5.0) != Park(6.0)
