"""What must hold at a place in a payload: `payload.order_id = "A-1"`, `payload.items[0].sku exists`.

```
condition = path, ( operator, JSON value | "exists" )
path      = "payload", { "." name | "[" index "]" | "[" JSON string "]" }
operator  = "=" | "!=" | "<" | "<=" | ">" | ">="
```

A name is of letters, digits, `_`, `-`, `$` and `@`; any other is written as a JSON string in brackets. The value is a
string in quotes, a number, true, false or null. Nothing of it ever becomes SQL.

Where there is nothing at the path, every comparison is false, `!=` included. Only like is compared with like: 1 equals
1.0 and neither "1" nor true; less and greater are for two numbers, or two strings (and so for times in ISO 8601).
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any

from ackline.dlq import document
from ackline.dlq.errors import Invalid

#: What every path begins with.
ROOT = "payload"
#: Steps of a path, and characters of a name in it and of a condition, at most.
MAX_STEPS, MAX_NAME, MAX_CONDITION = 16, 200, 2000
#: What `at` returns where there is nothing.
ABSENT: Any = object()

Path = tuple[str | int, ...]
"""The way to a value: names of members, and indexes of lists from 0."""
Scalar = str | int | Decimal | bool | None

_NAME = re.compile(r"[\w$@-]+")
_INDEX = re.compile(r"\[(0|[1-9][0-9]{0,8})\]")
_SPACE = re.compile(r"[ \t]*")
_OPERATOR = re.compile(r"!=|<=|>=|=|<|>|exists(?![\w$@-])")
#: Numbers as documents have them: 0.1 is to equal 0.10, and nothing else.
_JSON = json.JSONDecoder(parse_float=Decimal, parse_constant=lambda name: _refuse_constant(name))


class Operator(StrEnum):
    """How what is at a path is compared."""

    EQUAL = "="
    UNEQUAL = "!="
    LESS = "<"
    AT_MOST = "<="
    GREATER = ">"
    AT_LEAST = ">="
    EXISTS = "exists"


_ORDERINGS: Mapping[Operator, Callable[[Any, Any], bool]] = {
    Operator.LESS: operator.lt,
    Operator.AT_MOST: operator.le,
    Operator.GREATER: operator.gt,
    Operator.AT_LEAST: operator.ge,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on a payload. `str` writes it as `parse` reads it."""

    path: Path
    operator: Operator
    value: Scalar = None

    @classmethod
    def parse(cls, written: str) -> Condition:
        """Read *written*; the top of this module says how. Raises `Invalid`, which says where it is wrong."""
        if len(written) > MAX_CONDITION:
            raise Invalid(f"A condition has at most {MAX_CONDITION:,} characters; this one has {len(written):,}.")
        path, at = _path(written, 0)
        found = _OPERATOR.match(written, at := _skip(written, at))
        if found is None:
            raise _wrong(written, at, "an operator: = != < <= > >= exists")
        chosen, at = Operator(found.group()), _skip(written, found.end())
        value: Scalar = None
        if chosen is not Operator.EXISTS:
            value, at = _scalar(written, at)
            if chosen in _ORDERINGS and (value is None or isinstance(value, bool)):
                raise _wrong(written, at, f"a number or a string before here, which {chosen} can compare")
        if (at := _skip(written, at)) != len(written):
            raise _wrong(written, at, "the end")
        return cls(path, chosen, value)

    def __str__(self) -> str:
        compared = "" if self.operator is Operator.EXISTS else f" {document.write(self.value).decode()}"
        return f"{spelled(self.path)} {self.operator}{compared}"

    def holds(self, whole: Any) -> bool:
        """Whether it is true of a document, as `parsed` reads it."""
        found = at(whole, self.path)
        if found is ABSENT:
            return False
        if self.operator is Operator.EXISTS:
            return True
        if self.operator is Operator.EQUAL:
            return same(found, self.value)
        if self.operator is Operator.UNEQUAL:
            return not same(found, self.value)
        comparable = (_is_number(found) and _is_number(self.value)) or (
            isinstance(found, str) and isinstance(self.value, str)
        )
        return comparable and _ORDERINGS[self.operator](found, self.value)


