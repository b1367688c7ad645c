"""The decision: from what a handler did to what becomes of its delivery."""

from __future__ import annotations

import pytest

from ackline.consumers import Ack, Failure, Reject, Retry, RetryLater, decide, exponential, fixed
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
