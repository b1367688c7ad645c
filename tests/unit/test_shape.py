"""What of a message people are shown, by its contract; and what they send back of what they saw masked."""

from __future__ import annotations

import dataclasses
import json
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypeVar

import pytest
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    JsonValue,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypeAliasType, TypedDict

from ackline.consumers.masking import MASK
from ackline.consumers.shape import Shape, shape_of
from ackline.dlq import difference, document
from ackline.dlq.condition import ABSENT
from ackline.dlq.unmasking import unmasked

MARKED = Field(json_schema_extra={"x-masked": True})
T = TypeVar("T")
Token = NewType("Token", SecretStr)
Word = TypeAliasType("Word", SecretStr)


class Colour(Enum):
    BLUE = "blue"


class Plain(BaseModel):
    name: str
    amount: Decimal = Decimal(0)
    colour: Colour = Colour.BLUE
    kind: Literal["a", "b"] = "a"
    again: Plain | None = None
    anything: JsonValue = None
    by_name: dict[str, list[int]] = {}
    pair: tuple[int, ...] = ()


class Card(BaseModel):
    number: SecretStr
    label: str = ""


class Wallet(BaseModel, Generic[T]):
    holds: T


@dataclasses.dataclass
class Held:
    tokens: list[SecretStr]
    label: str = ""


@pydantic_dataclass
class Kept:
    key: SecretBytes
    label: str = ""


class Typed(TypedDict, total=False):
    word: SecretStr
    label: str


class Pair(NamedTuple):
    label: str
    word: SecretStr


class Words(RootModel[list[SecretStr]]):
    pass


class Open(BaseModel, extra="allow"):
    pin: SecretStr
    label: str = ""


class OpenToSecrets(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, SecretStr]
    label: str = ""


class Aliased(BaseModel):
    one: Annotated[SecretStr | None, Field(alias="un")] = None
    two: SecretStr | None = Field(None, validation_alias=AliasChoices("deux", AliasPath("nested", "zwei", 0)))
    label: str = ""


class Marked(BaseModel):
    address: Plain | None = MARKED
    names: list[Annotated[str, MARKED]] = []
    number: Annotated[int | None, MARKED] = None
    label: str = ""