def parse_path(written: str) -> Path:
    """Read a path alone, such as `payload.order_id`. Raises `Invalid`."""
    path, at = _path(written, 0)
    if at != len(written):
        raise _wrong(written, at, "the end of the path")
    return path


def spelled(path: Path) -> str:
    """*path* as `parse_path` reads it: one spelling for each."""
    parts = [ROOT]
    for step in path:
        if isinstance(step, int):
            parts.append(f"[{step}]")
        elif _NAME.fullmatch(step):
            parts.append(f".{step}")
        else:
            parts.append(f"[{json.dumps(step, ensure_ascii=False)}]")
    return "".join(parts)


def at(value: Any, path: Path) -> Any:
    """What is at *path* in a JSON value; `ABSENT` where there is nothing."""
    for step in path:
        if isinstance(step, int):
            if not isinstance(value, list) or step >= len(value):
                return ABSENT
            value = value[step]
        elif isinstance(value, dict) and step in value:
            value = value[step]
        else:
            return ABSENT
    return value


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; to Python 1 is True."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def parsed(payload: bytes) -> Any:
    """*payload* as a JSON document; `ABSENT` when it is none. Total."""
    try:
        return document.read(payload)
    except document.NotJson:
        return ABSENT


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, Decimal)) and not isinstance(value, bool)


def _path(written: str, at: int) -> tuple[Path, int]:
    at = _skip(written, at)
    if not written.startswith(ROOT, at):
        raise _wrong(written, at, f"a path that begins with {ROOT}")
    at += len(ROOT)
    steps: list[str | int] = []
    while at < len(written) and written[at] in ".[":
        step, at = _step(written, at)
        steps.append(step)
    if not steps:
        raise _wrong(written, at, f"a dot and a name, as in {ROOT}.order_id")
    if len(steps) > MAX_STEPS:
        raise Invalid(f"A path has at most {MAX_STEPS} steps; this one has {len(steps)}.")
    return tuple(steps), at


def _step(written: str, at: int) -> tuple[str | int, int]:
    if written[at] == ".":
        name = _NAME.match(written, at + 1)
        if name is None or len(name.group()) > MAX_NAME:
            raise _wrong(written, at + 1, f'a name of letters, digits, _ - $ @; any other as {ROOT}["any name"]')
        return name.group(), name.end()
    if index := _INDEX.match(written, at):
        return int(index.group(1)), index.end()
    quoted, end = _decoded(written, at + 1, 'an index, or a name in quotes: [0] or ["any name"]')
    if not isinstance(quoted, str) or len(quoted) > MAX_NAME or not written.startswith("]", end):
        raise _wrong(written, at + 1, 'an index, or a name in quotes: [0] or ["any name"]')
    return quoted, end + 1


def _scalar(written: str, at: int) -> tuple[Scalar, int]:
    expected = 'a value: a string in quotes such as "A-1", a number, true, false or null'
    value, end = _decoded(written, at, expected)
    if isinstance(value, (dict, list)):
        raise _wrong(written, at, expected)
    return value, end


def _decoded(written: str, at: int, expected: str) -> tuple[Any, int]:
    try:
        found, end = _JSON.raw_decode(written, at)
        if isinstance(found, str):
            found.encode()  # half a surrogate pair is no text
        return found, end
    except (ValueError, RecursionError, ArithmeticError):  # also of a number of 5,000 digits, or with such an exponent
        raise _wrong(written, at, expected) from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _skip(written: str, at: int) -> int:
    found = _SPACE.match(written, at)
    return found.end() if found else at


def _wrong(written: str, at: int, expected: str) -> Invalid:
    shown = written if len(written) <= 80 else f"{written[:80]}…"
    rest = written[at : at + 20]
    return Invalid(f"The condition {shown!r} cannot be read: at {rest!r} there should be {expected}.")
