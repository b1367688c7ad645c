"""Masking the secrets of a message in what is said of its failure.

What a handler raises may quote its message, in its own text, in that of a library, or in one that was chained to it.
The text goes into headers, logs, reports and the database, where many more people read than the message was for. So the
values of the contract's `SecretStr`, `SecretBytes` and `Secret` fields are replaced there, wherever in the message they
are: as they are, and as Python, JSON and URLs write them.

A value of fewer than `SHORT` characters is replaced only where it stands by itself: `12` is masked, and `2012` is not,
for else the text would become unreadable, and tell the value by its gaps. What a handler made of a secret, such as a
hash or a part of it, is not found. Of a body that cannot be read all values count as secret.

Costs nothing but on failure, and then nothing but a look-up for a contract without such fields.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import islice
from typing import Any
from urllib.parse import quote, quote_plus

from pydantic import BaseModel, Secret, SecretBytes, SecretStr

#: What stands for a secret; pydantic shows the same.
MASK = "**********"
#: Characters from which on a secret is replaced within words too.
SHORT = 4
#: Values of a body that are looked for at most: the time to look grows with them.
MOST_VALUES = 1000

_SECRET = (Secret, SecretStr, SecretBytes)

Mask = Callable[[str], str]


def mask_of(*messages: BaseModel) -> Mask:
    """A function that returns a text without the secrets of *messages*."""
    return _mask(secret for message in messages if holds_secrets(type(message)) for secret in _secrets(message))


def mask_of_body(body: bytes) -> Mask:
    """A function that returns a text without any of the values in *body*, which is no message of its contract.

    When it has more than `MOST_VALUES`, nothing of the text is left.
    """
    try:
        return mask_of_values(json.loads(body))
    except (ValueError, RecursionError):  # then the contract has not seen a value either
        return str


def mask_of_values(document: object) -> Mask:
    """The same for what *document* holds, in lists and dictionaries as JSON has them."""
    values = list(islice(_values(document), MOST_VALUES + 1))
    return _mask(values) if len(values) <= MOST_VALUES else _withhold


def _withhold(text: str) -> str:
    return "(withheld: it may quote a secret)"


def _mask(secrets: Iterable[object]) -> Mask:
    forms = {form for secret in secrets for form in _forms(secret)}
    if not forms:
        return str
    # The longest first, so that a secret within another leaves nothing of it.
    pattern = re.compile("|".join(map(_pattern, sorted(forms, key=len, reverse=True))))
    return lambda text: pattern.sub(MASK, text)


def _pattern(value: str) -> str:
    found = re.escape(value)
    return found if len(value) >= SHORT else rf"(?<!\w){found}(?!\w)"


def _forms(secret: object) -> Iterator[str]:
    """How texts may write *secret*."""
    if isinstance(secret, bytes):
        yield repr(secret)[2:-1]
        secret = secret.decode("utf-8", "backslashreplace")
    said = str(secret)
    if said:
        yield said
        yield repr(said)[1:-1]
        yield json.dumps(said)[1:-1]
        yield json.dumps(said, ensure_ascii=False)[1:-1]
        encodable = said.encode("utf-8", "replace")
        yield quote(encodable)
        yield quote(encodable, safe="")
        yield quote_plus(encodable)


def _values(value: object) -> Iterator[object]:
    """The texts and numbers in what JSON holds."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
        elif value is not None and not isinstance(value, bool):
            yield value


def _secrets(value: object) -> Iterator[object]:
    """The secret values in *value*, however deep."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, _SECRET):
            yield value.get_secret_value()
        elif isinstance(value, BaseModel):
            left.extend(value.__dict__.values())
            left.extend((value.__pydantic_extra__ or {}).values())
        elif isinstance(value, Mapping):
            left.extend(value.keys())
            left.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            left.extend(value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            left.extend(getattr(value, field.name) for field in dataclasses.fields(value))


@cache
def holds_secrets(model: type[BaseModel]) -> bool:
    """Whether messages of *model* may hold secrets: decided by its annotations, once."""
    seen: set[type] = set()
    left: list[Any] = [model]
    while left:
        annotation = left.pop()
        if isinstance(annotation, type) and issubclass(annotation, _SECRET):
            return True
        left.extend(typing.get_args(annotation))
        left.extend(filter(None, [typing.get_origin(annotation), getattr(annotation, "__value__", None)]))
        if isinstance(annotation, type) and annotation not in seen:
            seen.add(annotation)
            left.extend(_fields(annotation))
    return False


def _fields(cls: type) -> Iterable[Any]:
    """The annotations of what an instance of *cls* is made of."""
    if issubclass(cls, BaseModel):
        return [field.annotation for field in cls.model_fields.values()]
    is_typed_dict = hasattr(cls, "__required_keys__")  # typing's, or that of typing_extensions
    if dataclasses.is_dataclass(cls) or is_typed_dict or (issubclass(cls, tuple) and cls is not tuple):
        try:
            return typing.get_type_hints(cls).values()
        except NameError:  # defined in a function, where pydantic could look it up: it may hold one
            return (SecretStr,)
    return ()
