"""One delivery through its handler: what is to be sent, and what becomes of the original."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, Field, SecretStr, field_validator

from ackline.consumers import AlreadyHandled, Context, Park, Reject, RetryLater, RetryPolicy, fixed
from ackline.consumers.consumer import Consumer
from ackline.consumers.delivery import Delivery
from ackline.consumers.handling import Outgoing, Report, Settlement, Way, handle, started
from ackline.infra import wire
from ackline.infra.names import DEAD, MESSAGES, RETURN
from ackline.infra.properties import Properties
from ackline.infra.table import Table
from ackline.producer import message


@message("test.handling.placed")
class Placed(BaseModel):
    id: str
    total: float = 0.0
    card: SecretStr | None = None

    @field_validator("id")
    @classmethod
    def _breaks(cls, value: str) -> str:
        if value == "breaks the contract's own code":
            raise KeyError("a bug in a validator")
        return value


@message("test.handling.paid")
class Paid(BaseModel):
    id: str


TYPE = "test.handling.placed"
BODY = b'{"id": "A-1"}'
WORKER = "worker-1:4711"


def _handled(
    *,
    raises: BaseException | None = None,
    does: Callable[[Context], Any] = lambda context: None,
    body: bytes = BODY,
    exchange: str = MESSAGES,
    routing_key: str = TYPE,
    retry: RetryPolicy | None = None,
    tries: list[tuple[BaseModel, Context]] | None = None,
    **properties: Any,
) -> Settlement:
    """What follows from a delivery to the consumer `billing`, whose handler *does* something, then *raises*."""

    def call(instance: BaseModel, context: Context) -> None:
        if tries is not None:
            tries.append((instance, context))
        does(context)
        if raises is not None:
            raise raises

    return handle(_way(call, retry), _delivery(body, exchange, routing_key, **properties))


def _way(call: Callable[..., Any], retry: RetryPolicy | None = None) -> Way:
    billing = Consumer("billing", call, {TYPE: Placed}, retry or fixed(attempts=3, delay="5s"), True, False)
    return Way(billing, WORKER, call, wants_context=True)


def _delivery(body: bytes = BODY, exchange: str = MESSAGES, routing_key: str = TYPE, **properties: Any) -> Delivery:
    given = Properties(**{"message_id": "m-1", "type": TYPE} | properties)
    # As it comes from the wire: raw.
    return Delivery(exchange, routing_key, Properties.from_wire(given.wire), body)


def _returned(**arguments: Any) -> Settlement:
    """The same for a delivery that comes back through `ackline.return`."""
    headers = {wire.ORIGINAL: {"exchange": MESSAGES, "routing_key": TYPE}} | arguments.pop("headers", {})
    return _handled(exchange=RETURN, routing_key="billing", headers=headers, **arguments)


def _only(settlement: Settlement) -> Outgoing:
    assert not settlement.reject
    (outgoing,) = settlement.outgoing
    return outgoing


def _headers(settlement: Settlement) -> dict[str, Any]:
    return _only(settlement).properties.headers.decoded()


def _history(settlement: Settlement) -> list[dict[str, Any]]:
    history: list[dict[str, Any]] = json.loads(_headers(settlement)[wire.HISTORY])
    return history


def _reason(settlement: Settlement) -> str:
    """The reason of a dead letter."""
    assert _only(settlement).exchange == DEAD
    reason = _headers(settlement)[wire.REASON]
    assert isinstance(reason, str)
    return reason


# --- success -----------------------------------------------------------------------------------------------


def test_success_sends_nothing_and_acks() -> None:
    tries: list[tuple[BaseModel, Context]] = []
    assert _handled(tries=tries) == Settlement()
    ((instance, context),) = tries
    assert instance == Placed(id="A-1")
    assert (context.consumer, context.id, context.type, context.attempt) == ("billing", "m-1", TYPE, 1)


def test_what_the_handler_enlisted_is_sent_before_the_ack() -> None:
    outgoing = _only(_handled(does=lambda context: context.publish(Paid(id="A-1"))))
    assert (outgoing.exchange, outgoing.routing_key) == (MESSAGES, "test.handling.paid")
    assert outgoing.body == b'{"id":"A-1"}'


def test_what_a_failed_handler_enlisted_is_not_sent() -> None:
    settlement = _handled(does=lambda context: context.publish(Paid(id="A-1")), raises=ValueError("no"))
    assert _only(settlement).exchange == "ackline.retry.5s"


def test_an_enlisted_message_that_can_never_be_sent_is_a_dead_letter_that_says_so() -> None:
    settlement = _handled(does=lambda context: context.publish(Paid(id="A-1")))
    assert settlement.fallback is not None
    dead = settlement.fallback(ValueError("larger than the broker takes"))
    assert _reason(dead) == (
        "the handler succeeded, but a message that it published cannot be sent: larger than the broker takes"
    )
    assert _only(dead).body == BODY


def test_a_redriven_delivery_reports_that_it_was_handled() -> None:
    settlement = _returned(headers={wire.REDRIVE: "r-7", wire.ATTEMPT: 2})
    assert settlement.outgoing == ()
    assert _reported(settlement) == _event("handled", attempt=2) | {"redrive": "r-7"}


def test_a_redriven_delivery_that_fails_reports_nothing_and_stays_redriven() -> None:
    settlement = _returned(headers={wire.REDRIVE: "r-7"}, raises=ValueError("no"))
    assert _only(settlement).exchange == "ackline.retry.5s"
    assert _headers(settlement)[wire.REDRIVE] == "r-7"
    assert settlement.report is None


# --- what is reported of tracked messages ------------------------------------------------------------------

TRACKED = {wire.TRACK: True}


def _event(event: str, attempt: int = 1) -> dict[str, Any]:
    """A report without its times."""
    return {
        "event": event,
        "message_id": "m-1",
        "consumer": "billing",
        "type": TYPE,
        "attempt": attempt,
        "worker": WORKER,
    }


def _reported(found: Settlement | Report | None) -> dict[str, Any]:
    """The report, without the time at which it was made."""
    report = found.report if isinstance(found, Settlement) else found
    assert report is not None
    event: dict[str, Any] = json.loads(report.event)
    assert report.routing_key == f"{event['event']}.billing"
    assert datetime.fromisoformat(event.pop("at")).tzinfo is not None
    return event


def test_of_a_message_that_is_not_tracked_nothing_is_reported() -> None:
    for settlement in (_handled(), _handled(raises=ValueError("no")), _handled(raises=Reject("no"))):
        assert settlement.report is None


def test_anybody_may_have_a_message_tracked() -> None:
    assert _reported(_handled(headers=TRACKED)) == _event("handled")


@pytest.mark.parametrize("value", ["true", 1, "1", False, None, [True], {"a": True}])
def test_only_a_boolean_true_asks_for_tracking(value: Any) -> None:
    assert _handled(headers={wire.TRACK: value}).report is None


def test_a_message_without_an_id_cannot_be_tracked() -> None:
    assert _handled(headers=TRACKED, message_id=None).report is None


def test_what_the_handler_published_is_confirmed_before_it_is_reported_as_handled() -> None:
    settlement = _handled(headers=TRACKED, does=lambda context: context.publish(Paid(id="A-1")))
    assert _only(settlement).exchange == MESSAGES
    assert _reported(settlement) == _event("handled")
    assert settlement.fallback is not None
    dead = settlement.fallback(ValueError("larger than the broker takes"))
    assert _reported(dead)["event"] == "dead", "and nobody has heard that it was handled"


def test_a_failure_that_is_retried_is_reported_with_its_error_and_when_the_retry_comes() -> None:
    before = wire.now()
    event = _reported(_handled(headers=TRACKED, raises=ValueError("no such customer")))
    due = datetime.fromisoformat(event.pop("due"))
    assert event == _event("retried") | {"error": "ValueError: no such customer"}
    assert before + timedelta(seconds=5) <= due <= wire.now() + timedelta(seconds=5)


def test_a_delay_beyond_the_longest_tier_is_reported_whole_and_parking_again_is_not_reported() -> None:
    before = wire.now()
    first = _handled(headers=TRACKED, raises=RetryLater("3h"))
    assert datetime.fromisoformat(_reported(first)["due"]) >= before + timedelta(hours=3)
    parked = _returned(headers=_headers(first))
    assert _only(parked).exchange == "ackline.retry.1h"
    assert parked.report is None


def test_a_failure_for_good_is_reported_with_the_reason_that_the_dead_letter_has() -> None:
    settlement = _handled(headers=TRACKED, raises=Reject("the account is closed"))
    assert _reported(settlement) == _event("dead") | {"error": "the account is closed"}
    long = _handled(headers=TRACKED, raises=Reject("x" * 5_000))
    assert _reported(long)["error"] == _reason(long)


def test_a_body_that_no_handler_sees_is_reported_as_dead() -> None:
    event = _reported(_handled(headers=TRACKED, body=b"{}"))
    assert event == _event("dead") | {"error": f"the body is no {TYPE}: id: Field required"}


def test_tracking_lasts_through_retries_and_dead_lettering() -> None:
    first = _handled(headers=TRACKED, raises=ValueError("one"))
    again = _returned(headers=_headers(first), raises=ValueError("two"))
    assert _reported(again) == _event("retried", attempt=2) | {
        "error": "ValueError: two",
        "due": json.loads(again.report.event)["due"] if again.report else None,
    }
    dead = _returned(headers=_headers(again), raises=ValueError("three"))
    assert _reported(dead)["attempt"] == 3
    assert _headers(dead)[wire.TRACK] is True


def test_a_report_says_the_key_of_its_message() -> None:
    keyed = TRACKED | wire.key_headers("A-1")
    assert _reported(_handled(headers=keyed)) == _event("handled") | {"key": "A-1"}
    again = _headers(_handled(headers=keyed, raises=ValueError("one")))
    assert _reported(_returned(headers=again)) == _event("handled", attempt=2) | {"key": "A-1"}


def test_that_a_handler_runs_is_reported_of_a_tracked_message() -> None:
    way, since = _way(print), wire.now()
    assert _reported(started(way, _delivery(headers=TRACKED), since)) == _event("started")
    failed = _headers(_handled(headers=TRACKED, raises=ValueError("no such customer")))
    again = _delivery(BODY, RETURN, "billing", headers=failed)
    assert _reported(started(way, again, since)) == _event("started", attempt=2) | {
        "error": "ValueError: no such customer"
    }
    assert started(way, _delivery(), since) is None, "what is not tracked is not reported"


# --- retries -----------------------------------------------------------------------------------------------


def test_a_failure_goes_to_the_tier_of_its_delay_addressed_to_the_consumer_with_the_failure_in_its_headers() -> None:
    settlement = _handled(raises=ValueError("no such account"), headers={"tenant": "acme"}, correlation_id="call-7")
    outgoing = _only(settlement)
    assert (outgoing.exchange, outgoing.routing_key, outgoing.body) == ("ackline.retry.5s", "billing", BODY)
    headers = _headers(settlement)
    ((attempt),) = _history(settlement)
    at = attempt.pop("at")
    assert attempt == {"attempt": 1, "worker": WORKER, "error": "ValueError", "message": "no such account"}
    assert headers.pop(wire.HISTORY)
    assert headers == {
        "tenant": "acme",
        wire.CONSUMER: "billing",
        wire.ATTEMPT: 2,
        wire.FIRST_FAILED_AT: at,
        wire.ORIGINAL: {"exchange": MESSAGES, "routing_key": TYPE},
    }
    sent = outgoing.properties
    assert (sent.message_id, sent.type, sent.correlation_id, sent.delivery_mode) == (
        b"m-1",
        TYPE.encode(),
        b"call-7",
        2,
    )


def test_a_retry_that_comes_back_is_the_next_attempt_and_fails_into_the_same_history() -> None:
    first = _headers(_handled(raises=ValueError("first")))
    tries: list[tuple[BaseModel, Context]] = []
    again = _returned(headers=first, raises=TimeoutError("second"), tries=tries)
    assert tries[0][1].attempt == 2
    assert [(entry["attempt"], entry["message"]) for entry in _history(again)] == [(1, "first"), (2, "second")]
    assert _headers(again)[wire.FIRST_FAILED_AT] == first[wire.FIRST_FAILED_AT]
    assert _headers(again)[wire.ATTEMPT] == 3


def test_the_last_attempt_is_a_dead_letter_that_tells_everything() -> None:
    second = _headers(_returned(headers=_headers(_handled(raises=ValueError("first"))), raises=ValueError("second")))
    settlement = _returned(headers=second, raises=ValueError("third"))
    outgoing = _only(settlement)
    assert (outgoing.exchange, outgoing.routing_key, outgoing.body) == (DEAD, "billing", BODY)
    assert _reason(settlement) == "failed after 3 attempts: ValueError: third"
    headers = _headers(settlement)
    assert (headers[wire.ATTEMPT], headers[wire.CONSUMER]) == (3, "billing")
    assert [entry["attempt"] for entry in _history(settlement)] == [1, 2, 3]
    assert "raise raises" in headers[wire.TRACEBACK]
    assert headers[wire.TRACEBACK].endswith("ValueError: third\n")
    assert headers[wire.ORIGINAL] == {"exchange": MESSAGES, "routing_key": TYPE}


def test_who_sends_a_message_back_may_allow_fewer_attempts_than_the_policy() -> None:
    headers = {wire.CONSUMER: "billing", wire.REDRIVE: "r-1"}
    (once,) = _handled(
        raises=ValueError("no"), exchange=RETURN, routing_key="billing", headers=headers | {wire.ATTEMPTS: 1}
    ).outgoing
    assert once.exchange == DEAD
    assert once.properties.headers.text(wire.REASON) == "failed after 1 attempt: ValueError: no"
    (twice,) = _handled(
        raises=ValueError("no"), exchange=RETURN, routing_key="billing", headers=headers | {wire.ATTEMPTS: 2}
    ).outgoing
    assert twice.exchange == "ackline.retry.5s"
    assert wire.trail(twice.properties, RETURN, "billing").attempts == 2
    for invented in (0, -1, "1", True):
        (sent,) = _handled(
            raises=ValueError("no"), exchange=RETURN, routing_key="billing", headers={wire.ATTEMPTS: invented}
        ).outgoing
        assert sent.exchange == "ackline.retry.5s", invented
    (upstream,) = _handled(raises=ValueError("no"), headers={wire.ATTEMPTS: 1}).outgoing
    assert upstream.exchange == "ackline.retry.5s"


def test_reject_goes_to_review_at_once_with_the_handlers_reason() -> None:
    settlement = _handled(raises=Reject("the account is closed"))
    assert _reason(settlement) == "the account is closed"
    assert [entry["attempt"] for entry in _history(settlement)] == [1]


def test_retry_later_waits_in_the_next_longer_tier() -> None:
    assert _only(_handled(raises=RetryLater("6s"))).exchange == "ackline.retry.15s"


def test_a_delay_beyond_the_longest_tier_is_parked_there_with_the_time_it_is_due() -> None:
    settlement = _handled(raises=RetryLater("3h"))
    assert _only(settlement).exchange == "ackline.retry.1h"
    left = _headers(settlement)[wire.DUE] / 1000 - wire.now().timestamp()
    assert 3 * 3600 - 60 < left <= 3 * 3600


def test_a_parked_message_that_is_not_due_is_parked_again_without_an_attempt() -> None:
    due = wire.now() + timedelta(minutes=50)
    before = _headers(_handled(raises=RetryLater("3h")))
    tries: list[tuple[BaseModel, Context]] = []
    settlement = _returned(headers=before | {wire.DUE: int(due.timestamp() * 1000)}, tries=tries)
    assert tries == []
    assert _only(settlement)[:2] == ("ackline.retry.1h", "billing")
    assert _headers(settlement) == before | {wire.DUE: int(due.timestamp() * 1000)}


@pytest.mark.parametrize(
    ("left", "tier"), [(2 * 3600, "1h"), (3000, "1h"), (200, "5m"), (30, "1m"), (4, "5s"), (0.9, "1s")]
)
def test_a_parked_message_waits_for_its_rest_in_the_tier_that_fits(left: float, tier: str) -> None:
    due = int((wire.now().timestamp() + left) * 1000)
    assert _only(_returned(headers={wire.DUE: due})).exchange == f"ackline.retry.{tier}"


def test_a_parked_message_that_is_due_or_nearly_so_is_handled() -> None:
    for left in (0.3, -1, -1e9):
        tries: list[tuple[BaseModel, Context]] = []
        headers = {wire.DUE: int((wire.now().timestamp() + left) * 1000), wire.ATTEMPT: 2}
        settlement = _returned(headers=headers, tries=tries, raises=ValueError("no"))
        assert tries[0][1].attempt == 2
        assert wire.DUE not in _headers(settlement)
        assert wire.DUE not in _headers(_returned(headers=headers, raises=Reject("no")))


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), RecursionError("too deep"), MemoryError()])
def test_no_handler_ends_the_worker(error: BaseException) -> None:
    settlement = _handled(raises=error)
    assert _only(settlement).exchange == "ackline.retry.5s"
    assert _history(settlement)[0]["error"] == type(error).__name__


class _Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this works")

    __repr__ = __str__


class _ForgotDelay(RetryLater):
    def __init__(self) -> None:
        pass


class _ForgotReason(Reject):
    def __init__(self) -> None:
        pass


def test_an_error_that_cannot_say_what_it_is_is_a_failure_like_any_other(capfd: pytest.CaptureFixture[str]) -> None:
    settlement = _handled(raises=_Speechless())
    assert _only(settlement).exchange == "ackline.retry.5s"
    said = "_Speechless, which cannot say more: its text raises RuntimeError"
    assert _history(settlement)[0]["message"] == said
    dead = _handled(raises=_Speechless(), retry=fixed(attempts=1))
    assert said in _reason(dead)
    assert "raise raises" in _headers(dead)[wire.TRACEBACK]
    assert capfd.readouterr().err == ""  # logging writes there when it cannot format a record


def test_a_retry_later_of_the_applications_own_without_a_delay_waits_as_the_policy_says() -> None:
    assert _only(_handled(raises=_ForgotDelay())).exchange == "ackline.retry.5s"


def test_a_reject_of_the_applications_own_without_a_reason_is_called_by_its_type() -> None:
    assert _reason(_handled(raises=_ForgotReason())) == "_ForgotReason"


def test_a_bug_in_a_contract_is_a_failure_with_a_traceback_not_a_wrong_body() -> None:
    settlement = _handled(body=b'{"id": "breaks the contract\'s own code"}', retry=fixed(attempts=1))
    assert _reason(settlement) == "failed after 1 attempt: KeyError: 'a bug in a validator'"
    assert "_breaks" in _headers(settlement)[wire.TRACEBACK]


# --- bodies and types that are not what they should be -----------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"hello", "the body is not JSON: expected value at line 1 column 1"),
        (b"", "the body is not JSON: EOF while parsing a value at line 1 column 0"),
        (b'{"id": "\xff\xfe"}', "the body is not JSON: invalid unicode code point at line 1 column 9"),
        (b"[" * 100_000, "the body is not JSON: recursion limit exceeded at line 1 column "),
        (b'{"id": "a\x00b"}', "the body is not JSON: control character (\\u0000-\\u001F) found while parsing a string"),
        (b'{"id": "\\ud800"}', "the body is not JSON: "),
        (b"[]", f"the body is no {TYPE}: body: Input should be an object"),
        (b"null", f"the body is no {TYPE}: body: Input should be an object"),
        (b"{}", f"the body is no {TYPE}: id: Field required"),
        (b'{"id": 7}', f"the body is no {TYPE}: id: Input should be a valid string"),
    ],
)
def test_a_body_that_is_no_message_is_a_dead_letter_with_a_reason_for_people(body: bytes, reason: str) -> None:
    tries: list[tuple[BaseModel, Context]] = []
    settlement = _handled(body=body, tries=tries)
    assert tries == []
    assert _reason(settlement).startswith(reason)
    assert _only(settlement).body == body
    assert wire.TRACEBACK not in _headers(settlement)  # the stack is ours, and says nothing about the message


def test_a_nul_in_a_string_that_json_escapes_is_handled() -> None:
    tries: list[tuple[BaseModel, Context]] = []
    assert _handled(body=b'{"id": "a\\u0000b"}', tries=tries) == Settlement()
    assert tries[0][0] == Placed(id="a\x00b")


def test_the_values_of_a_wrong_body_are_not_told() -> None:
    body = b'{"id": {"iban": "SECRET-1"}, "total": "SECRET-2", "card": ["SECRET-3"]}'
    settlement = _handled(body=body)
    assert _reason(settlement) == (
        f"the body is no {TYPE}: id: Input should be a valid string; "
        "total: Input should be a valid number, unable to parse string as a number; "
        "card: Input should be a valid string"
    )
    assert b"SECRET" not in _only(settlement).properties.wire


def test_no_more_than_three_wrong_fields_are_named() -> None:
    @message("test.handling.wide")
    class Wide(BaseModel):
        a: int
        b: int
        c: int
        d: int
        e: int

    wide = Consumer("wide", print, {"test.handling.wide": Wide}, fixed(), False, False)
    delivery = Delivery(MESSAGES, "test.handling.wide", Properties(), b"{}")
    settlement = handle(Way(wide, WORKER, lambda *_: None, wants_context=False), delivery)
    assert _reason(settlement).endswith("a: Field required; b: Field required; c: Field required; and 2 more")


def test_a_type_that_contradicts_the_routing_key_is_in_review() -> None:
    assert _reason(_handled(type="shop.closed")) == (
        f"its type says 'shop.closed', but it was published as '{TYPE}': billing takes {TYPE}"
    )


def test_a_type_that_the_consumer_does_not_take_is_in_review() -> None:
    assert _reason(_handled(type="shop.closed", routing_key="shop.closed")) == (
        f"billing does not take messages of type 'shop.closed'; it takes {TYPE}"
    )


def test_without_a_type_the_routing_key_is_the_type_also_after_a_retry() -> None:
    settlement = _handled(type=None, raises=ValueError("no"))
    assert _only(settlement).properties.type == TYPE.encode()
    tries: list[tuple[BaseModel, Context]] = []
    assert _returned(type=None, tries=tries) == Settlement()
    assert tries[0][1].type == TYPE


def test_a_message_without_an_id_gets_one_for_life_when_it_fails() -> None:
    first = _only(_handled(message_id=None, raises=ValueError("no"))).properties.message_id
    assert first is not None
    assert len(first) == 36
    second = _only(_returned(message_id=first, raises=ValueError("no"))).properties.message_id
    assert second == first


# --- headers that lie, and headers that are the broker's ---------------------------------------------------

LIES = {
    wire.CONSUMER: "another",
    wire.ATTEMPT: 99,
    wire.HISTORY: '[{"attempt": 98, "at": "never", "worker": "x", "error": "E", "message": "m"}]',
    wire.REDRIVE: "r-1",
    wire.DUE: 32503680000000,
    wire.REASON: "none",
    "ackline-other": "ours by name",
}


def test_our_headers_on_what_an_upstream_client_published_are_not_believed_and_not_sent_on() -> None:
    tries: list[tuple[BaseModel, Context]] = []
    settlement = _handled(headers=LIES, tries=tries, raises=ValueError("no"))
    assert tries[0][1].attempt == 1
    headers = _headers(settlement)
    assert (headers[wire.ATTEMPT], headers[wire.CONSUMER], len(_history(settlement))) == (2, "billing", 1)
    assert not {wire.REDRIVE, wire.DUE, wire.REASON, "ackline-other"} & set(headers)
    assert _handled(headers=LIES) == Settlement()  # no outcome of a redrive that nobody made


@pytest.mark.parametrize("attempt", ["many", -7, 0, 10**12, 1.5, True, None, {"a": 1}, [1], b"\x00"])
def test_an_attempt_that_is_no_number_of_one_is_the_first(attempt: Any) -> None:
    tries: list[tuple[BaseModel, Context]] = []
    assert _returned(headers={wire.ATTEMPT: attempt}, tries=tries) == Settlement()
    assert tries[0][1].attempt == 1


@pytest.mark.parametrize("due", ["tomorrow", -(2**62), 2**62, True, [1], {"a": 1}])
def test_a_due_time_that_no_calendar_holds_is_none(due: Any) -> None:
    tries: list[tuple[BaseModel, Context]] = []
    assert _returned(headers={wire.DUE: due}, tries=tries) == Settlement()
    assert tries


@pytest.mark.parametrize(
    "history", ["nonsense", "[" * 100_000, "{}", "[1]", '[{"attempt": "x"}]', 7, '[{"attempt": 1e999}]', "null"]
)
def test_a_history_that_cannot_be_read_begins_anew(history: Any) -> None:
    settlement = _returned(headers={wire.HISTORY: history}, raises=ValueError("no"))
    assert len(_history(settlement)) == 1


def test_what_the_broker_wrote_is_removed_and_what_would_misroute_is_set_aside() -> None:
    headers = {
        "x-death": [{"queue": "billing", "reason": "expired", "count": 99}],
        "x-first-death-queue": "billing",
        "x-last-death-reason": "expired",
        "x-delivery-count": 19,
        "x-acquired-count": 19,
        "x-mine": "stays",
        "CC": ["elsewhere"],
        "BCC": ["elsewhere"],
    }
    given: dict[str, Any] = {"expiration": "1", "user_id": "upstream", "reply_to": "answers"}
    settlement = _handled(headers=headers, raises=Reject("no"), **given)
    sent = _only(settlement).properties
    assert (sent.expiration, sent.user_id, sent.reply_to) == (None, None, None)
    assert {name for name in _headers(settlement) if not name.startswith("ackline-")} == {"x-mine"}
    aside = _headers(settlement)[wire.ORIGINAL]
    assert aside == {"exchange": MESSAGES, "routing_key": TYPE, "CC": ["elsewhere"], "BCC": ["elsewhere"]} | given


def test_what_was_set_aside_once_is_still_there_after_the_next_failure() -> None:
    first = _headers(_handled(raises=ValueError("no"), expiration="60000", headers={"CC": ["elsewhere"]}))
    second = _headers(_returned(headers=first, raises=ValueError("no")))
    assert second[wire.ORIGINAL] == first[wire.ORIGINAL]
    assert second[wire.ORIGINAL]["expiration"] == "60000"


def test_headers_that_leave_no_room_for_ours_are_for_the_broker_to_dead_letter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wide = {"wide": "x" * 130_900}
    assert _handled(headers=wide) == Settlement()
    with caplog.at_level(logging.ERROR):
        assert _handled(headers=wide, raises=ValueError("no")) == Settlement(reject=True)
    assert "the headers of m-1 leave no room for ours; rejected, to review by the broker" in caplog.text


def test_a_hundred_kilobytes_of_headers_leave_room() -> None:
    assert _only(_handled(headers={"wide": "x" * 100_000}, raises=ValueError("no"))).exchange == "ackline.retry.5s"


def test_headers_that_no_library_decodes_are_sent_on_as_they_came() -> None:
    deep = b"\x03endV"
    for _ in range(3000):
        deep = b"\x01tF" + len(deep).to_bytes(4) + deep
    odd = Table([(b"deep", b"F" + len(deep).to_bytes(4) + deep), (b"when", b"T" + (10**13).to_bytes(8))])
    settlement = _handled(headers=odd, raises=ValueError("no"))
    sent = _only(settlement).properties.headers
    assert sent.raw_value("deep") == odd.raw_value("deep")
    assert sent.raw_value("when") == odd.raw_value("when")


def test_our_headers_stay_below_eight_kilobytes_however_long_the_errors_are() -> None:
    headers: dict[str, Any] = {}
    for attempt in range(1, 41):
        error = ValueError('"\x00ü\ud800\\' * 5000)
        settlement = _returned(headers=headers, raises=error, retry=fixed(attempts=40))
        headers = _headers(settlement)
        assert _history(settlement)[0]["attempt"] == 1
        assert _history(settlement)[-1]["attempt"] == attempt
    assert _only(settlement).exchange == DEAD
    ours = _only(settlement).properties.headers.select(lambda name: name.startswith(b"ackline-"))
    assert len(ours.raw) <= 8 * 1024
    assert all("\x00" not in str(value) for value in headers.values())


def test_the_log_of_a_failure_names_the_message_and_what_comes_next(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _handled(raises=ValueError("no"))
        _handled(raises=Reject("the account is closed"))
    assert caplog.messages == [
        f"billing: {TYPE} m-1 failed, retry in 5s: ValueError('no')",
        f"billing: {TYPE} m-1 goes to review: the account is closed",
    ]


# --- what middleware decides, budgets, and what handlers tell ------------------------------------------------


def test_what_was_handled_before_is_acked_with_what_it_enlists_again() -> None:
    def again(context: Context) -> None:
        context.publish(Paid(id="A-1"))
        raise AlreadyHandled

    assert _only(_handled(does=again)).exchange == MESSAGES
    assert _handled(raises=AlreadyHandled()) == Settlement()


def test_what_is_parked_comes_back_as_it_was() -> None:
    settlement = _returned(raises=Park("10s"), headers={wire.ATTEMPT: 2, wire.TRACK: True})
    outgoing = _only(settlement)
    assert (outgoing.exchange, outgoing.routing_key) == ("ackline.retry.15s", "billing")
    assert outgoing.properties.headers.decoded()[wire.ATTEMPT] == 2
    assert wire.HISTORY not in outgoing.properties.headers.decoded()
    assert settlement.report is None


def test_the_time_budget_runs_from_the_first_failure_and_the_first_failure_is_within_it() -> None:
    policy = fixed(attempts=100, delay="1m", give_up_after="30m")
    long_ago = (wire.now() - timedelta(minutes=29.5)).isoformat()
    lately = (wire.now() - timedelta(minutes=28)).isoformat()
    late = _returned(retry=policy, raises=OSError(), headers={wire.ATTEMPT: 9, wire.FIRST_FAILED_AT: long_ago})
    assert _reason(late) == "given up after 9 attempts, for another would be later than 30m: OSError"
    for headers in ({wire.ATTEMPT: 9, wire.FIRST_FAILED_AT: lately}, {wire.FIRST_FAILED_AT: "soon"}, {}):
        again = _returned(retry=policy, raises=OSError(), headers=headers)
        assert _only(again).exchange == "ackline.retry.1m"


def test_what_the_handler_of_a_tracked_message_tells_is_a_report_of_its_progress() -> None:
    told: list[Report] = []
    given = Properties.from_wire(Properties(message_id="m-1", type=TYPE, headers=TRACKED).wire)
    delivery = Delivery(MESSAGES, TYPE, given, BODY)
    billing = Consumer("billing", lambda *_: None, {TYPE: Placed}, fixed(), True, False)

    def call(_: Any, context: Context) -> None:
        assert context.raw == BODY
        context.progress(0.4, "4 of 10")

    way = Way(billing, WORKER, call, wants_context=True, tell=lambda _, report: told.append(report()))
    handle(way, delivery)
    assert _reported(*told) == _event("progress") | {"progress": 0.4, "progress_text": "4 of 10"}
    handle(way, Delivery(MESSAGES, TYPE, Properties.from_wire(Properties(type=TYPE).wire), BODY))
    assert len(told) == 1, "of one that is not tracked nobody is told"


# --- secrets -----------------------------------------------------------------------------------------------

SECRET = "4111-1111"
PAID_BY = b'{"id": "A-1", "card": "4111-1111"}'


@pytest.mark.parametrize("retry", [fixed(attempts=1), fixed(attempts=2)])
def test_no_secret_of_the_message_is_in_anything_that_is_said_of_its_failure(
    retry: RetryPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    error = ValueError("x" * (wire.MAX_ERROR - 4) + f" {SECRET} was refused")  # which the cut would leave a part of
    error.__cause__ = KeyError(SECRET)
    settlement = _handled(raises=error, body=PAID_BY, retry=retry, headers=TRACKED)
    said = [str(_headers(settlement)), str(_reported(settlement)), *caplog.messages]
    assert all(SECRET[:3] not in text for text in said)
    assert all("xxx" in text for text in said)
    assert _only(settlement).body == PAID_BY


def test_a_reason_that_the_handler_gives_is_masked() -> None:
    settlement = _handled(raises=Reject(f"the card {SECRET} is blocked"), body=PAID_BY)
    assert _reason(settlement) == "the card ********** is blocked"


def test_what_a_contract_marks_is_masked_as_a_secret_is() -> None:
    @message("test.handling.marked")
    class Marked(BaseModel):
        card: str = Field(json_schema_extra={"x-masked": True})

    def charge(marked: Marked, _: object) -> None:
        raise Reject(f"the card {marked.card} is blocked")

    consumer = Consumer("billing", charge, {TYPE: Marked}, fixed(attempts=1), True, False)
    given = Properties.from_wire(Properties(message_id="m-1", type=TYPE).wire)
    settlement = handle(Way(consumer, WORKER, charge, wants_context=True), Delivery(MESSAGES, TYPE, given, PAID_BY))
    assert _reason(settlement) == "the card ********** is blocked"


def test_a_check_of_the_contract_that_quotes_a_secret_is_masked() -> None:
    @message("test.handling.checked")
    class Checked(BaseModel):
        card: SecretStr

        @field_validator("card", mode="before")
        @classmethod
        def _refuses(cls, value: str) -> str:
            raise ValueError(f"{value} is no card")

    strict = Consumer("billing", lambda *_: None, {TYPE: Checked}, fixed(attempts=1), True, False)
    given = Properties.from_wire(Properties(message_id="m-1", type=TYPE).wire)
    delivery = Delivery(MESSAGES, TYPE, given, b'{"card": "4111-1111"}')
    settlement = handle(Way(strict, WORKER, lambda *_: None, wants_context=True), delivery)
    assert _reason(settlement) == f"the body is no {TYPE}: card: Value error, ********** is no card"
