"""AMQP field tables: whatever the broker accepts is read without an exception and sent on unchanged."""

from __future__ import annotations

import random
import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pika import data as pika_data

from ackline.infra.table import MAX_DEPTH, TOO_DEEP, Table, decode, encode, scan, text

#: Fuzzing is the same in every run.
SEED = 20_240_607
KINDS = b"tbBsUuIiLlfdDTSxAFV"


def entry(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + value


def long_string(kind: bytes, inside: bytes) -> bytes:
    return kind + struct.pack(">I", len(inside)) + inside


def nested(depth: int, kind: bytes = b"F") -> bytes:
    """The inside of a table that holds tables (or arrays), *depth* deep."""
    value = b"V"
    for _ in range(depth):
        value = long_string(kind, entry(b"t", value) if kind == b"F" else value)
    return entry(b"t", value)


def random_table(chance: random.Random) -> bytes:
    """Octets that often look like a table: kinds that exist, lengths that nearly fit, and noise."""
    pieces = []
    for _ in range(chance.randrange(6)):
        name = chance.randbytes(chance.randrange(8))
        kind = bytes((chance.choice(KINDS),)) if chance.random() < 0.9 else chance.randbytes(1)
        value = chance.randbytes(chance.choice((0, 1, 2, 4, 5, 8, 9)))
        if kind in b"SxAF":
            inside = random_table(chance) if chance.random() < 0.3 else value
            value = struct.pack(">I", len(inside) + chance.choice((0, 0, 0, 1, -1, 2**31)) & 0xFFFFFFFF) + inside
        pieces.append(entry(name, kind + value))
    return b"".join(pieces)


def test_every_kind_of_value_is_decoded_as_the_specification_says() -> None:
    values: list[tuple[bytes, Any]] = [
        (b"t\x01", True),
        (b"t\x00", False),
        (b"b\xff", -1),
        (b"B\xff", 255),
        (b"s\xff\xfe", -2),
        (b"U\xff\xfe", -2),
        (b"u\xff\xfe", 65534),
        (b"I\xff\xff\xff\xff", -1),
        (b"i\xff\xff\xff\xff", 4294967295),
        (b"l" + struct.pack(">q", -5), -5),
        (b"L" + struct.pack(">q", 5), 5),
        (b"f" + struct.pack(">f", 0.5), 0.5),
        (b"d" + struct.pack(">d", 0.1), 0.1),
        (b"D\x02" + struct.pack(">i", -314), Decimal("-3.14")),
        (b"T" + struct.pack(">Q", 0), datetime(1970, 1, 1, tzinfo=UTC)),
        (long_string(b"S", "Ünïcode 🐇".encode()), "Ünïcode 🐇"),
        (long_string(b"x", b"\x00\xff"), b"\x00\xff"),
        (long_string(b"A", b"t\x01V"), [True, None]),
        (long_string(b"F", entry(b"a", b"B\x07")), {"a": 7}),
        (b"V", None),
    ]
    for raw, expected in values:
        found = decode(raw)
        assert found == expected, raw
        assert type(found) is type(expected), raw


def test_random_octets_are_never_an_exception_and_what_was_read_goes_out_as_it_came() -> None:
    chance = random.Random(SEED)
    complete = 0
    for _ in range(20_000):
        raw = random_table(chance) if chance.random() < 0.8 else chance.randbytes(chance.randrange(64))
        table = Table.parse(raw)
        table.decoded()
        repr(table)
        for name in table.names():
            table.get(text(name)), table.text(text(name)), table.number(text(name)), table.table(text(name)).decoded()
        assert raw.startswith(table.raw)
        assert (table.raw == raw) == table.complete
        complete += table.complete
    assert 2_000 < complete < 18_000, "the generator must make both whole and broken tables"


@pytest.mark.parametrize("kind", [b"F", b"A"])
def test_a_table_3000_deep_is_kept_whole_and_shown_to_a_bounded_depth(kind: bytes) -> None:
    raw = nested(3_000, kind)
    table = Table.parse(raw)
    assert table.raw == raw
    shown = repr(table.decoded())
    assert TOO_DEEP in shown
    assert shown.count("{") + shown.count("[") <= MAX_DEPTH + 2


def test_a_time_that_no_calendar_holds_stays_a_number_of_seconds() -> None:
    for seconds in (10**13, 2**63, 2**64 - 1):
        raw = entry(b"when", b"T" + struct.pack(">Q", seconds))
        with pytest.raises(Exception, match=r".*"):  # the reason for this module
            pika_data.decode_table(long_string(b"", raw), 0)
        assert Table.parse(raw).get("when") == seconds
        assert Table.parse(raw).raw == raw


def test_what_follows_an_octet_that_is_not_amqp_is_dropped_and_what_precedes_it_stays() -> None:
    good = entry(b"a", b"B\x01")
    unknown_kind = entry(b"b", b"Z\x00") + entry(b"c", b"B\x03")
    cut_short = (b"\x05ab", entry(b"b", b"S\x00\x00\x00\x09short"), entry(b"b", b"l\x00"), entry(b"b", b""))
    for broken in (unknown_kind, *cut_short):
        assert scan(good + broken) == ([(b"a", b"B\x01")], False)
        assert Table.parse(good + broken).raw == good


def test_a_name_that_occurs_twice_is_sent_on_twice_and_read_as_its_first() -> None:
    raw = entry(b"a", b"B\x01") + entry(b"a", b"B\x02")
    table = Table.parse(raw)
    assert table.raw == raw
    assert table.get("a") == 1
    assert table.decoded() == {"a": 1}


def test_texts_that_are_not_utf_8_or_hold_nul_can_be_shown_and_stored_anywhere() -> None:
    assert text(b"caf\xe9\x00!") == "caf\\xe9\\x00!"
    table = Table.parse(entry(b"na\xffme\x00", long_string(b"S", b"\xff\x00")))
    assert table.decoded() == {"na\\xffme\\x00": "\\xff\\x00"}


def test_python_values_are_encoded_so_that_pika_reads_the_same() -> None:
    values = {
        "text": "Ünïcode 🐇",
        "yes": True,
        "no": False,
        "number": -(2**63),
        "octets": b"\x00\xff",
        "nothing": None,
        "list": ["a", 1, [True]],
        "table": {"inner": {"deep": "er"}},
    }
    table = Table.of(values)
    assert pika_data.decode_table(struct.pack(">I", len(table.raw)) + table.raw, 0)[0] == values
    assert Table.parse(table.raw) == table
    assert table.decoded() == values
    assert Table.of({"float": 0.1}).get("float") == 0.1  # which pika would read as 0
    others = {"when": datetime(2026, 11, 21, 8, tzinfo=UTC), "price": Decimal("-9.50"), "many": Decimal("1E+3")}
    assert Table.of(others).decoded() == others


def test_a_value_that_amqp_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot hold a set"):
        encode({1})
    with pytest.raises(struct.error):
        encode(2**63)


def test_a_text_of_octets_that_came_as_surrogates_goes_out_as_the_same_octets() -> None:
    assert encode(b"caf\xe9".decode("utf-8", "surrogateescape")) == long_string(b"S", b"caf\xe9")


def test_headers_that_lie_about_their_kind_read_as_absent() -> None:
    table = Table.of({"text": 5, "number": "many", "table": "none", "flag": True, "empty": ""})
    assert table.text("text") is None
    assert table.text("empty") is None
    assert table.number("number") is None
    assert table.number("flag") is None
    assert table.table("table") == Table()
    assert table.text("absent") is None
    assert "absent" not in table


def test_changing_a_table_leaves_the_others_of_its_pairs_raw_and_in_order() -> None:
    odd = entry(b"odd", b"T" + struct.pack(">Q", 10**13))
    table = Table.parse(entry(b"a", b"B\x01") + odd + entry(b"b", b"B\x02"))
    changed = table.plus({"a": "new"})
    assert changed.raw == odd + entry(b"b", b"B\x02") + entry(b"a", long_string(b"S", b"new"))
    assert table.get("a") == 1
    assert table.select(lambda name: name == b"odd").raw == odd
    assert table.select(lambda name: name == b"odd").filled(Table.of({"c": None})).raw == odd + entry(b"c", b"V")
