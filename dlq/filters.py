"""Reading the filters of a selection, one by one: from people, URLs and files.

Each takes the value in its own type, or as text. What cannot be used raises `Invalid`, ValueError, TypeError or
OverflowError, which say why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from ackline.dlq.condition import Condition
from ackline.dlq.deadletter import clean
from ackline.infra.tables import DeadLetterState, Source

#: Ids in one selection, conditions on payloads, and words of a text, at most.
MAX_IDS, MAX_CONDITIONS, MAX_WORDS = 10_000, 10, 20
#: Characters of a text filter at most.
MAX_TEXT = 1000
#: The largest id that a database holds, and the largest number of attempts.
_MAX_ID, _MAX_ATTEMPTS = 2**63 - 1, 2**31 - 1
#: What a word is in error messages, to both databases' indexes.
WORD = re.compile(r"[^\W_]+")


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)) else [value]


def _whole(value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError("must be a whole number")
    if isinstance(value, str) and not re.fullmatch(r"-?[0-9]{1,19}", value, re.ASCII):
        raise ValueError("must be a whole number")
    if not least <= int(value) <= most:
        raise ValueError(f"must be between {least} and {most}")
    return int(value)


def _ids(value: Any) -> tuple[int, ...]:
    found = tuple(dict.fromkeys(_whole(part, 1, _MAX_ID) for part in _several(value)))
    if len(found) > MAX_IDS:
        raise ValueError(f"at most {MAX_IDS:,} can be named at once; a filter takes any number")
    return found


def _attempts(value: Any) -> int:
    return _whole(value, 0, _MAX_ATTEMPTS)


def _words(value: Any) -> str:
    written = _text(value)
    if len(written) > MAX_TEXT or not 0 < len(WORD.findall(written)) <= MAX_WORDS:
        raise ValueError(f"must have from one to {MAX_WORDS} words, in at most {MAX_TEXT:,} characters")
    return written


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text")
    return clean(value)


def _states(value: Any) -> tuple[DeadLetterState, ...]:
    return tuple(dict.fromkeys(_one_of(DeadLetterState, part) for part in _several(value)))


def _source(value: Any) -> Source:
    found: Source = _one_of(Source, value)
    return found


def _one_of(kind: Any, value: Any) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"must be one of {', '.join(kind)}") from None


def _time(value: Any) -> datetime:
    try:
        found = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        raise ValueError("must be a time as in 2026-01-31T08:00:00Z") from None


def _where(value: Any) -> tuple[Condition, ...]:
    found = tuple(part if isinstance(part, Condition) else Condition.parse(_text(part)) for part in _several(value))
    if len(found) > MAX_CONDITIONS:
        raise ValueError(f"at most {MAX_CONDITIONS} conditions can be asked for at once")
    return found


#: By the name of the filter.
READERS: Mapping[str, Callable[[Any], Any]] = {
    "ids": _ids,
    "states": _states,
    "consumer": _text,
    "type": _text,
    "fingerprint": _text,
    "source": _source,
    "error_type": _text,
    "message_id": _text,
    "correlation_id": _text,
    "attempts_min": _attempts,
    "attempts_max": _attempts,
    "received_since": _time,
    "received_until": _time,
    "text": _words,
    "where": _where,
}
