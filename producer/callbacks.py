"""Who is owed a call when a message is final: the table `callbacks`, and what is decided after each attempt.

```
waiting ──► delivered      the receiver answered 2xx
   │  ▲
   │  └─ retry (a person)
   └─────► failed          ten attempts in 23 hours, or 410 Gone, or a message of which nothing is known for 30 days
```

A row is looked at when `next_at` has come: because a message may be final by now (no attempt has been made), or because
an attempt failed. SQL on a connection that the caller commits; the calling is in `ackline.producer.callback_sender`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ackline.infra.errors import AcklineError
from ackline.infra.retry_after import retry_after
from ackline.infra.tables import IS_UNDELIVERED, CallbackState, callbacks
from ackline.infra.wire import now
from ackline.producer.outbound import Answer

#: Seconds from each failed attempt to the next: ten attempts in 23 hours.
PAUSES = (5, 30, 120, 600, 3600, 7200, 14_400, 28_800, 28_800)
#: Seconds of a receiver's `Retry-After` that are honoured at most.
LONGEST_RETRY_AFTER = 3600
#: A message of which nothing is known after so long calls nobody: it was not accepted, or is forgotten already.
GIVE_UP = timedelta(days=30)
#: Seconds until a message that was not final is looked at again: a tenth of its age, within these bounds.
SOONEST_LOOK, LATEST_LOOK = 0.5, 300.0


class NoSuchCallback(AcklineError):
    """No callback is owed for a message with that id."""


@dataclass(frozen=True, slots=True)
class Callback:
    """One call that is owed, or was made.

    created_at: of a scheduled message, when it is due. body: what is told in every attempt; known since the first one.
    attempts: those that failed, and one that succeeded.
    """

    message_id: str
    type: str
    url: str
    created_at: datetime
    body: str | None
    state: str
    attempts: int
    next_at: datetime
    error: str | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an attempt changes on a row."""

    state: CallbackState
    attempts: int
    next_at: datetime
    error: str | None
    body: str | None

    def columns(self) -> dict[str, Any]:
        """As the table has them."""
        finished_at = None if self.state == CallbackState.WAITING else now()
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"finished_at": finished_at}


_COLUMNS = tuple(callbacks.c[name] for name in Callback.__dataclass_fields__)


def owe(connection: Connection, message_id: str, type: str, url: str) -> None:  # noqa: A002
    """Note that *url* (which `outbound.check` lets pass) is to be called when the message is final.

    Call it before the publish. A message for which a call is owed already keeps that one.
    """
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    at = now()
    row = dialect.insert(callbacks).values(
        message_id=message_id,
        type=type,
        url=url,
        created_at=at,
        state=CallbackState.WAITING,
        attempts=0,
        next_at=at + timedelta(seconds=SOONEST_LOOK),
    )
    connection.execute(row.on_conflict_do_nothing())


def owe_nothing(connection: Connection, message_id: str) -> None:
    """Forget what `owe` noted: the message was not accepted."""
    connection.execute(delete(callbacks).where(callbacks.c.message_id == message_id))


def due(connection: Connection, *, but: Collection[str], limit: int) -> list[Callback]:
    """Up to *limit* callbacks whose time has come, those that have waited longest first. but: ids to leave out."""
    query = select(*_COLUMNS).where(IS_UNDELIVERED, callbacks.c.next_at <= now())
    if but:
        query = query.where(callbacks.c.message_id.not_in(but))
    found = connection.execute(query.order_by(callbacks.c.next_at).limit(limit))
    return [Callback(**row._mapping) for row in found]


def put_off(connection: Connection, rows: Iterable[Callback]) -> None:
    """Look at *rows* again later, without an attempt, and keep their `created_at`."""
    at = now()
    waits = [
        {
            "id": row.message_id,
            "since": row.created_at,
            "at": at + timedelta(seconds=look_again_in((at - row.created_at).total_seconds())),
        }
        for row in rows
    ]
    if waits:
        change = update(callbacks).where(callbacks.c.message_id == bindparam("id"), IS_UNDELIVERED)
        connection.execute(change.values(created_at=bindparam("since"), next_at=bindparam("at")), waits)


def settle(connection: Connection, verdicts: Mapping[str, Verdict]) -> None:
    """Carry out *verdicts*, by message id."""
    for message_id, verdict in verdicts.items():
        change = update(callbacks).where(callbacks.c.message_id == message_id, IS_UNDELIVERED)
        connection.execute(change.values(**verdict.columns()))


def clean(connection: Connection, before: datetime, limit: int) -> int:
    """Delete up to *limit* callbacks that were finished *before*, and return how many they were."""
    old = select(callbacks.c.message_id).where(callbacks.c.finished_at < before).limit(limit)
    return connection.execute(delete(callbacks).where(callbacks.c.message_id.in_(old))).rowcount


def page(connection: Connection, states: Sequence[str], limit: int) -> list[Callback]:
    """Up to *limit* callbacks in one of *states*, the latest first."""
    query = select(*_COLUMNS).where(callbacks.c.state.in_(states))
    found = connection.execute(query.order_by(callbacks.c.created_at.desc(), callbacks.c.message_id).limit(limit))
    return [Callback(**row._mapping) for row in found]


def retry(connection: Connection, message_id: str) -> None:
    """Begin anew with a callback, whatever became of it: it is called at once. Raises `NoSuchCallback`."""
    change = update(callbacks).where(callbacks.c.message_id == message_id)
    anew = {"state": CallbackState.WAITING, "attempts": 0, "next_at": now(), "error": None, "finished_at": None}
    if connection.execute(change.values(anew)).rowcount != 1:
        raise NoSuchCallback(
            f"No callback is owed for a message {message_id!r}; `ackline callbacks list` shows what there is."
        )


# --- decisions --------------------------------------------------------------------------------------------------------


def look_again_in(age: float) -> float:
    """Seconds until a callback is looked at again that is *age* seconds old; negative: its message is not due yet."""
    return min(max(abs(age) / 10, SOONEST_LOOK), LATEST_LOOK)


def decide(row: Callback, outcome: Answer | AcklineError, at: datetime) -> Verdict:
    """What follows from an attempt that ended *at*; *row* is as it was before it."""
    attempts = row.attempts + 1
    if isinstance(outcome, Answer) and 200 <= outcome.status < 300:
        return Verdict(CallbackState.DELIVERED, attempts, at, None, row.body)
    said = _answered(outcome.status) if isinstance(outcome, Answer) else str(outcome)
    is_gone = isinstance(outcome, Answer) and outcome.status == HTTPStatus.GONE
    if is_gone or attempts > len(PAUSES):
        return Verdict(CallbackState.FAILED, attempts, at, said, row.body)
    asked = retry_after(outcome.retry_after, at) if isinstance(outcome, Answer) else 0.0
    pause = max(PAUSES[attempts - 1], min(asked, LONGEST_RETRY_AFTER))
    return Verdict(CallbackState.WAITING, attempts, at + timedelta(seconds=pause), said, row.body)


def give_up(row: Callback, at: datetime) -> Verdict | None:
    """The end of a callback of whose message nothing is known; None while there is hope."""
    if at - row.created_at < GIVE_UP:
        return None
    said = f"Nothing is known of the message after {GIVE_UP.days} days."
    return Verdict(CallbackState.FAILED, row.attempts, at, said, None)


def _answered(status: int) -> str:
    try:
        return f"It answered {status} {HTTPStatus(status).phrase}."
    except ValueError:
        return f"It answered {status}."
