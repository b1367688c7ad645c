"""Masking the secrets of a message in what is said of its failure.

What a handler raises may quote its message, in its own text, in that of a library, or in one that was chained to it.
The text goes into headers, logs, reports and the database, where many more people read than the message was for. So the
values of what the contract hides (`ackline.consumers.shape`) are replaced there, wherever in the message they are: as
they are, and as Python, JSON and URLs write them.

A value of fewer than `SHORT` characters is replaced only where it stands by itself: `12` is masked, and `2012` is not,
for else the text would become unreadable, and tell the value by its gaps. What a handler made of a secret, such as a
hash or a part of it, is not found. Of a body that cannot be read all values count as secret.

Costs nothing but on failure, and then nothing but a look-up for a contract without such fields.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
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


def mask_of(message: BaseModel, hidden: Sequence[object] = ()) -> Mask:
    """A function that returns a text without the secrets of *message*.

    hidden: what else is hidden of it, as JSON has it. When it has more than `MOST_VALUES`, nothing of the text is left.
    """
    return _mask_within_bounds(_values(hidden), _secrets(message))


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
    return _mask_within_bounds(_values(document))


def _mask_within_bounds(found: Iterator[object], secrets: Iterable[object] = ()) -> Mask:
    values = list(islice(found, MOST_VALUES + 1))
    return _mask([*secrets, *values]) if len(values) <= MOST_VALUES else _withhold


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
        elif isinstance(value, list | tuple):
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
