"""The wire format: whom to believe, what is set aside and removed, and the bounds of what Ackline writes."""

from __future__ import annotations

import json
import re
import struct
import threading
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from ackline.infra import wire
from ackline.infra.names import DEAD, MESSAGES, RETRY_TIERS, RETURN
from ackline.infra.properties import PERSISTENT, Properties
from ackline.infra.table import Table
from ackline.infra.wire import Attempt, Trail, attempt_of, republished, trail
from tests.unit.test_table import entry, nested

ERROR = ValueError("no such customer")
OURS_AT_MOST = 8 * 1024


def failed(times: int, error: BaseException = ERROR) -> Trail:
    """The trail of a delivery to `billing` that failed so many times."""
    found = Trail(consumer="billing", exchange=MESSAGES, routing_key="order.placed")
    for number in range(1, times + 1):
        found = found.failed(attempt_of(number, "host:1", error))
    return found


def ours(properties: Properties) -> Table:
    return properties.headers.select(lambda name: name.startswith(b"ackline-"))


def returned(properties: Properties) -> Trail:
    """The trail of these properties when they come back through a retry tier."""
    return trail(properties, RETURN, "billing")


# --- whom to believe -----------------------------------------------------------------------------------

FORGED = {
    wire.CONSUMER: "somebody-else",
    wire.ATTEMPT: 99,
    wire.HISTORY: '[{"attempt": 98, "at": "", "worker": "", "error": "", "message": ""}]',
    wire.FIRST_FAILED_AT: "1970-01-01T00:00:00Z",
    wire.REASON: "forged",
    wire.TRACEBACK: "forged",
    wire.REDRIVE: "forged",
    wire.DUE: 4_000_000_000_000,
    wire.ORIGINAL: {"exchange": "forged", "routing_key": "forged", "user_id": "root"},
}


def test_headers_of_ours_on_a_message_from_upstream_are_somebodys_invention() -> None:
    forged = Properties(headers=FORGED | {"theirs": "kept"})
    for exchange in (MESSAGES, "", "amq.topic", DEAD):
        assert trail(forged, exchange, "order.placed") == Trail(exchange=exchange, routing_key="order.placed")


def test_a_forged_header_does_not_survive_being_published_again() -> None:
    sent = republished(Properties(headers=FORGED | {"theirs": "kept"}), failed(1))
    assert sent.headers.get("theirs") == "kept"
    found = returned(sent)
    assert (found.consumer, found.attempt, found.redrive, found.due) == ("billing", 1, None, None)
    assert found.set_aside == Table()
    assert wire.REASON not in sent.headers
    assert sent.headers.get(wire.ORIGINAL) == {"exchange": MESSAGES, "routing_key": "order.placed"}
    assert b"forged" not in sent.wire


def test_headers_of_ours_are_believed_on_what_came_through_the_way_back() -> None:
    redriven = Trail(
        consumer="billing",
        attempt=3,
        first_failed_at="2026-01-02T03:04:05.678Z",
        history=(Attempt(1, "2026-01-02T03:04:05.678Z", "host:1", "ValueError", "no"),),
        due=datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC),
        redrive="r-1",
        exchange=MESSAGES,
        routing_key="order.placed",
    )
    sent = republished(Properties(), redriven)
    assert returned(sent) == redriven
    assert trail(sent, DEAD, "billing", trusted=True) == redriven
    assert trail(sent, RETURN, "billing", trusted=False) == Trail(exchange=RETURN, routing_key="billing")


LIES: list[dict[str, Any]] = [
    {name: lie}
    for name in FORGED
    for lie in ("many", "", -7, 0, 2**62, True, None, b"\xff", 0.5, [1], {"a": {"b": "c"}}, "9" * 5_000)
]
LIES += [
    {wire.HISTORY: lie}
    for lie in (
        "{}",
        "[1]",
        '{"attempt": 1}',
        '[{"attempt": "many", "at": 1, "worker": 1, "error": 1, "message": 1}]',
        '[{"attempt": 1e999, "at": "", "worker": "", "error": "", "message": ""}]',
        '[{"attempt": null, "at": "", "worker": "", "error": "", "message": ""}]',
        "[" * 100_000,
        '"\\ud800"',
        "9" * 10_000,
    )
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: f"{next(iter(lie))}={str(next(iter(lie.values())))[:20]}")
def test_a_header_that_lies_about_its_kind_is_never_an_exception(lie: dict[str, Any]) -> None:
    found = trail(Properties(headers=lie), RETURN, "billing")
    assert found.attempt == 1 or lie == {wire.ATTEMPT: 0.5} or 1 <= found.attempt <= wire.MAX_ATTEMPT
    assert returned(republished(Properties(headers=lie), found)).attempt == found.attempt


def test_an_attempt_that_no_policy_allows_counts_as_the_first() -> None:
    for lie in (-7, 0, wire.MAX_ATTEMPT + 1):
        assert trail(Properties(headers={wire.ATTEMPT: lie}), RETURN, "billing").attempt == 1
    assert trail(Properties(headers={wire.ATTEMPT: 7}), RETURN, "billing").attempt == 7


