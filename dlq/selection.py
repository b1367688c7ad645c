"""Which dead letters somebody means: as a value that is parsed, stored and shown, and as pages of ids.

Every filter is a bound parameter, whatever it holds. Pages are by key: the newest first, and each begins below the id
that the one before ended with, so that no page gets slower than the first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, select

from ackline.dlq.condition import Condition
from ackline.dlq.deadletter import clean
from ackline.dlq.errors import Fault, Invalid
from ackline.infra.tables import DeadLetterState, Source, dead_letters

#: Ids in one selection, conditions on payloads, and words of a text, at most.
MAX_IDS, MAX_CONDITIONS, MAX_WORDS = 10_000, 10, 20
#: Characters of a text filter at most.
MAX_TEXT = 1000
#: The largest id that a database holds, and the largest number of attempts.
_MAX_ID, _MAX_ATTEMPTS = 2**63 - 1, 2**31 - 1
#: What a word is in error messages, to both databases' indexes.
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Selection:
    """Those dead letters of which all of this is true; what is None, or empty, says nothing. No ids at all are `()`.

    received_since is included, received_until is not. text: words that begin words of the error message or the reason,
    all of them. where: conditions on the payload as it is now, edits included.
    """

    ids: tuple[int, ...] | None = None
    states: tuple[DeadLetterState, ...] = ()
    consumer: str | None = None  # empty: those that no consumer takes
    type: str | None = None
    fingerprint: str | None = None
    source: Source | None = None
    error_type: str | None = None
    message_id: str | None = None
    correlation_id: str | None = None
    attempts_min: int | None = None
    attempts_max: int | None = None
    received_since: datetime | None = None
    received_until: datetime | None = None
    text: str | None = None
    where: tuple[Condition, ...] = ()

    @classmethod
    def parse(cls, **raw: Any) -> Selection:
        """A selection of what people, URLs and files say: each field as its own type, or as text.

        ids, states and where take one or several; times are ISO 8601, in UTC where they name no zone. None says
        nothing. Raises `Invalid` with a fault for each field that cannot be used, unknown ones included.
        """
        chosen: dict[str, Any] = {}
        faults: list[Fault] = []
        for name, value in raw.items():
            read = _READERS.get(name)
            if read is None:
                faults.append(Fault(name, f"there is no such filter: there are {', '.join(_READERS)}"))
            elif value is not None:
                try:
                    chosen[name] = read(value)
                except Invalid as error:
                    faults.append(Fault(name, str(error)))
                except (ValueError, TypeError, OverflowError) as error:
                    faults.append(Fault(name, str(error).removesuffix(".")))
        if faults:
            raise Invalid("; ".join(f"{fault.path}: {fault.message}" for fault in faults), faults)
        return cls(**chosen)

    def as_json(self) -> dict[str, Any]:
        """What it says, in what JSON knows; `from_json` reads it back."""
        return {
            field.name: _plain(value) for field in fields(self) if (value := getattr(self, field.name)) != field.default
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Selection:
        """What `as_json` wrote. Raises `Invalid`."""
        return cls.parse(**document)

    def words(self) -> list[str]:
        """The words of `text`."""
        return _WORD.findall(self.text or "")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Condition) else value


# --- finding them -------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """Dead letters of a selection, newest first."""

    ids: list[int]
    #: `after` of what follows; None when there is no more. What is found may be less than was asked for, even nothing,
    #: and still have a `next`: then the bound of one search was reached.
    next: int | None
    #: Payloads that were read one by one.
    scanned: int


def rows(connection: Connection, selection: Selection, *, after: int | None = None, limit: int) -> Found:
    """Up to *limit* dead letters of *selection* with ids below *after*, newest first."""
    query = select(dead_letters.c.id).where(*filters(selection))
    if after is not None:
        query = query.where(dead_letters.c.id < after)
    ids = list(connection.scalars(query.order_by(dead_letters.c.id.desc()).limit(limit)))
    return Found(ids, ids[-1] if len(ids) == limit else None, 0)


def filters(selection: Selection) -> list[ColumnElement[bool]]:
    """What `dead_letters` must fulfil, as SQL: all but `text` and `where`."""
    columns = dead_letters.c
    named = ("consumer", "type", "fingerprint", "source", "error_type", "message_id", "correlation_id")
    found = [columns[name] == value for name in named if (value := getattr(selection, name)) is not None]
    if selection.ids is not None:
        found.append(columns.id.in_(selection.ids))
    if selection.states:
        found.append(columns.state.in_(selection.states))
    if selection.attempts_min is not None:
        found.append(columns.attempts >= selection.attempts_min)
    if selection.attempts_max is not None:
        found.append(columns.attempts <= selection.attempts_max)
    if selection.received_since is not None:
        found.append(columns.received_at >= selection.received_since)
    if selection.received_until is not None:
        found.append(columns.received_at < selection.received_until)
    return found


# --- reading each field -------------------------------------------------------------------------------------------


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
    if len(written) > MAX_TEXT or not 0 < len(_WORD.findall(written)) <= MAX_WORDS:
        raise ValueError(f"must have from one to {MAX_WORDS} words, in at most {MAX_TEXT:,} characters")
    return written


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text")
    return clean(value)


def _states(value: Any) -> tuple[DeadLetterState, ...]:
    return tuple(dict.fromkeys(_one_of(DeadLetterState, part) for part in _several(value)))


def _source(value: Any) -> Source:
    return _one_of(Source, value)


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


_READERS: Mapping[str, Callable[[Any], Any]] = {
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