class Everything(BaseModel):
    label: str = ""
    card: Card | None = None
    cards: list[Card] = []
    by_name: dict[str, Card] = {}
    either: Card | str | None = None
    held: Held | None = None
    kept: Kept | None = None
    typed: Typed | None = None
    pair: Pair | None = None
    words: Words | None = None
    open: Open | None = None
    extras: OpenToSecrets | None = None
    aliased: Aliased | None = None
    marked: Marked | None = None
    wallet: Wallet[SecretStr] | None = None
    born: Secret[date] | None = None
    token: Token | None = None
    word: Word | None = None
    packed: Json[list[SecretStr]] | None = None
    several: tuple[str, SecretStr] | None = None
    again: Everything | None = None


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ('{"card": {"number": "s", "label": "y"}}', {"card": {"number": MASK, "label": "y"}}),
        ('{"card": null, "cards": []}', {"card": None, "cards": []}),
        ('{"card": {"number": null}}', {"card": {"number": None}}),
        ('{"cards": [{"number": "s"}, {"label": "x"}]}', {"cards": [{"number": MASK}, {"label": "x"}]}),
        ('{"by_name": {"mine": {"number": "s"}}}', {"by_name": {"mine": {"number": MASK}}}),
        ('{"either": {"number": "s", "label": "x"}}', {"either": {"number": MASK, "label": "x"}}),
        ('{"either": "text"}', {"either": "text"}),
        ('{"held": {"tokens": ["s", "s"], "label": "x"}}', {"held": {"tokens": [MASK, MASK], "label": "x"}}),
        ('{"kept": {"key": "s", "label": "x"}}', {"kept": {"key": MASK, "label": "x"}}),
        ('{"typed": {"word": "s", "label": "x"}}', {"typed": {"word": MASK, "label": "x"}}),
        ('{"pair": ["x", "s"]}', {"pair": [MASK, MASK]}),
        ('{"words": ["s"]}', {"words": [MASK]}),
        ('{"open": {"pin": "s", "label": "x", "other": 1}}', {"open": {"pin": MASK, "label": "x", "other": 1}}),
        ('{"extras": {"label": "x", "other": "s"}}', {"extras": {"label": "x", "other": MASK}}),
        ('{"aliased": {"un": "s", "one": "s", "label": "x"}}', {"aliased": {"un": MASK, "one": MASK, "label": "x"}}),
        ('{"aliased": {"deux": "s", "two": "s"}}', {"aliased": {"deux": MASK, "two": MASK}}),
        ('{"aliased": {"nested": {"zwei": ["s"]}}}', {"aliased": {"nested": {"zwei": [MASK]}}}),
        ('{"marked": {"address": {"name": "s"}, "label": "x"}}', {"marked": {"address": MASK, "label": "x"}}),
        ('{"marked": {"names": ["s"], "number": 7}}', {"marked": {"names": [MASK], "number": MASK}}),
        ('{"wallet": {"holds": "s"}}', {"wallet": {"holds": MASK}}),
        ('{"born": "2000-01-01", "token": "s", "word": "s"}', {"born": MASK, "token": MASK, "word": MASK}),
        ('{"packed": "[1]"}', {"packed": MASK}),
        ('{"several": ["x", "s"]}', {"several": [MASK, MASK]}),
        ('{"again": {"again": {"card": {"number": "s"}}}}', {"again": {"again": {"card": {"number": MASK}}}}),
    ],
)  # fmt: skip
def test_what_a_contract_hides_is_masked_wherever_it_is(written: str, shown: Any) -> None:
    shape = shape_of(Everything)
    assert shape is not None
    found = document.read(written.encode())
    assert document.plain(shape.shown(found)) == shown
    assert len(list(shape.secrets(found))) == json.dumps(shown).count(MASK)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ('{"crad": {"number": "s"}, "card": {"nmber": "s"}}', {"crad": MASK, "card": {"nmber": MASK}}),
        ('{"card": "s", "cards": {"0": "s"}}', {"card": MASK, "cards": {"0": MASK}}),
        ('["s"]', [MASK]),
        ('"s"', MASK),
    ],
)
def test_what_a_contract_does_not_describe_may_be_the_secret_misspelt_or_misplaced(written: str, shown: Any) -> None:
    shape = shape_of(Everything)
    assert shape is not None
    assert shape.shown(document.read(written.encode())) == shown


def test_what_the_contract_does_not_read_is_no_secret_of_it() -> None:
    shape = shape_of(Everything)
    assert shape is not None
    assert list(shape.secrets({"unknown": 2, "card": {"number": "s", "unknown": 3}})) == ["s"]


def test_a_contract_that_hides_nothing_has_no_shape_and_is_shown_whole() -> None:
    assert shape_of(Plain) is None
    assert shape_of(Wallet[int]) is None
    assert shape_of(Card) is not None


def test_a_contract_whose_annotations_cannot_be_looked_up_is_hidden() -> None:
    class Inner(TypedDict):
        label: Colours  # type: ignore[name-defined]  # noqa: F821

    assert Shape([Inner]).is_hidden


SHOWN: dict[str, Any] = {"card": {"number": MASK, "label": "blue"}, "label": "x"}
ORIGINAL: dict[str, Any] = {"card": {"number": "s1", "label": "blue"}, "label": "x"}


def back(edited: Any, original: Any) -> tuple[Any, list[str]]:
    shape = shape_of(Everything)
    assert shape is not None
    found, faults = unmasked(edited, original, shape)
    return found, [fault.path for fault in faults]


def listed(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"cards": [{"number": number, "label": label} for label, number in pairs]}


def test_where_the_mask_still_stands_the_secret_stays() -> None:
    assert back(SHOWN, ORIGINAL) == (ORIGINAL, [])
    assert back(SHOWN | {"label": "y"}, ORIGINAL) == (ORIGINAL | {"label": "y"}, [])
    assert back({"card": {"number": "new"}}, ORIGINAL) == ({"card": {"number": "new"}}, [])
    assert back({"marked": {"address": MASK}}, {"marked": {"address": {"name": "n"}}})[0] == {
        "marked": {"address": {"name": "n"}}
    }


