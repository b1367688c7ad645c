"""Selections and conditions on payloads: what is read, what is refused, and that both come back as they were."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from ackline.dlq import search_values
from ackline.dlq.condition import Condition, Operator, parse_path, parsed, spelled
from ackline.dlq.errors import Invalid
from ackline.dlq.selection import Selection
from ackline.infra.tables import DeadLetterState, Source

READ = {
    'payload.order_id = "A-1"': Condition(("order_id",), Operator.EQUAL, "A-1"),
    "payload.order_id=17": Condition(("order_id",), Operator.EQUAL, 17),
    "payload.items[0].price >= 9.50": Condition(("items", 0, "price"), Operator.AT_LEAST, Decimal("9.50")),
    "payload.vip exists": Condition(("vip",), Operator.EXISTS),
    "payload.vip != true": Condition(("vip",), Operator.UNEQUAL, True),
    "payload.gone = null": Condition(("gone",), Operator.EQUAL, None),
    'payload["a.b"]["c\\"d"] < "2026"': Condition(("a.b", 'c"d'), Operator.LESS, "2026"),
    "payload.$ref.@type-x = 1e3": Condition(("$ref", "@type-x"), Operator.EQUAL, Decimal("1e3")),
    "  payload.größe\t<= -1 ": Condition(("größe",), Operator.AT_MOST, -1),
    "payload[3] > 0": Condition((3,), Operator.GREATER, 0),
}


@pytest.mark.parametrize("written", READ)
def test_a_condition_is_read_and_written_as_it_is_read(written: str) -> None:
    found = Condition.parse(written)
    assert found == READ[written]
    assert Condition.parse(str(found)) == found


WRONG = {
    "": "a path that begins with payload",
    "order_id = 1": "a path that begins with payload",
    "payload = 1": "a dot and a name",
    "payload. = 1": "a name of letters",
    "payload.a..b = 1": "a name of letters",
    "payload.a b = 1": "an operator",
    "payload.a == 1": "a value",
    "payload.a": "an operator",
    "payload.a =": "a value",
    "payload.a = A-1": "a value",
    "payload.a = 'A-1'": "a value",
    'payload.a = "A-1': "a value",
    "payload.a = [1]": "a value",
    "payload.a = NaN": "a value",
    "payload.a = -Infinity": "a value",
    "payload.a = 1e99999999999999999999": "a value",
    "payload.a = " + "1" * 3000: "at most 2,000 characters",
    'payload.a = "\\ud800"': "a value",
    "payload.a < true": "which < can compare",
    "payload.a > null": "which > can compare",
    "payload.a = 1 OR 1=1": "the end",
    "payload.a = 1; DROP TABLE dead_letters": "the end",
    "payload.a exists = 1": "the end",
    "payload.a existsnot": "an operator",
    "payload[-1] = 1": "an index, or a name in quotes",
    "payload[01] = 1": "an index, or a name in quotes",
    "payload[99999999999] = 1": "an index, or a name in quotes",
    'payload["a" = 1': "an index, or a name in quotes",
    "payload['a'] = 1": "an index, or a name in quotes",
    f'payload["{"x" * 201}"] = 1': "an index, or a name in quotes",
    f"payload{'.a' * 17} = 1": "at most 16 steps",
    "payload.a = " + "[" * 1900: "a value",
}


@pytest.mark.parametrize("written", WRONG)
def test_what_is_no_condition_says_where_it_is_wrong(written: str) -> None:
    with pytest.raises(Invalid) as caught:
        Condition.parse(written)
    assert WRONG[written] in str(caught.value)


HOLDS = {
    "payload.a = 1": ['{"a": 1}', '{"a": 1.0}', '{"a": 10e-1}'],
    "payload.a = 0.1": ['{"a": 0.10}'],
    "payload.a = true": ['{"a": true}'],
    "payload.a = null": ['{"a": null}'],
    'payload.a = "1"': ['{"a": "1"}'],
    "payload.a != 1": ['{"a": 2}', '{"a": "1"}', '{"a": true}', '{"a": null}', '{"a": [1]}'],
    "payload.a < 2": ['{"a": 1}', '{"a": -5.5}', '{"a": 1e-400}'],
    'payload.a >= "2026-01"': ['{"a": "2026-02-01"}', '{"a": "2026-01"}'],
    "payload.a exists": ['{"a": null}', '{"a": 0}', '{"a": {}}'],
    "payload[1].b = 2": ['[0, {"b": 2}]'],
    "payload.a = 12345678901234567890": ['{"a": 12345678901234567890}'],
}
FAILS = {
    "payload.a = 1": ["{}", "[]", "1", '{"a": "1"}', '{"a": true}', '{"b": 1}', '{"a": [1]}', "no json", ""],
    "payload.a = true": ['{"a": 1}', '{"a": "true"}'],
    "payload.a = 0.1": ['{"a": 0.1000000000000000055511151231257827}'],
    "payload.a != 1": ["{}", '{"a": 1.0}', '{"a": 1}'],
    "payload.a < 2": ['{"a": "1"}', '{"a": null}', '{"a": true}', '{"a": 2}', "{}"],
    "payload.a exists": ["{}", '["a"]', '"a"'],
    "payload[1].b = 2": ['[{"b": 2}]', '{"1": {"b": 2}}'],
    "payload.a = 12345678901234567890": ['{"a": 12345678901234567891}'],
    "payload.a > 1": ['{"a": NaN}', '{"a": 1', "[" * 100_000],
}


@pytest.mark.parametrize(("written", "payload"), [(key, one) for key, several in HOLDS.items() for one in several])
def test_a_condition_holds(written: str, payload: str) -> None:
    assert Condition.parse(written).holds(parsed(payload.encode()))


@pytest.mark.parametrize(("written", "payload"), [(key, one) for key, several in FAILS.items() for one in several])
def test_a_condition_does_not_hold(written: str, payload: str) -> None:
    assert not Condition.parse(written).holds(parsed(payload.encode()))


EQUAL = ["1", "1.0", "10e-1", "0.1e1", "1.000"]
DIFFERENT = [
    "1",
    "2",
    "10",
    "-1",
    "0",
    '"1"',
    "true",
    "false",
    "null",
    '""',
    '"null"',
    "1e999",
    "0.1",
    '"1e0"',
    "{}",
    '"{}"',
]


def test_the_index_has_one_key_for_equal_values_and_another_for_each_other() -> None:
    assert len({search_values.key(parsed(value.encode())) for value in EQUAL}) == 1
    assert len({search_values.key(parsed(value.encode())) for value in DIFFERENT}) == len(DIFFERENT)
    assert search_values.key(Decimal("-0.0")) == search_values.key(0)
    long = [search_values.key("x" * 100_000 + end) for end in "ab"]
    assert len(set(long)) == 2
    assert max(map(len, long)) < 300
    assert search_values.key("\x00\ud800").isascii()


def test_the_index_holds_what_is_at_its_paths() -> None:
    paths = [parse_path(path) for path in ("payload.a", "payload.b[0].c", "payload.missing")]
    found = search_values.values(paths, b'{"a": "x", "b": [{"c": 5}]}')
    assert found == [("payload.a", '"x"'), ("payload.b[0].c", "5e0")]
    assert search_values.values(paths, b"\xff") == []
    assert search_values.values(paths, json.dumps({"a": "x" * search_values.MAX_PAYLOAD}).encode()) == []


def test_a_path_has_one_spelling() -> None:
    assert spelled(parse_path('payload["a"].b["c d"][0]')) == 'payload.a.b["c d"][0]'
    with pytest.raises(Invalid, match="the end of the path"):
        parse_path("payload.a = 1")


WHOLE = {
    "ids": [7, 8],
    "states": ["in review", "discarded"],
    "consumer": "",
    "type": "order.placed",
    "fingerprint": "f",
    "source": "worker",
    "error_type": "ValueError",
    "message_id": "m-1",
    "correlation_id": "c-1",
    "attempts_min": 1,
    "attempts_max": 5,
    "received_since": "2026-01-01T00:00:00+00:00",
    "received_until": "2026-01-02T00:00:00+00:00",
    "text": "no such user",
    "where": ['payload.order_id = "A-1"'],
}


def test_a_selection_comes_back_from_json_as_it_was() -> None:
    found = Selection.from_json(json.loads(json.dumps(WHOLE)))
    assert found.as_json() == WHOLE
    assert found.states == (DeadLetterState.IN_REVIEW, DeadLetterState.DISCARDED)
    assert found.source is Source.WORKER
    assert Selection().as_json() == {}
    assert Selection.parse(ids=[]).as_json() == {"ids": []}


def test_a_selection_is_read_from_texts() -> None:
    found = Selection.parse(
        ids="7",
        states="in review",
        attempts_min="3",
        received_since="2026-01-01 12:00",
        received_until="2026-01-01T12:00Z",
    )
    assert (found.ids, found.states, found.attempts_min) == ((7,), (DeadLetterState.IN_REVIEW,), 3)
    assert found.received_since == found.received_until == datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert Selection.parse(consumer=None, where=None) == Selection()
    assert Selection.parse(message_id="\x00\ud800").message_id == "\\x00\\ud800"


REFUSED: dict[str, list[object]] = {
    "ids": ["x", "1 OR 1=1", -1, 0, 2**63, True, 1.5, {"a": 1}, ["1", "'"], list(range(1, 10_002)), b"1", "१"],
    "states": ["no state", "in review'--", 1, ["in review", "x"]],
    "source": ["nobody", "worker' OR '1'='1"],
    "consumer": [1, ["a"], b"a"],
    "attempts_min": ["many", -1, 2**31, "1; DROP TABLE dead_letters"],
    "attempts_max": [True],
    "received_since": ["yesterday", "2026-13-01", 5, "0001-01-01T00:00:00+14:00", "' OR 1=1 --"],
    "received_until": ["9999-12-31T23:59:59-14:00"],
    "text": ["", "'; --", "% _", "a " * 21, "x" * 1001],
    "where": ["payload.a", ["payload.a exists"] * 11, "payload.a = 1) OR (1=1", 'payload["a"]; SELECT 1 = 1', 5],
    "order": ["id; DROP TABLE dead_letters"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_a_filter_that_cannot_be_used_is_named(name: str, value: object) -> None:
    with pytest.raises(Invalid) as caught:
        Selection.parse(**{name: value}, type="order.placed")
    assert [fault.path for fault in caught.value.faults] == [name]
    assert str(caught.value).startswith(f"{name}: ")


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        Selection.parse(ids="x", source="y", type="fine")
    assert [fault.path for fault in caught.value.faults] == ["ids", "source"]
