"""Contracts: which pydantic model is which type of message."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, SecretStr

from ackline.infra import wire
from ackline.infra.errors import ConfigurationError
from ackline.producer import InvalidMessage, contracts, message
from ackline.producer import message as message_decorator
from ackline.producer.message import Contract, _contracts, contract_of, encode, key_headers, type_of, unknown


@pytest.fixture(autouse=True)
def _no_contract_outlives_its_test() -> Iterator[None]:
    before = dict(_contracts)
    yield
    _contracts.clear()
    _contracts.update(before)


def test_a_decorated_model_is_the_contract_of_its_type() -> None:
    @message("unit.order-placed.v2_x")
    class OrderPlaced(BaseModel):
        order_id: str

    assert contracts()["unit.order-placed.v2_x"] is OrderPlaced
    assert type_of(OrderPlaced) == type_of(OrderPlaced(order_id="A-1")) == "unit.order-placed.v2_x"


@pytest.mark.parametrize(
    "wrong",
    ["", ".", "a.", ".a", "a..b", "a b", "a.*", "a.#", "a\n", "é", "ackline.dead", "x" * 256, "a/b", "\x00"],
)
def test_a_type_that_is_no_routing_key_is_refused_in_a_sentence(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be a message type: use words joined by dots") as caught:
        message_decorator(wrong)
    assert repr(wrong) in str(caught.value)


def test_the_longest_type_is_accepted() -> None:
    message("x" * 255)


def test_a_second_model_of_the_same_type_is_refused_and_the_first_stays() -> None:
    @message("unit.taken")
    class First(BaseModel):
        pass

    with pytest.raises(ConfigurationError, match=r"'unit.taken' is already .*First; .*Second needs another"):

        @message("unit.taken")
        class Second(BaseModel):
            pass

    assert contracts()["unit.taken"] is First


def test_the_same_model_imported_again_replaces_itself() -> None:
    def load() -> type[BaseModel]:
        @message("unit.reloaded")
        class Reloaded(BaseModel):
            pass

        return Reloaded

    load()
    second = load()
    assert contracts()["unit.reloaded"] is second


def test_a_model_is_the_contract_of_one_type_only() -> None:
    @message("unit.one")
    class One(BaseModel):
        pass

    with pytest.raises(ConfigurationError, match=r"One is the contract of 'unit.one' already; .* for 'unit.two'"):
        message("unit.two")(One)
    assert type_of(One) == "unit.one"
    assert "unit.two" not in contracts()


def test_a_model_without_a_contract_is_no_message_even_when_its_parent_has_one() -> None:
    @message("unit.parent")
    class Parent(BaseModel):
        pass

    class Child(Parent):
        pass

    class Plain(BaseModel):
        pass

    for wrong in (Child, Child(), Plain, Plain(), object()):
        with pytest.raises(InvalidMessage, match=r"is no message: decorate it with @message\('some.type'\)"):
            type_of(wrong)  # type: ignore[arg-type]


def test_what_is_given_out_cannot_change_the_contracts() -> None:
    view = contracts()
    with pytest.raises(TypeError):
        view["unit.sneaked-in"] = BaseModel  # type: ignore[index]
    assert "unit.sneaked-in" not in contracts()


def test_a_contract_tells_its_version_and_whether_it_is_tracked() -> None:
    @message("unit.plain")
    class Plain(BaseModel):
        pass

    @message("unit.tracked", version=2, track=True)
    class Tracked(BaseModel):
        pass

    assert contract_of(Plain()) == contract_of(Plain) == Contract("unit.plain", "1", False, Plain)
    assert contract_of(Tracked()) == Contract("unit.tracked", "2", True, Tracked)


@pytest.mark.parametrize("version", ["1", "2.1", "2026-01-31", "v1_beta", 7, "x" * 32])
def test_a_version_is_a_short_word_or_a_number(version: str | int) -> None:
    @message("unit.versioned", version=version)
    class Versioned(BaseModel):
        pass

    assert contract_of(Versioned).version == str(version)


@pytest.mark.parametrize("version", ["", " ", "1 2", "é", "x" * 33, "1\n", "a/b", "1:0", [1]])
def test_a_version_that_is_no_word_is_refused_in_a_sentence(version: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be the version of 'unit.versioned': use 1 to 32 letters"):
        message("unit.versioned", version=version)


def test_an_unknown_type_is_answered_with_the_likeliest_of_those_that_there_are() -> None:
    _contracts.clear()
    assert unknown("a.b") == "There is no message type 'a.b': ACKLINE_APP names no module that has any."
    for type_ in ("order.placed", "order.paid", "email.send"):
        message(type_)(type("Some" + type_.title().replace(".", ""), (BaseModel,), {}))
    assert unknown("order.place") == (
        "There is no message type 'order.place'. Did you mean order.placed or order.paid? "
        "There are: email.send, order.paid, order.placed."
    )
    assert unknown("zzz") == "There is no message type 'zzz'. There are: email.send, order.paid, order.placed."


@pytest.mark.parametrize("hostile", ["x" * 10_000_000, "\U0001f407" * 10_000_000, "\ud800" * 80, "\x1b" * 300, "\n"])
def test_what_an_unknown_type_is_answered_is_short_and_printable_whatever_it_was(hostile: str) -> None:
    for number in range(1_000):
        message(f"unit.many.{number}")(type(f"Many{number}", (BaseModel,), {}))
    said = unknown(hostile)
    assert said.isprintable()
    assert len(said) < 500
    assert said.endswith(f" and {len(_contracts) - 10} more.")


def test_a_body_names_fields_by_the_aliases_by_which_the_contract_reads_them() -> None:
    class Camel(BaseModel):
        order_id: str = Field(alias="orderId")

    instance = Camel(orderId="A-1")
    assert encode(instance) == b'{"orderId":"A-1"}'
    assert Camel.model_validate_json(encode(instance)) == instance


def test_a_body_is_json_in_utf_8_of_what_the_contract_says() -> None:
    class Everything(BaseModel):
        name: str
        total: Decimal
        at: datetime
        extra: dict[str, Any]

    instance = Everything(name="Zoë 🐇", total=Decimal("9.50"), at=datetime(2026, 1, 2, tzinfo=UTC), extra={"a": [1]})
    body = encode(instance)
    assert json.loads(body.decode("utf-8")) == {
        "name": "Zoë 🐇",
        "total": "9.50",
        "at": "2026-01-02T00:00:00Z",
        "extra": {"a": [1]},
    }
    assert Everything.model_validate_json(body) == instance


def test_what_json_cannot_hold_is_refused_in_a_sentence() -> None:
    class Loose(BaseModel):
        anything: Any

    for wrong in ("\ud800", object(), b"\xff"):
        with pytest.raises(InvalidMessage, match="Loose cannot be written as JSON: "):
            encode(Loose(anything=wrong))


def test_numbers_that_json_does_not_know_become_null_as_pydantic_says() -> None:
    class Measured(BaseModel):
        value: float

    assert json.loads(encode(Measured(value=math.inf))) == {"value": None}


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "key"),
    [("A-1", "A-1"), (17, "17"), (UUID(int=1), str(UUID(int=1))), (Colour.RED, "red"), ("", ""), ("größe", "größe")],
)
def test_a_key_is_the_text_of_its_field_and_decides_the_slot(value: Any, key: str) -> None:
    @message("test.keyed", key="about")
    class Keyed(BaseModel):
        about: Any

    headers = key_headers(contract_of(Keyed), Keyed(about=value))
    assert headers == {"ackline-key": key, "ackline-slot": zlib.crc32(key.encode()) % 64}


def test_a_long_key_travels_as_its_digest_and_keeps_the_slot_of_the_whole() -> None:
    long = "x" * 201
    assert wire.key_headers(long) == {
        "ackline-key": hashlib.sha256(long.encode()).hexdigest(),
        "ackline-slot": zlib.crc32(long.encode()) % 64,
    }
    assert wire.key_headers("x" * 200)["ackline-key"] == "x" * 200


def test_a_message_without_a_key_has_no_headers_of_one() -> None:
    @message("test.keyed", key="about")
    class Keyed(BaseModel):
        about: str | None = None

    @message("test.keyless")
    class Keyless(BaseModel):
        about: str | None = None

    assert key_headers(contract_of(Keyed), Keyed()) == key_headers(contract_of(Keyless), Keyless(about="A-1")) == {}


@pytest.mark.parametrize("value", [1.5, True, b"A-1", ["A-1"], SecretStr("A-1"), "\ud800"])
def test_a_key_that_clients_would_write_in_several_ways_is_refused_in_a_sentence(value: Any) -> None:
    @message("test.keyed", key="about")
    class Keyed(BaseModel):
        about: Any

    with pytest.raises(InvalidMessage, match=r"The key of 'test\.keyed', its about, is "):
        key_headers(contract_of(Keyed), Keyed(about=value))


def test_a_key_that_is_no_field_is_refused_in_a_sentence() -> None:
    with pytest.raises(
        ConfigurationError, match=r"has no field 'order' that could be the key of 'test\.keyed'; it has"
    ):

        @message("test.keyed", key="order")
        class Keyed(BaseModel):
            order_id: str


def test_keys_are_spread_evenly_over_the_slots() -> None:
    slots = Counter(wire.key_headers(f"A-{number}")["ackline-slot"] for number in range(6400))
    assert len(slots) == 64
    assert max(slots.values()) < 200