def test_a_mask_that_stands_for_nothing_is_a_fault() -> None:
    assert back(SHOWN, {"card": None})[1] == ["payload.card.number"]
    assert back(SHOWN, ABSENT)[1] == ["payload.card.number"]
    assert back({"cards": [{"number": MASK}]}, ABSENT)[1] == ["payload.cards[0]"]
    assert back({"words": [MASK]}, {"words": ["s1", "s2"]})[1] == ["payload.words[0]"]


def test_a_mask_where_nothing_is_hidden_is_a_text() -> None:
    assert back({"label": MASK}, ORIGINAL) == ({"label": MASK}, [])


@pytest.mark.parametrize(
    ("edited", "kept"),
    [
        (listed(("a", MASK), ("b", MASK)), listed(("a", "s1"), ("b", "s2"))),
        (listed(("b", MASK), ("a", MASK)), listed(("b", "s2"), ("a", "s1"))),
        (listed(("b", MASK)), listed(("b", "s2"))),
        (listed(("c", MASK), ("b", MASK)), listed(("c", "s1"), ("b", "s2"))),
        (listed(("new", "n"), ("a", MASK), ("b", MASK)), listed(("new", "n"), ("a", "s1"), ("b", "s2"))),
        (listed(("b", MASK), ("new", "n")), listed(("b", "s2"), ("new", "n"))),
    ],
)
def test_an_item_of_a_list_keeps_its_own_secret_wherever_it_is_moved(edited: Any, kept: Any) -> None:
    assert back(edited, listed(("a", "s1"), ("b", "s2"))) == (kept, [])


@pytest.mark.parametrize("edited", [listed(("c", MASK)), listed(("b", MASK), ("c", MASK))])
def test_no_secret_is_given_to_an_item_that_may_be_another(edited: Any) -> None:
    found, faults = back(edited, listed(("a", "s1"), ("b", "s2")))
    assert len(faults) == 1
    assert "s1" not in json.dumps(found)


def test_a_difference_names_each_field_and_masks_secrets() -> None:
    shape = shape_of(Everything)
    before = b'{"label": "x", "card": {"number": "s1", "label": "blue"}, "cards": [{"number": "s2"}], "pin": 1}'
    after = (
        b'{"label": "y", "card": {"number": "s3", "label": "blue"}, "cards": [], "by_name": {"a": {"number": "s4"}}}'
    )
    assert difference.of_payloads(before, after, shape) == [
        {"path": "payload.label", "before": "x", "after": "y"},
        {"path": "payload.card.number", "before": MASK, "after": MASK},
        {"path": "payload.cards[0]", "before": {"number": MASK}},
        {"path": "payload.pin", "before": MASK},
        {"path": "payload.by_name", "after": {"a": {"number": MASK}}},
    ]
    assert difference.of_payloads(before, b"s5", shape) == [{"path": "payload", "before": MASK, "after": MASK}]


def test_a_difference_tells_kinds_apart_and_is_bounded() -> None:
    assert difference.of_payloads(b'{"a": 1, "b": 1.0}', b'{"b": 1.0, "a": true}', None) == [
        {"path": "payload.a", "before": 1, "after": True}
    ]
    assert difference.of_payloads(b"[1.0]", b"[1]", None) == [{"path": "payload[0]", "before": 1.0, "after": 1}]
    (long,) = difference.of_payloads(b'{"a": 1}', json.dumps({"a": "x" * 10_000}).encode(), None)
    assert len(long["after"]) <= difference.MAX_VALUE
    many = difference.of_payloads(b"{}", json.dumps({str(number): number for number in range(1000)}).encode(), None)
    assert len(many) == difference.MAX_FIELDS + 1
    assert many[-1] == {"more": True}
    assert json.dumps(difference.of_payloads(b'{"\\ud800": "\\ud800"}', b"{}", None), ensure_ascii=False).encode()


def test_headers_differ_as_fields_do() -> None:
    assert difference.of_headers({"tenant": "a", "old": 1}, {"tenant": "b", "x y": 2}) == [
        {"path": "headers.tenant", "before": "a", "after": "b"},
        {"path": "headers.old", "before": 1},
        {"path": 'headers["x y"]', "after": 2},
    ]
