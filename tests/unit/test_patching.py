"""A JSON Patch on what strangers wrote: exact, bounded, and silent about secrets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonpatch import JsonPointer
from pydantic import BaseModel, SecretStr

from ackline.consumers.shape import shape_of
from ackline.dlq import document, patching
from ackline.dlq.document import NotJson
from ackline.dlq.errors import Invalid
from ackline.dlq.patching import MAX_OPERATIONS, MAX_PATCH, MAX_PAYLOAD, prepare


class Card(BaseModel):
    number: SecretStr
    label: str = ""


class Paid(BaseModel):
    card: Card
    spare: Card | None = None
    cards: list[Card] = []
    note: str = ""


PAID = b'{"card": {"number": "4111", "label": "blue"}, "cards": [{"number": "4222"}], "note": ""}'


def apply(payload: bytes, *operations: dict[str, Any]) -> Any:
    return json.loads(prepare(list(operations)).apply(payload))


@pytest.mark.parametrize(
    ("payload", "operations", "patched"),
    [
        (b'{"a": 1}', [{"op": "add", "path": "/b", "value": [1]}], {"a": 1, "b": [1]}),
        (b'{"a": [1, 3]}', [{"op": "add", "path": "/a/1", "value": 2}], {"a": [1, 2, 3]}),
        (b'{"a": [1]}', [{"op": "add", "path": "/a/-", "value": 2}], {"a": [1, 2]}),
        (b'{"a": 1, "b": 2}', [{"op": "remove", "path": "/a"}], {"b": 2}),
        (b'{"a": 1}', [{"op": "replace", "path": "/a", "value": None}], {"a": None}),
        (b'{"a": 1}', [{"op": "move", "from": "/a", "path": "/b"}], {"b": 1}),
        (b'{"a": [1]}', [{"op": "copy", "from": "/a", "path": "/b"}], {"a": [1], "b": [1]}),
        (b'{"a": 1}', [{"op": "test", "path": "/a", "value": 1.0}, {"op": "remove", "path": "/a"}], {}),
        (b'{"a/b": 1, "~": 2}', [{"op": "remove", "path": "/a~1b"}, {"op": "remove", "path": "/~0"}], {}),
        (b"[1, 2]", [{"op": "replace", "path": "", "value": {"list": True}}], {"list": True}),
    ],
)
def test_operations_do_what_rfc_6902_says(payload: bytes, operations: list[dict[str, Any]], patched: Any) -> None:
    assert apply(payload, *operations) == patched


@pytest.mark.parametrize(
    ("payload", "operation", "why"),
    [
        (b'{"a": 1}', {"op": "remove", "path": "/b"}, "there is no such place"),
        (b'{"a": 1}', {"op": "replace", "path": "/b/c", "value": 1}, "there is no such place"),
        (b'{"a": [1]}', {"op": "remove", "path": "/a/1"}, "there is no such place"),
        (b'{"a": [1]}', {"op": "add", "path": "/a/01", "value": 1}, "there is no such place"),
        (b'{"a": [1]}', {"op": "add", "path": f"/a/{'9' * 5000}", "value": 1}, ""),
        (b'{"a": [1]}', {"op": "add", "path": "/a/7", "value": 1}, "it is not possible there"),
        (b'{"a": {}}', {"op": "move", "from": "/a", "path": "/a/b"}, "it is not possible there"),
        (b'"text"', {"op": "add", "path": "/0", "value": 1}, ""),
        (b'{"a": 1}', {"op": "test", "path": "/a", "value": True}, "something else is there, or nothing"),
        (b'{"a": "s3cret"}', {"op": "test", "path": "/a", "value": "guess"}, "something else is there, or nothing"),
    ],
)
def test_what_does_not_apply_says_which_operation_and_quotes_no_value(
    payload: bytes, operation: dict[str, Any], why: str
) -> None:
    with pytest.raises(Invalid) as raised:
        apply(payload, {"op": "test", "path": "", "value": json.loads(payload)}, operation)
    (fault,) = raised.value.faults
    assert fault.path == "patch[1]"
    assert fault.message.startswith(f"{operation['op']} {operation['path'][:50]}")
    assert why in fault.message
    assert "operation 2" in str(raised.value)
    assert "s3cret" not in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "patch",
    [
        None,
        {},
        [],
        "[]",
        [[]],
        ["remove"],
        [{"path": "/a"}],
        [{"op": "append", "path": "/a", "value": "b"}],
        [{"op": ["remove"], "path": "/a"}],
        [{"op": "remove"}],
        [{"op": "remove", "path": 1}],
        [{"op": "remove", "path": "a"}],
        [{"op": "remove", "path": "/~2"}],
        [{"op": "add", "path": "/a"}],
        [{"op": "move", "path": "/a"}],
        [{"op": "copy", "path": "/a", "from": None}],
        [{"op": "add", "path": "/a", "value": float("nan")}],
        [{"op": "add", "path": "/a", "value": object()}],
    ],
)
def test_what_is_no_patch_is_refused_before_any_message_is_touched(patch: Any) -> None:
    with pytest.raises(Invalid):
        prepare(patch)


def test_each_wrong_operation_is_named() -> None:
    with pytest.raises(Invalid) as raised:
        prepare([{"op": "remove", "path": "a"}, {"op": "remove", "path": "/a"}, {"op": "fly"}])
    assert [fault.path for fault in raised.value.faults] == ["patch[0]", "patch[2]"]


def test_a_patch_is_bounded() -> None:
    operation = {"op": "add", "path": "/a", "value": 1}
    prepare([operation] * MAX_OPERATIONS)
    with pytest.raises(Invalid, match="has at most 100 operations"):
        prepare([operation] * (MAX_OPERATIONS + 1))
    with pytest.raises(Invalid, match="has at most 100 operations"):
        prepare([{"op": "add", "path": "/a", "value": "x" * MAX_PATCH}])
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Invalid):
        prepare([{"op": "add", "path": "/a", "value": deep}])


def test_copies_cannot_make_a_payload_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patching, "MAX_PAYLOAD", 100_000)
    doubling = [{"op": "copy", "from": "/list", "path": "/list/-"}] * MAX_OPERATIONS
    with pytest.raises(Invalid, match=r"copy /list/-: the payload would be larger than 100,000 bytes"):
        prepare(doubling).apply(b'{"list": ["a"]}')
    assert MAX_PAYLOAD == 16 * 1024 * 1024


def test_a_payload_cannot_be_nested_without_end() -> None:
    nesting = [{"op": "move", "from": "/a", "path": "/b/a"}, {"op": "move", "from": "/b", "path": "/a"}]
    deep = {"op": "add", "path": "/b", "value": json.loads('{"c":' * 150 + "0" + "}" * 150)}
    deeper = {"op": "copy", "from": "/b", "path": "/b" + "/c" * 149 + "/c"}
    assert document.read(prepare([deep, *nesting]).apply(b'{"a": 1}'))
    with pytest.raises(Invalid, match="more than 200 levels"):
        prepare([deep, deeper]).apply(b'{"a": 1}')


def test_what_a_patch_does_not_touch_stays_as_it_was_written() -> None:
    payload = (
        '{"price": 0.10, "exact": 0.1000000000000000055511151231257827, "huge": 1e400, "whole": 123456789012345678901, '
        '"text": "ü \\ud83d\\ude00 \\u0000", "lone": "\\ud800", "a": 1}'
    ).encode()
    patched = prepare([{"op": "remove", "path": "/a"}]).apply(payload)
    assert b'"price": 0.10, "exact": 0.1000000000000000055511151231257827, "huge": 1E+400' in patched
    assert b'"whole": 123456789012345678901' in patched
    expected = json.loads(payload)
    del expected["a"]
    assert json.loads(patched) == expected
    assert prepare([{"op": "test", "path": "/price", "value": 0.1}]).apply(payload)


def test_a_patch_that_is_applied_many_times_is_always_the_same() -> None:
    patch = prepare([{"op": "add", "path": "/list", "value": []}, {"op": "add", "path": "/list/-", "value": 1}])
    assert [patch.apply(b"{}") for _ in range(3)] == [b'{"list": [1]}'] * 3


@pytest.mark.parametrize("payload", [b"", b"not json", b"\xff", b"NaN", b"1e99999999999999999999", b"[" * 100_000])
def test_what_is_no_json_is_a_sentence(payload: bytes) -> None:
    with pytest.raises(NotJson):
        document.read(payload)
    with pytest.raises(Invalid, match="The payload is not JSON"):
        prepare([{"op": "remove", "path": "/a"}]).apply(payload)


@pytest.mark.parametrize(
    "operations",
    [
        [{"op": "test", "path": "/card/number", "value": "4111"}],
        [{"op": "test", "path": "/card", "value": {"number": "4111", "label": "blue"}}],
        [{"op": "test", "path": "", "value": {}}],
        [{"op": "copy", "from": "/card/number", "path": "/note"}],
        [{"op": "move", "from": "/card/number", "path": "/card/label"}],
        [{"op": "copy", "from": "/card", "path": "/note"}],
        [{"op": "copy", "from": "", "path": "/note"}],
        [{"op": "copy", "from": "/cards/0/number", "path": "/note"}],
        [
            {"op": "move", "from": "/card", "path": "/spare"},
            {"op": "copy", "from": "/spare/number", "path": "/spare/label"},
        ],
    ],
)
def test_who_may_not_see_a_secret_cannot_have_a_patch_tell_it(operations: list[dict[str, Any]]) -> None:
    shape = shape_of(Paid)
    assert shape is not None
    patch = prepare(operations)
    with pytest.raises(Invalid, match="is masked, and your role may set it, not read it"):
        patch.apply(PAID, shape)


@pytest.mark.parametrize(
    ("operation", "pointer", "now"),
    [
        ({"op": "replace", "path": "/card/number", "value": "4333"}, "/card/number", "4333"),
        ({"op": "remove", "path": "/card/label"}, "/card", {"number": "4111"}),
        ({"op": "test", "path": "/card/label", "value": "blue"}, "/card/label", "blue"),
        ({"op": "copy", "from": "/card/label", "path": "/note"}, "/note", "blue"),
        ({"op": "move", "from": "/card", "path": "/spare"}, "/spare/number", "4111"),
        ({"op": "copy", "from": "/card/number", "path": "/cards/0/number"}, "/cards/0/number", "4111"),
        ({"op": "add", "path": "/cards/-", "value": {"number": "4333"}}, "/cards/1/number", "4333"),
    ],
)
def test_a_secret_can_be_set_and_moved_to_where_it_stays_one(operation: dict[str, Any], pointer: str, now: Any) -> None:
    patched = prepare([operation]).apply(PAID, shape_of(Paid))
    assert JsonPointer(pointer).resolve(json.loads(patched)) == now


def test_who_may_see_secrets_may_copy_them() -> None:
    assert apply(PAID, {"op": "copy", "from": "/card/number", "path": "/note"})["note"] == "4111"
