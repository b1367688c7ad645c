"""What follows from an attempt to call back, and how a call is signed."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from ackline.infra.errors import ConfigurationError
from ackline.infra.retry_after import retry_after
from ackline.infra.settings import Settings
from ackline.infra.tables import CallbackState
from ackline.producer import webhook
from ackline.producer.callbacks import LONGEST_RETRY_AFTER, PAUSES, Callback, decide, look_again_in
from ackline.producer.outbound import Answer, NoAnswer

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def owed(attempts: int) -> Callback:
    state = CallbackState.WAITING
    return Callback(
        "m-1", "order.placed", "https://hooks.example.com/", AT, '{"id": "m-1"}', state, attempts, AT, None, None
    )


def pause(attempts: int, outcome: Answer | NoAnswer) -> float:
    return (decide(owed(attempts), outcome, AT).next_at - AT).total_seconds()


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_ends_it(status: int) -> None:
    verdict = decide(owed(3), Answer(status, None), AT)
    assert (verdict.state, verdict.attempts, verdict.error) == (CallbackState.DELIVERED, 4, None)


@pytest.mark.parametrize("status", [101, 199, 300, 301, 302, 307, 400, 401, 404, 429, 500, 503, 599, 700])
def test_any_other_answer_is_followed_by_another_attempt(status: int) -> None:
    verdict = decide(owed(0), Answer(status, None), AT)
    assert (verdict.state, verdict.attempts) == (CallbackState.WAITING, 1)
    assert str(verdict.error).startswith(f"It answered {status}")


def test_no_answer_is_followed_by_another_attempt_and_its_reason_is_kept() -> None:
    verdict = decide(owed(0), NoAnswer("nobody there."), AT)
    assert (verdict.state, verdict.attempts, verdict.error) == (CallbackState.WAITING, 1, "nobody there.")


def test_the_pauses_grow_to_hours_and_end_within_a_day() -> None:
    failed = Answer(500, None)
    assert [pause(attempts, failed) for attempts in range(9)] == list(PAUSES)
    assert list(PAUSES) == sorted(PAUSES)
    assert timedelta(hours=20) < timedelta(seconds=sum(PAUSES)) < timedelta(hours=24)
    last = decide(owed(9), failed, AT)
    assert (last.state, last.attempts, last.error) == (
        CallbackState.FAILED,
        10,
        "It answered 500 Internal Server Error.",
    )


def test_gone_ends_it_at_once() -> None:
    verdict = decide(owed(0), Answer(410, "5"), AT)
    assert (verdict.state, verdict.error) == (CallbackState.FAILED, "It answered 410 Gone.")


def test_a_receiver_may_ask_for_a_longer_pause_within_bounds_and_for_no_shorter_one() -> None:
    assert pause(0, Answer(503, "120")) == 120
    assert pause(0, Answer(429, "1")) == PAUSES[0]
    assert pause(0, Answer(503, "999999999")) == LONGEST_RETRY_AFTER
    assert pause(8, Answer(503, "5")) == PAUSES[8]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("7", 7),
        (" 7 ", 7),
        ("-7", 0),
        ("7.5", 0),
        ("7 s", 0),
        ("٧", 0),
        ("9" * 400, 0),
        ("soon", 0),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60),
        ("Fri, 02 Jan 2026 03:05:05", 60),
        ("Fri, 02 Jan 2026 02:00:00 GMT", 0),
        ("Fri, 99 Jan 2026 02:00:00 GMT", 0),
        ("Fri, 02 Jan 99999999999 02:00:00 GMT", 0),
        ("Fri, 02 Jan 2026 02:00:00 +99999999999999999999", 0),
        ("Fri, 31 Dec 9999 23:59:59 -2359", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_anything_else_says_nothing(
    value: str | None, seconds: float | None
) -> None:
    found = retry_after(value, AT)
    assert found > LONGEST_RETRY_AFTER if seconds is None else found == seconds


def test_what_is_told_stays_the_same_in_every_attempt() -> None:
    for outcome in (Answer(200, None), Answer(410, None), Answer(500, None), NoAnswer("nobody there.")):
        assert decide(owed(0), outcome, AT).body == '{"id": "m-1"}'


def test_a_message_that_is_not_final_is_looked_at_again_after_a_tenth_of_its_age_or_of_the_time_until_it_is_due() -> (
    None
):
    assert [look_again_in(age) for age in (0, 1, 10, 100, 3000, 10_000_000)] == [0.5, 0.5, 1, 10, 300, 300]
    assert [look_again_in(-age) for age in (1, 10, 100, 3000, 10_000_000)] == [0.5, 1, 10, 300, 300]


# --- signatures -------------------------------------------------------------------------------------------------------


def test_a_signature_is_the_one_of_the_libraries_of_standard_webhooks() -> None:
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = webhook.headers(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', 1614265330)
    assert found == {
        "Webhook-Id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "Webhook-Timestamp": "1614265330",
        "Webhook-Signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_an_id_cannot_end_the_header_nor_move_the_dots_of_what_is_signed() -> None:
    assert webhook.identifier("01998c1e-6d9b-7cc4-a5a5-54e5c1b1a0f2") == "01998c1e-6d9b-7cc4-a5a5-54e5c1b1a0f2"
    assert webhook.identifier("a.1\r\nX: ü/%") == "a%2E1%0D%0AX%3A%20%C3%BC%2F%25"
    assert webhook.identifier("a.b") != webhook.identifier("a%2Eb")


@pytest.mark.parametrize("size", [24, 32, 64])
def test_a_secret_of_ones_own_is_used(size: int, tmp_path: Path) -> None:
    key = bytes(range(size))
    settings = Settings(data_dir=tmp_path, callback_secret=webhook.shown(key))
    assert webhook.key(settings, create_engine("sqlite://")) == key


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "secret",
        base64.b64encode(bytes(32)).decode(),
        "whsec_" + base64.b64encode(bytes(23)).decode(),
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        "whsec_" + base64.b64encode(bytes(32)).decode() + "!",
        "whsec_" + base64.b64encode(bytes(32)).decode().rstrip("="),
        "whsec_ü" + base64.b64encode(bytes(32)).decode(),
    ],
)
def test_a_secret_that_is_none_is_refused_with_how_to_make_one(secret: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, callback_secret=secret)
    with pytest.raises(ConfigurationError, match=r"ACKLINE_CALLBACK_SECRET .*openssl rand -base64 32") as caught:
        webhook.key(settings, create_engine("sqlite://"))
    assert len(secret) < 10 or secret not in str(caught.value)
