"""Contracts: which pydantic model is which type of message."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from ackline.infra.errors import ConfigurationError
from ackline.producer import InvalidMessage, contracts, message
from ackline.producer import message as message_decorator
from ackline.producer.message import _contracts, encode, type_of


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
    contracts().clear()
    assert contracts() == _contracts


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
