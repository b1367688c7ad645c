"""What a person reads of a payload, whoever sent it."""

from __future__ import annotations

import gzip
import json
import pickle
import random
import zlib
from typing import Any

import pytest

from ackline.consumers.masking import MASK
from ackline.dlq.readable import MAX_READ, PREVIEW, Kind, Task, readable, task_name
from ackline.infra.properties import Properties

PLAIN = Properties()

KINDS: dict[str, tuple[bytes, Kind, str]] = {
    "JSON": (b'{"a": [1, "\xc3\xa4"]}', Kind.JSON, '{\n  "a": [\n    1,\n    "ä"\n  ]\n}'),
    "a JSON scalar": (b"17", Kind.JSON, "17"),
    "UTF-8": ("Grüße\taus\nKöln".encode(), Kind.TEXT, "Grüße\taus\nKöln"),
    "a stored script": (b"<script>alert(1)</script>", Kind.TEXT, "<script>alert(1)</script>"),
    "latin-1": ("Grüße".encode("latin-1"), Kind.LATIN_1, "Grüße"),
    "binary": (b"\x00\x01\xfe", Kind.BINARY, f"00000000  {'00 01 fe':<23}  {'':<23}  |...|"),
    "UTF-8 with control characters": (b"a\x00b", Kind.BINARY, f"00000000  {'61 00 62':<23}  {'':<23}  |a.b|"),
    "nothing": (b"", Kind.EMPTY, ""),
    "JSON that is cut short": (b'{"a": ', Kind.TEXT, '{"a": '),
    "NaN, which is no JSON": (b"[NaN]", Kind.TEXT, "[NaN]"),
    "JSON beyond any depth": (b"[" * 100_000, Kind.TEXT, "[" * PREVIEW),
    "half a surrogate pair": (b'["\\ud800"]', Kind.JSON, '[\n  "\\\\ud800"\n]'),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_body_is_shown_as_what_it_is(name: str) -> None:
    body, kind, text = KINDS[name]
    shown = readable(PLAIN, body)
    assert (shown.kind, shown.text, shown.size) == (kind, text, len(body))
    assert shown.encoding is None
    assert shown.cut is (len(body) > PREVIEW)


def test_numbers_are_not_made_others() -> None:
    shown = readable(PLAIN, b'{"a": 12345678901234567890, "b": 0.1, "c": 1e400, "d": 0.12345678901234567890}')
    assert shown.document == {"a": 12345678901234567890, "b": 0.1, "c": "1E+400", "d": "0.12345678901234567890"}
    json.dumps(shown.document, allow_nan=False)


@pytest.mark.parametrize(
    ("said", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("x-gzip", gzip.compress), (None, gzip.compress)],
)
def test_what_was_compressed_is_shown_as_what_was_inside(said: str | None, pack: Any) -> None:
    body = pack(b'{"a": 1}')
    shown = readable(Properties(content_encoding=said), body)
    assert (shown.kind, shown.document, shown.size) == (Kind.JSON, {"a": 1}, len(body))
    assert shown.encoding == ("deflate" if said == "deflate" else "gzip")


def test_what_only_says_that_it_is_compressed_is_shown_as_it_is() -> None:
    shown = readable(Properties(content_encoding="gzip"), b"plain text")
    assert (shown.kind, shown.text, shown.encoding) == (Kind.TEXT, "plain text", "gzip")


def test_a_bomb_is_shown_to_a_bound() -> None:
    body = gzip.compress(b"x" * (50 * MAX_READ))
    shown = readable(PLAIN, body)
    assert (shown.kind, shown.text, shown.cut, shown.size) == (Kind.TEXT, "x" * PREVIEW, True, len(body))


def test_a_very_large_body_is_shown_cut() -> None:
    beginning = ("ä" * PREVIEW).encode()[: PREVIEW + 1]
    shown = readable(PLAIN, beginning, 10**9)
    assert (shown.kind, shown.text, shown.cut, shown.size) == (Kind.TEXT, "ä" * (PREVIEW // 2), True, 10**9)
    long = readable(PLAIN, json.dumps(["x" * PREVIEW] * 2).encode())
    assert (long.kind, len(long.text), long.cut, len(long.document)) == (Kind.JSON, PREVIEW, True, 2)
    assert readable(PLAIN, b"\x00" * PREVIEW).cut


ARGUMENTS: list[Any] = [[1, "a"], {"b": 2}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
PROTOCOL_2 = {
    "lang": "py",
    "task": "shop.tasks.charge",
    "id": "7f1b",
    "argsrepr": "(1, 'a')",
    "kwargsrepr": "{'b': 2}",
    "retries": 3,
}


def test_a_celery_task_of_protocol_2_is_told_by_its_headers() -> None:
    properties = Properties(content_type="application/json", content_encoding="utf-8", headers=PROTOCOL_2)
    body = json.dumps(ARGUMENTS).encode()
    assert readable(properties, body).task == Task("shop.tasks.charge", "7f1b", [1, "a"], {"b": 2}, 3)
    assert task_name(properties, body) == "shop.tasks.charge"


class Bomb:
    """Ends the test run when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("import os; os._exit(66)",)


def test_a_pickled_celery_task_is_described_and_never_unpickled() -> None:
    properties = Properties(content_type="application/x-python-serialize", headers=PROTOCOL_2)
    shown = readable(properties, pickle.dumps(Bomb()))
    assert shown.kind is Kind.BINARY
    assert shown.task == Task("shop.tasks.charge", "7f1b", "(1, 'a')", "{'b': 2}", 3)


def test_a_celery_task_of_protocol_1_is_told_by_its_body() -> None:
    document = {"task": "old.add", "id": "x", "args": [1, 2], "kwargs": {}, "retries": 1, "eta": None}
    body = json.dumps(document).encode()
    assert readable(PLAIN, body).task == Task("old.add", "x", [1, 2], {}, 1)
    assert task_name(PLAIN, body) == "old.add"


NO_TASKS = [
    b'{"task": "a"}',
    b'{"task": 5, "args": [], "kwargs": {}}',
    b'{"task": "", "args": [], "kwargs": {}}',
    b'{"task": "a", "args": {}, "kwargs": {}}',
    b'"task" "kwargs"',
    b"[1, 2, 3]",
]


@pytest.mark.parametrize("body", NO_TASKS)
def test_what_only_looks_like_a_task_is_none(body: bytes) -> None:
    assert task_name(PLAIN, body) is None
    assert readable(PLAIN, body).task is None


def masked(body: bytes) -> Any:
    try:
        return {**json.loads(body), "card": MASK}
    except ValueError:
        return MASK


def test_what_is_hidden_is_in_nothing_that_is_shown() -> None:
    for body in (b'{"card": "4711"}', b"card 4711", gzip.compress(b'{"card": "4711"}'), b'{"card": "4711"'):
        shown = readable(Properties(headers=PROTOCOL_2), body, mask=masked)
        assert "4711" not in repr(shown)
        assert shown.kind in (Kind.JSON, Kind.HIDDEN)
    for body, size in ((b'{"card": "4711"}', 10**9), (b'{"card": "4711' + b" " * MAX_READ + b'"}', None)):
        shown = readable(PLAIN, body, size, masked)
        assert (shown.kind, shown.cut) == (Kind.HIDDEN, True)
        assert "4711" not in repr(shown)


def test_nothing_raises_and_all_of_it_is_json() -> None:
    chance = random.Random(7)
    alphabet = [b"\x1f\x8b\x08", b'{"task":', b"\xff", b"\x00", b'"', b"[", b"\\ud800", b"1e9", "ä".encode(), b"}"]
    encodings = [None, "gzip", "deflate", b"\xff", "utf-8"]
    for _ in range(3000):
        body = b"".join(chance.choices(alphabet, k=chance.randrange(8)))
        headers = {
            "task": chance.choice(["t", 5]),
            "id": "i",
            "retries": chance.choice([1, "x"]),
            "compression": "zlib",
        }
        properties = Properties(content_encoding=chance.choice(encodings), headers=headers)
        shown = readable(properties, body, chance.choice([None, 10**6]))
        json.dumps([shown.text, shown.document, shown.kind], allow_nan=False, ensure_ascii=False).encode()
        task_name(properties, body)
