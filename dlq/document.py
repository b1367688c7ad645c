"""A payload as a JSON document: what nobody changes in it stays as it was written.

Numbers with a fraction or an exponent are read as `Decimal`, for a price of 0.10 is to stay 0.10, and a number of
thirty digits is to keep them. What RFC 8259 does not know (NaN, Infinity) is no JSON here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal
from math import isfinite
from typing import Any, NoReturn

#: Levels of a document at most: pydantic reads no more of them either.
MAX_DEPTH = 200


class NotJson(ValueError):
    """The payload is no JSON document; says where it ends to be one."""


def read(payload: bytes) -> Any:
    """The document in *payload*. Raises `NotJson`, and nothing else."""
    try:
        document = json.loads(payload.decode(), parse_float=Decimal, parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise NotJson(f"byte {error.start} is no UTF-8") from None
    except ArithmeticError:
        raise NotJson("an exponent is too large") from None
    except RecursionError:
        raise NotJson(_TOO_DEEP) from None
    except ValueError as error:
        raise NotJson(str(error)) from None
    # What has no more brackets than levels is not looked through.
    if payload.count(b"{") + payload.count(b"[") > MAX_DEPTH and is_too_deep(document):
        raise NotJson(_TOO_DEEP)
    return document


_TOO_DEEP = f"it is nested more than {MAX_DEPTH} levels deep"


def is_too_deep(document: Any) -> bool:
    """Whether *document* has more than `MAX_DEPTH` levels. Else a function that calls itself can walk it."""
    level = [document]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for value in level if isinstance(value, (dict, list)) for inner in _within(value)]
        if not level:
            return False
    return True


def _within(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def write(document: Any) -> bytes:
    """*document* as a payload."""
    # A lone surrogate can only be in a string, where its escape is JSON's too.
    return _written(document).encode("utf-8", "backslashreplace")


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_text(name)}: {_written(inner)}' for name, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return str(value) if isinstance(value, Decimal) else _text(value)


_text = json.JSONEncoder(ensure_ascii=False).encode


def plain(document: Any) -> Any:
    """*document* in what any JSON writer takes.

    A Decimal becomes a float, or a text where no float holds it; a lone surrogate shows as its escape.
    """
    if isinstance(document, dict):
        return {plain(name): plain(inner) for name, inner in document.items()}
    if isinstance(document, list):
        return [plain(inner) for inner in document]
    if isinstance(document, Decimal):
        return number if isfinite(number := float(document)) and Decimal(repr(number)) == document else str(document)
    return document.encode("utf-8", "backslashreplace").decode() if isinstance(document, str) else document


def same(one: Any, other: Any) -> bool:
    """Whether two documents say the same, in the same kinds: neither 1 and true are the same, nor 1 and 1.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(inner, other[name]) for name, inner in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
