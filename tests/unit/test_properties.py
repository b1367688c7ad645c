"""Message properties: decoded when somebody looks, never an exception, sent on octet by octet."""

from __future__ import annotations

import random
import struct
from typing import Any

import pika
import pytest

from ackline.infra.properties import PERSISTENT, Properties
from ackline.infra.table import Table
from tests.unit.test_table import SEED, entry, long_string, nested, random_table

TEXTS = (
    "content_type",
    "content_encoding",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "type",
    "user_id",
    "app_id",
    "cluster_id",
)
PikaProperties: Any = pika.BasicProperties  # has no types
NAMES = (*TEXTS, "headers", "delivery_mode", "priority", "timestamp")
HEADERS = 1 << 13


def with_headers(raw_table: bytes) -> bytes:
    """Properties of which only the headers are set, as on the wire."""
    return struct.pack(">H", HEADERS) + struct.pack(">I", len(raw_table)) + raw_table


def read_all(properties: Properties) -> list[Any]:
    return [getattr(properties, name) for name in NAMES]


def pika_encoded(**fields: Any) -> bytes:
    return b"".join(PikaProperties(**fields).encode())


def some_fields(chance: random.Random) -> dict[str, Any]:
    fields: dict[str, Any] = {
        name: "".join(chance.choices("abcé🐇 .", k=chance.randrange(40))) for name in TEXTS if chance.random() < 0.5
    }
    if chance.random() < 0.5:
        fields["headers"] = {f"h{i}": chance.choice((1, "x", True, None, [1], {"a": "b"})) for i in range(3)}
    if chance.random() < 0.5:
        fields["delivery_mode"] = chance.randrange(256)
    if chance.random() < 0.5:
        fields["priority"] = chance.randrange(256)
    if chance.random() < 0.5:
        fields["timestamp"] = chance.randrange(2**63)
    return fields


def test_what_pika_encodes_is_read_as_it_was_meant_and_what_we_encode_is_read_by_pika() -> None:
    chance = random.Random(SEED)
    for _ in range(2_000):
        fields = some_fields(chance)
        theirs = Properties.from_wire(pika_encoded(**fields))
        expected = {name: value.encode() if name in TEXTS else value for name, value in fields.items()}
        for name in NAMES:
            found = getattr(theirs, name)
            assert (found.decoded() if name == "headers" else found) == expected.get(
                name, {} if name == "headers" else None
            )
        ours = Properties(**fields)
        assert ours.wire == b"".join(ours.encode())
        decoded = PikaProperties()
        decoded.decode(ours.wire)
        assert {name: getattr(decoded, name) for name in fields} == fields


def test_random_octets_are_never_an_exception_and_are_sent_on_unchanged() -> None:
    chance = random.Random(SEED)
    for _ in range(20_000):
        raw = chance.randbytes(chance.randrange(48))
        if chance.random() < 0.5:
            raw = with_headers(random_table(chance)) + raw
        properties = Properties.from_wire(raw)
        read_all(properties)
        properties.decoded()
        repr(properties)
        assert properties.encode() == [raw]
        again = properties.copy(message_id=None)  # what is written anew must be readable, too
        assert Properties.from_wire(again.wire).decoded() == again.decoded()


def test_headers_3000_deep_and_a_timestamp_of_ten_to_the_thirteen_are_read_and_sent_on() -> None:
    table = nested(3_000) + entry(b"when", b"T" + struct.pack(">Q", 10**13))
    raw = with_headers(table)
    properties = Properties.from_wire(raw)
    assert properties.headers.get("when") == 10**13
    assert properties.headers.raw == table
    assert properties.wire == raw
    assert properties.copy(type="t").headers.raw == table
    assert Properties.from_wire(struct.pack(">HQ", 1 << 6, 10**13)).timestamp == 10**13


def test_nothing_is_decoded_before_somebody_looks() -> None:
    raw = with_headers(entry(b"a", b"B\x01"))
    properties = Properties.from_wire(raw)
    assert properties.encode()[0] is raw
    assert "headers" not in vars(properties)
    assert properties.headers.get("a") == 1


def test_a_further_word_of_flags_is_skipped() -> None:
    raw = struct.pack(">HHB", 1 << 12 | 1, 0, PERSISTENT)
    assert Properties.from_wire(raw).delivery_mode == PERSISTENT


def test_a_copy_changes_what_it_is_told_to_and_keeps_the_rest_as_octets() -> None:
    raw = pika_encoded(type="t", reply_to="r", headers={"a": 1}, priority=3)
    headers = entry(b"a", b"T" + struct.pack(">Q", 2**64 - 1))
    properties = Properties.from_wire(raw).copy(reply_to=None, headers=Table.parse(headers), message_id="ä")
    assert properties.reply_to is None
    assert properties.message_id == "ä".encode()
    assert (properties.type, properties.priority, properties.headers.raw) == (b"t", 3, headers)


def test_ids_that_are_not_utf_8_stay_octets_and_are_shown_as_text() -> None:
    raw = struct.pack(">H", 1 << 7) + b"\x05caf\xe9\x00"
    properties = Properties.from_wire(raw)
    assert properties.message_id == b"caf\xe9\x00"
    assert properties.decoded() == {"message_id": "caf\\xe9\\x00"}
    assert properties.copy().wire == raw


def test_what_amqp_cannot_hold_is_refused_where_it_is_written() -> None:
    assert Properties(type="é" * 127).type == ("é" * 127).encode()
    with pytest.raises(ValueError, match="message_id has 256 bytes; AMQP allows 255"):
        Properties(message_id="x" * 256)
    with pytest.raises(TypeError, match="no such property: kind"):
        Properties(kind="x")
    with pytest.raises(TypeError, match="cannot hold a object"):
        Properties(headers={"x": object()})


def test_a_text_cut_short_by_the_end_of_the_octets_leaves_the_later_ones_absent() -> None:
    properties = Properties.from_wire(struct.pack(">H", 1 << 15 | 1 << 14) + b"\x09short")
    assert properties.content_type == b"short"
    assert properties.content_encoding is None


def test_an_array_in_headers_holds_any_value() -> None:
    inside = long_string(b"A", b"T" + struct.pack(">Q", 10**13) + long_string(b"S", b"x"))
    assert Properties.from_wire(with_headers(entry(b"a", inside))).headers.get("a") == [10**13, "x"]


@pytest.mark.parametrize("cut", range(2, 60, 3))
def test_properties_that_are_cut_short_are_not_whole(cut: int) -> None:
    fields = {"content_type": "text/plain", "headers": {"a": "b"}, "priority": 3, "timestamp": 5, "app_id": "shop"}
    raw = Properties(**fields).wire
    assert Properties.from_wire(raw).is_whole
    assert not Properties.from_wire(raw[:-cut]).is_whole


@pytest.mark.parametrize(
    "raw",
    [b"", b"\x00", b"\x00\x01\x00\x00", b"\x00\x02", b"\x00\x00more", with_headers(b"\x01a?"), b"\xff" * 300],
    ids=["nothing", "half the flags", "further flags", "an unknown flag", "more", "a value of no kind", "all flags"],
)
def test_what_the_broker_cannot_read_is_not_whole(raw: bytes) -> None:
    assert not Properties.from_wire(raw).is_whole