# --- what is set aside and removed ----------------------------------------------------------------------


def test_what_the_broker_wrote_on_the_way_is_removed() -> None:
    headers = {
        "x-death": [{"queue": "billing", "count": 3}],
        "x-first-death-queue": "a",
        "x-first-death-reason": "expired",
        "x-first-death-exchange": "",
        "x-last-death-queue": "a",
        "x-last-death-reason": "expired",
        "x-last-death-exchange": "",
        "x-delivery-count": 4,
        "x-acquired-count": 4,
        "x-match": "kept",
        "x-deathly": "kept",
    }
    properties = Properties(headers=headers)
    assert [*republished(properties, failed(1)).headers.decoded()][-2:] == ["x-deathly", "x-match"]
    assert wire.stripped(properties).headers.decoded() == {"x-match": "kept", "x-deathly": "kept"}


def test_what_would_hurt_on_the_way_is_set_aside_and_kept() -> None:
    properties = Properties(
        expiration="1000", user_id="upstream", reply_to="replies", headers={"CC": ["a", "b"], "BCC": ["c"], "cc": "no"}
    )
    sent = republished(properties, failed(1))
    assert (sent.expiration, sent.user_id, sent.reply_to) == (None, None, None)
    assert "CC" not in sent.headers
    assert "BCC" not in sent.headers
    assert sent.headers.get("cc") == "no"
    assert returned(sent).set_aside.decoded() == {
        "expiration": "1000",
        "user_id": "upstream",
        "reply_to": "replies",
        "CC": ["a", "b"],
        "BCC": ["c"],
    }
    assert wire.stripped(properties).headers.decoded() == properties.headers.decoded()


def test_what_was_set_aside_comes_back_octet_by_octet_however_often_the_message_returns() -> None:
    carbon_copies = entry(b"CC", b"T" + struct.pack(">Q", 10**13))
    first = Properties(reply_to=b"caf\xe9\x00", user_id=b"\xff", headers=Table.parse(carbon_copies))
    sent = republished(first, failed(1))
    again = republished(sent, returned(sent))
    once_more = republished(again, returned(again))
    assert once_more.headers.raw_value(wire.ORIGINAL) == sent.headers.raw_value(wire.ORIGINAL)
    aside = returned(once_more).set_aside
    assert aside.raw_value("CC") == carbon_copies[3:]
    assert (aside.raw_value("reply_to") or b"")[5:] == b"caf\xe9\x00"
    assert (aside.raw_value("user_id") or b"")[5:] == b"\xff"


def test_a_value_set_aside_on_the_way_is_not_kept_twice() -> None:
    sent = republished(Properties(reply_to="first", headers={"CC": ["first"]}), failed(1))
    added = sent.copy(headers=sent.headers.plus({"CC": ["later"]}))
    names = returned(republished(added, returned(added))).set_aside.names()
    assert sorted(names) == [b"CC", b"reply_to"]


def test_a_key_and_its_slot_are_the_publishers_and_travel_for_life() -> None:
    sent = republished(Properties(message_id="m-1", headers=wire.key_headers("A-1")), failed(1))
    again = wire.stripped(republished(sent, returned(sent)))
    assert again.headers.decoded() == wire.key_headers("A-1")


def test_everything_else_is_sent_on_as_it_came() -> None:
    odd = entry(b"when", b"T" + struct.pack(">Q", 10**13)) + nested(3_000)
    properties = Properties(
        content_type="text/plain",
        content_encoding="gzip",
        correlation_id=b"\xff",
        message_id=b"caf\xe9 1",
        timestamp=10**13,
        type="order.placed",
        app_id="shop",
        cluster_id="c",
        priority=3,
        headers=Table.parse(odd),
    )
    sent = republished(properties, failed(1))
    for name in ("content_type", "content_encoding", "correlation_id", "message_id", "timestamp", "type", "app_id"):
        assert getattr(sent, name) == getattr(properties, name), name
    assert (sent.cluster_id, sent.priority) == (b"c", 3)
    assert sent.headers.raw.startswith(odd)


def test_a_message_published_again_is_persistent_and_has_an_id_and_a_type_for_life() -> None:
    sent = republished(Properties(delivery_mode=1), failed(1))
    assert sent.delivery_mode == PERSISTENT
    assert sent.type == b"order.placed"
    assert UUID(str(wire.message_id(sent))).version == 7
    again = republished(sent, returned(sent))
    assert (again.message_id, again.type) == (sent.message_id, sent.type)


def test_a_type_and_an_id_are_text_whatever_octets_they_are() -> None:
    assert wire.message_type(Properties(), "order.placed") == "order.placed"
    assert wire.message_type(Properties(type=b"\xff\x00"), "order.placed") == "\\xff\\x00"
    assert wire.message_id(Properties()) is None
    assert wire.message_id(Properties(message_id=b"")) is None
    assert wire.message_id(Properties(message_id=b"caf\xe9")) == "caf\\xe9"


