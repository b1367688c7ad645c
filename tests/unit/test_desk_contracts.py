"""What the desk knows of an application's messages."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, SecretStr, model_validator

from ackline.consumers.consumer import Consumer, matches
from ackline.consumers.masking import MASK
from ackline.consumers.ordered import Order
from ackline.dlq.contracts import MAX_FAULTS, Contracts
from ackline.infra import wire
from ackline.producer import message
from tests.working import consumer_of

TYPE = "test.desk.paid"


@message(TYPE, key="order")
class Paid(BaseModel):
    order: str | None = None
    word: SecretStr | None = None
    numbers: list[int] = []


@message("test.desk.plain")
class Plain(BaseModel):
    key: float = 0.5


@message("test.desk.broken", key="key")
class Broken(BaseModel):
    key: float = 0.5

    @model_validator(mode="before")
    @classmethod
    def _breaks(cls, value: Any) -> Any:
        if "key" not in value:
            raise RuntimeError("no key")
        return value


def _takes(name: str, *types: str, **options: Any) -> Consumer:
    return consumer_of(name, print, types=dict.fromkeys(types), **options)


CONTRACTS = Contracts(
    {
        consumer.name: consumer
        for consumer in (
            _takes("billing", TYPE),
            _takes("audit", "test.desk.*", takes_bytes=True),
            _takes("shipping", TYPE, order=Order("order")),
            _takes("mail", "test.mail"),
        )
    }
)


def test_the_consumers_of_a_type_are_those_whose_queues_get_it() -> None:
    assert CONTRACTS.consumers_of(TYPE) == ["audit", "billing", "shipping"]
    assert CONTRACTS.consumers_of("test.desk.*") == ["audit"]
    assert CONTRACTS.consumers_of("test.other") == []
    assert matches("#", "anything.at.all")
    assert CONTRACTS.ordered == ["shipping"]
    assert {TYPE, "test.desk.plain"} <= set(CONTRACTS.types)


def test_a_payload_is_checked_as_a_worker_does_it() -> None:
    assert CONTRACTS.check(TYPE, b'{"order": "A-1"}') == []
    assert CONTRACTS.check("test.desk.unknown", b"\xff") is None
    assert [found.path for found in CONTRACTS.check(TYPE, b'{"numbers": [1, "x"], "order": 1}') or []] == [
        "payload.order",
        "payload.numbers[1]",
    ]
    faults = CONTRACTS.check(TYPE, b'{"numbers": [%s]}' % b",".join([b'"x"'] * 100)) or []
    assert len(faults) == MAX_FAULTS + 1
    assert faults[-1].message == f"and {100 - MAX_FAULTS} more faults"


@pytest.mark.parametrize(
    "payload", [b"", b"\xff", b"[" * 100_000, b"1e999999", b'{"word": {}}', b'{"order": "\\ud800"}']
)
def test_checking_and_masking_take_anything(payload: bytes) -> None:
    assert CONTRACTS.check(TYPE, payload)
    assert "\ud800" not in str(CONTRACTS.mask(TYPE, payload))
    assert CONTRACTS.mask("test.desk.unknown", payload) is not None


def test_what_a_validator_of_the_application_raises_is_a_fault() -> None:
    assert [fault.message for fault in CONTRACTS.check("test.desk.broken", b"{}") or []] == [
        "its contract fails on it: RuntimeError: no key"
    ]
    (fault,) = CONTRACTS.check("test.desk.broken", b'{"key": 1}') or []
    assert "must be a text, an integer" in fault.message


def test_the_key_of_a_message_is_made_of_its_payload() -> None:
    assert CONTRACTS.key_headers(TYPE, b'{"order": "A-1"}') == wire.key_headers("A-1")
    assert CONTRACTS.key_headers(TYPE, b"{}") == {}
    assert CONTRACTS.key_headers("test.desk.plain", b"{}") is None
    assert CONTRACTS.key_headers("test.desk.unknown", b"{}") is None


def test_people_see_a_payload_without_its_secrets() -> None:
    assert CONTRACTS.mask(TYPE, b'{"order": "A-1", "word": "s3cret"}') == {"order": "A-1", "word": MASK}
    assert CONTRACTS.masked_payload(TYPE, b'{"word": "s3cret", "numbers": [0.10]}') == (
        f'{{"word": "{MASK}", "numbers": [0.10]}}'.encode()
    )
    assert CONTRACTS.mask(TYPE, b"s3cret, not json") == MASK
    assert CONTRACTS.mask("test.desk.plain", b"\xfftext") == "\\xfftext"
    assert CONTRACTS.mask("test.desk.plain", b'{"key": 0.10, "big": 1e400}') == {"key": 0.1, "big": "1E+400"}


@pytest.mark.parametrize(
    ("path", "masked"),
    [(("word",), True), (("word", "deep"), True), (("unknown",), True), (("order",), False), (("numbers", 0), False)],
)
def test_what_is_masked_is_not_searched(path: tuple[str | int, ...], masked: bool) -> None:
    assert CONTRACTS.masked(TYPE, path) is masked
    assert not CONTRACTS.masked("test.desk.plain", path)
    assert not CONTRACTS.masked("test.desk.unknown", path)
