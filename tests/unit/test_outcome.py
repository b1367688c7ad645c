"""Reading what workers report: whatever is written there, it is an outcome that any database takes, or none."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ackline.dlq import outcome
from ackline.dlq.outcome import NotAnOutcome, Outcome
from ackline.infra.tables import DeliveryState
from ackline.infra.wire import MAX_ATTEMPT, MAX_REASON

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
EVENT: dict[str, Any] = {
    "event": "retried",
    "message_id": "m-1",
    "consumer": "billing",
    "type": "order.placed",
    "redrive": "r-1",
    "attempt": 2,
    "at": "2026-03-04T05:06:06.5+00:00",
    "due": "2026-03-04T05:06:11+00:00",
    "error": "ValueError: no such customer",
    "worker": "host:1",
    "key": "A-1",
}


def read(**changes: Any) -> Outcome:
    """The one outcome of the event with *changes*; raises what is said in its place."""
    return read_body(json.dumps([EVENT | changes]).encode())


def read_body(body: bytes) -> Outcome:
    (found,) = outcome.read(body, NOW)
    if isinstance(found, NotAnOutcome):
        raise found
    return found


def test_one_report_among_many_that_cannot_be_read_spoils_none() -> None:
    body = json.dumps([EVENT, 5, EVENT | {"attempt": 0}, EVENT | {"attempt": 2}]).encode()
    first, number, zero, second = outcome.read(body, NOW)
    assert (first, second) == (read(), read(attempt=2))
    assert isinstance(number, NotAnOutcome)
    assert isinstance(zero, NotAnOutcome)


def without(key: str) -> bytes:
    return json.dumps([{name: value for name, value in EVENT.items() if name != key}]).encode()


def test_a_report_is_read_whole() -> None:
    assert read() == Outcome(
        state=DeliveryState.WAITING_FOR_RETRY,
        message_id="m-1",
        consumer="billing",
        type="order.placed",
        redrive_item_id="r-1",
        attempt=2,
        at=NOW - timedelta(seconds=0.5),
        due_at=NOW + timedelta(seconds=4),
        error="ValueError: no such customer",
        worker="host:1",
        ordering_key="A-1",
    )


@pytest.mark.parametrize(
    ("event", "state"),
    [
        ("started", "being handled"),
        ("progress", "being handled"),
        ("retried", "waiting for a retry"),
        ("handled", "handled"),
        ("dead", "in review"),
    ],
)
def test_each_event_leads_to_a_state(event: str, state: str) -> None:
    assert read(event=event).state == state


@pytest.mark.parametrize("key", ["type", "redrive", "due", "error", "worker", "key"])
def test_what_a_report_may_lack(key: str) -> None:
    assert read_body(without(key)) == read(**{key: None})


def test_only_the_success_of_a_redrive_answers_one() -> None:
    assert read(event="handled").answers_redrive
    assert not read(event="handled", redrive=None).answers_redrive
    assert not read(event="dead").answers_redrive


def test_a_worker_whose_clock_is_ahead_reports_no_future() -> None:
    assert read(at="2999-01-01T00:00:00+00:00").at == NOW
    assert read(at="yesterday").at == NOW


def test_progress_is_a_number_from_0_to_1_with_a_text() -> None:
    found = read(event="progress", progress=0.4, progress_text="40 of 100 rows\x00")
    assert (found.progress, found.progress_text) == (0.4, "40 of 100 rows\\x00")
    assert read(event="progress", progress=1).progress == 1.0
    assert (read().progress, read().progress_text) == (None, None)
    assert len(read(progress=0.5, progress_text="ü" * 5_000).progress_text or "") <= MAX_REASON


@pytest.mark.parametrize("wrong", ["0.4", -0.1, 1.1, float("nan"), float("inf"), True, [], 10**400])
def test_progress_that_is_none_is_no_report(wrong: Any) -> None:
    with pytest.raises(NotAnOutcome):
        read(event="progress", progress=wrong)


def test_texts_are_bounded_and_fit_for_any_database() -> None:
    found = read(message_id="m\x00" * 500, consumer="\ud800", error="\x00" * 5_000, worker="w" * 500)
    texts = [found.message_id, found.consumer, found.error or "", found.worker]
    assert all("\x00" not in text and text.encode() for text in texts)
    assert [len(text.encode()) <= bound for text, bound in zip(texts, (255, 255, MAX_REASON, 255), strict=True)]


@pytest.mark.parametrize("key", ["event", "message_id", "consumer", "attempt", "at"])
@pytest.mark.parametrize("value", [None, 5.5, [], {}, True])
def test_what_a_report_must_say_in_its_own_kind(key: str, value: Any) -> None:
    with pytest.raises(NotAnOutcome):
        read(**{key: value})
    with pytest.raises(NotAnOutcome):
        read_body(without(key))


@pytest.mark.parametrize("attempt", [0, -1, MAX_ATTEMPT + 1, 10**30, "1"])
def test_an_attempt_that_none_can_be_is_no_report(attempt: Any) -> None:
    with pytest.raises(NotAnOutcome):
        read(attempt=attempt)


@pytest.mark.parametrize("key", ["type", "redrive", "due", "error", "worker"])
@pytest.mark.parametrize("value", [5, [], {"a": 1}, True])
def test_a_text_that_is_none_is_no_report(key: str, value: Any) -> None:
    with pytest.raises(NotAnOutcome):
        read(**{key: value})


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"null", b"5", b'"text"', b"[]", b"{}", b"[" * 100_000, b'{"a":' * 50_000, b"\x00", b"NaN"]
)
def test_what_is_no_report_at_all(body: bytes) -> None:
    with pytest.raises(NotAnOutcome):
        read_body(body)