def test_a_routing_key_that_is_the_longest_possible_becomes_the_type_whole() -> None:
    key = "é" * 127 + "x"
    sent = republished(Properties(), Trail(consumer="billing", exchange=MESSAGES, routing_key=key))
    assert sent.type == key.encode()


# --- bounds -------------------------------------------------------------------------------------------

HUGE_TEXTS = ["a" * 10**6, "🐇" * 10**6, '"\\' * 10**6, "\x01" * 10**6, "\x00" * 10**6, "\ud800" * 10**6, "é\n" * 10**6]
IDS = ["plain", "non-bmp", "quotes", "control", "nul", "surrogates", "two-octets"]


@pytest.mark.parametrize("huge", HUGE_TEXTS, ids=IDS)
def test_headers_of_ours_stay_together_below_8_kilobytes_whatever_the_errors_say(huge: str) -> None:
    long_named = type("𐐀" * 1_000, (Exception,), {})

    longest = Properties(
        user_id="u" * 255, reply_to="r" * 255, expiration="9" * 20, type="t" * 255, message_id="m" * 255
    )
    for times in (1, 2, 50):
        found = failed(times, long_named(huge))
        extra = {
            wire.REASON: wire.cut(huge, wire.MAX_REASON),
            wire.TRACEBACK: wire.cut_start(huge, wire.MAX_TRACEBACK),
        }
        sent = republished(longest, found, extra)
        assert len(ours(sent).raw) <= OURS_AT_MOST
        assert len(sent.headers.text(wire.HISTORY) or "") > 2
        history = returned(sent).history
        assert [history[0].attempt, history[-1].attempt] == [1, times], "the first and the latest stay"


def test_the_history_keeps_the_first_failure_and_the_latest_ones() -> None:
    history = returned(republished(Properties(), failed(1_000))).history
    numbers = [attempt.attempt for attempt in history]
    assert numbers[0] == 1
    assert numbers[1:] == list(range(numbers[1], 1_001))
    assert len(numbers) > 10
    assert history[0].error == "ValueError"
    assert history[0].message == "no such customer"


def test_the_history_can_be_read_by_clients_in_any_language() -> None:
    sent = republished(Properties(), failed(2, ValueError("naïve 🐇")))
    entries = json.loads(sent.headers.get(wire.HISTORY))
    assert [entry["attempt"] for entry in entries] == [1, 2]
    assert entries[0].keys() == {"attempt", "at", "worker", "error", "message"}
    assert entries[0]["message"] == "naïve 🐇"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entries[0]["at"])


def test_a_text_is_cut_between_characters_and_says_so() -> None:
    assert wire.cut("short", 5) == "short"
    assert wire.cut("🐇" * 10, 20) == "🐇" * 4 + "…"
    assert wire.cut_start("🐇" * 10, 20) == "…" + "🐇" * 4
    assert wire.cut("\ud800", 100) == "\\ud800"
    for size in range(3, 50):
        for huge in (text * 50 for text in ("a", "é", "€", "🐇")):
            assert len(wire.cut(huge, size).encode()) <= size
            assert len(wire.cut_start(huge, size).encode()) <= size


def test_headers_that_fill_a_frame_are_told_from_those_that_overflow_it() -> None:
    room = wire.FRAME_MAX - 20 - 2 - 4 - len(entry(b"h", b"x\x00\x00\x00\x00"))
    assert wire.fits_into_a_frame(Properties(headers={"h": bytes(room)}))
    assert not wire.fits_into_a_frame(Properties(headers={"h": bytes(room + 1)}))


# --- time and ids -------------------------------------------------------------------------------------


def test_a_delay_beyond_the_longest_tier_travels_as_a_time() -> None:
    due = wire.due_in(RETRY_TIERS[-1][1] + 100)
    found = returned(republished(Properties(), Trail(consumer="billing", due=due))).due
    assert found is not None
    assert abs(found - due) < timedelta(milliseconds=1)


def test_ids_are_uuids_of_version_7_with_the_time_in_front() -> None:
    before = datetime.now(UTC)
    id_ = UUID(wire.uuid7())
    assert (id_.version, id_.variant) == (7, "specified in RFC 4122")
    made = datetime.fromtimestamp((id_.int >> 80) / 1000, UTC)
    assert before - timedelta(milliseconds=1) <= made <= datetime.now(UTC) + timedelta(milliseconds=1)


def test_ids_increase_within_a_process_and_never_repeat_across_threads() -> None:
    made: list[list[str]] = [[] for _ in range(8)]

    def make(mine: list[str]) -> None:
        mine += [wire.uuid7() for _ in range(5_000)]

    threads = [threading.Thread(target=make, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(mine == sorted(mine) for mine in made)
    assert len({id_ for mine in made for id_ in mine}) == 40_000


def test_ids_increase_even_when_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first = wire.uuid7()
    monkeypatch.setattr("ackline.infra.wire.time.time_ns", lambda: 0)
    assert wire.uuid7() > first
