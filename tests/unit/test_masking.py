"""What is said of a failure, without the secrets of the message that failed."""

from __future__ import annotations

import dataclasses
import json
from datetime import date
from typing import Annotated, NamedTuple, TypeAlias
from urllib.parse import quote, quote_plus

import pytest
from pydantic import BaseModel, Field, RootModel, Secret, SecretBytes, SecretStr
from typing_extensions import TypedDict

from ackline.consumers.masking import MASK, MOST_VALUES, mask_of, mask_of_body
from ackline.consumers.shape import shape_of


class Plain(BaseModel):
    name: str = "4111111111111111"
    inner: Plain | None = None
    by_name: dict[str, list[int]] = {}


class Card(BaseModel):
    number: SecretStr


@dataclasses.dataclass
class Held:
    tokens: list[SecretStr]


class Kept(TypedDict):
    key: SecretBytes


class Pair(NamedTuple):
    name: str
    word: SecretStr


class Root(RootModel[list[SecretStr]]):
    pass


class Typed(BaseModel):
    kept: Kept


class Extra(BaseModel, extra="allow"):
    __pydantic_extra__: dict[str, int]
    pin: SecretStr


class Everywhere(BaseModel):
    card: Card | None = None
    cards: list[Card] = []
    by_name: dict[str, Card] = {}
    held: Held | None = None
    kept: Kept | None = None
    pair: Pair | None = None
    root: Root | None = None
    born: Secret[date] | None = None
    aliased: Annotated[SecretStr | None, Field(alias="theirs")] = None
    several: tuple[SecretStr, ...] = ()
    again: Everywhere | None = None


def _one(written: str) -> Everywhere:
    return Everywhere.model_validate_json(written)


@pytest.mark.parametrize(
    "written",
    [
        '{"card": {"number": "s3cret-1"}}',
        '{"cards": [{"number": "other"}, {"number": "s3cret-1"}]}',
        '{"by_name": {"mine": {"number": "s3cret-1"}}}',
        '{"held": {"tokens": ["s3cret-1"]}}',
        '{"kept": {"key": "s3cret-1"}}',
        '{"pair": ["name", "s3cret-1"]}',
        '{"root": ["s3cret-1"]}',
        '{"theirs": "s3cret-1"}',
        '{"several": ["s3cret-1", "other"]}',
        '{"again": {"again": {"card": {"number": "s3cret-1"}}}}',
    ],
)
def test_a_secret_is_masked_wherever_it_is_in_the_message(written: str) -> None:
    mask = mask_of(_one(written))
    assert mask("401 for s3cret-1, as as3cret-1b") == f"401 for {MASK}, as a{MASK}b"


@pytest.mark.parametrize("model", [Everywhere, Card, Root, Typed, Extra])
def test_a_contract_with_secrets_is_known_by_its_annotations(model: type[BaseModel]) -> None:
    assert shape_of(model) is not None


def test_a_class_whose_annotations_cannot_be_read_may_hold_one() -> None:
    Word: TypeAlias = SecretStr

    @dataclasses.dataclass
    class Local:
        word: Word

    class Holder(BaseModel):
        local: Local

    assert mask_of(Holder(local=Local(SecretStr("s3cret"))))("s3cret") == MASK


def test_what_is_no_secret_stays() -> None:
    assert shape_of(Plain) is None
    assert mask_of(Plain())("4111111111111111") == "4111111111111111"


def test_a_secret_of_another_kind_is_masked_as_it_is_shown() -> None:
    assert mask_of(_one('{"born": "1990-02-03"}'))("born 1990-02-03") == f"born {MASK}"


@pytest.mark.parametrize("secret", ["a'b\"c\\d", "täg&x=1/2", "line\nbreak", "päss wörd"])
def test_a_secret_is_masked_as_python_json_and_urls_write_it(secret: str) -> None:
    forms = [secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret), quote(secret, ""), quote_plus(secret)]
    mask = mask_of(Card(number=SecretStr(secret)))
    assert [mask(f"before {form} after") for form in forms] == [f"before {MASK} after"] * len(forms)


def test_bytes_are_masked_as_python_shows_them_and_as_text() -> None:
    mask = mask_of(_one('{"kept": {"key": "k\\u00e9y-1"}}'))
    assert mask(repr("kéy-1".encode())) == f"b'{MASK}'"
    assert mask("kéy-1") == MASK


def test_a_short_secret_is_masked_only_where_it_stands_by_itself() -> None:
    mask = mask_of(Card(number=SecretStr("12")))
    assert mask("code 12, line 2012, (12) and 12.5") == f"code {MASK}, line 2012, ({MASK}) and {MASK}.5"


def test_an_empty_secret_masks_nothing() -> None:
    assert mask_of(Card(number=SecretStr("")))("text") == "text"


def test_of_a_secret_within_another_nothing_is_left() -> None:
    message = Everywhere.model_validate({"several": ["pass", "password-1"]})
    assert mask_of(message)("password-1 pass") == f"{MASK} {MASK}"


def test_what_else_a_contract_hides_is_masked() -> None:
    mask = mask_of(Card(number=SecretStr("first")), [{"street": "second"}, "third"])
    assert mask("first, second, third, street") == f"{MASK}, {MASK}, {MASK}, street"
    assert mask_of(Plain(), ["x"] * MOST_VALUES * 2)("text") == "(withheld: it may quote a secret)"


def test_of_a_body_that_is_no_message_every_value_is_masked() -> None:
    mask = mask_of_body(b'{"card": {"number": "4111-1"}, "cvc": [123, 1.5], "ok": true, "none": null}')
    assert mask("card: 4111-1, cvc 123 (not 1234), 1.5, True") == f"card: {MASK}, cvc {MASK} (not 1234), {MASK}, True"


def test_of_a_body_with_very_many_values_nothing_is_told() -> None:
    many = b"[" + b"1," * MOST_VALUES + b"1]"
    assert mask_of_body(many)("expected 7") == "(withheld: it may quote a secret)"


@pytest.mark.parametrize("body", [b"\xff", b"hello", b"[" * 100_000])
def test_of_a_body_that_is_not_json_no_value_can_be_quoted(body: bytes) -> None:
    assert mask_of_body(body)("expected value at line 1") == "expected value at line 1"
