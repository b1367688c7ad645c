"""What an arrival changes on a dead letter that is already known. Pure: the choice is a value, `intake` carries it out.

| the row is | its own redrive failed | an older redrive failed, or the same message again |
| --- | --- | --- |
| in review | (it has come back already) | a duplicate |
| redriving | in review again, one redrive more | a duplicate, flagged if it is a failure not seen before |
| handled, discarded | (it has been answered already) | a duplicate, flagged if it is a failure not seen before |

A dead letter that is delivered a second time brings no failure that is not in the history, so it changes nothing but
the count of duplicates; that is what a reviewer that died between its commit and its ack leaves behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ackline.dlq.deadletter import DeadLetter, Entry
from ackline.infra.tables import DeadLetterState, Source

#: Entries of a history at most; the first stays, of the others the latest. A person reads no more.
MAX_ENTRIES = 100

_FLAGS = {
    DeadLetterState.REDRIVING: "It failed once more, out of turn, while a redrive was under way.",
    DeadLetterState.HANDLED: "It failed once more after it had been handled.",
    DeadLetterState.DISCARDED: "It failed once more after it had been discarded.",
}


@dataclass(frozen=True, slots=True)
class Known:
    """What the choice needs of the row."""

    id: int
    state: str
    redrive_item_id: str | None
    redrive_count: int
    attempts: int
    duplicates: int
    history: list[Entry]
    flags: list[str]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Change:
    """Columns to set on the row."""

    columns: dict[str, Any]
    #: The redrive item that this answers.
    failed_item: str | None = None


def arrived_again(row: Known, dead: DeadLetter, fingerprint: str) -> Change:
    """What *dead* changes on *row*. fingerprint: of *dead*."""
    if dead.sent_by and row.state == DeadLetterState.REDRIVING and row.redrive_item_id == dead.sent_by:
        return _back_in_review(row, dead, fingerprint)
    return _duplicate(row, dead)


def _back_in_review(row: Known, dead: DeadLetter, fingerprint: str) -> Change:
    entries = [{**entry, "redrive": row.redrive_count + 1} for entry in dead.history]
    return Change(
        {
            "state": DeadLetterState.IN_REVIEW,
            "redrive_item_id": None,
            "redrive_count": row.redrive_count + 1,
            "source": dead.source,
            "reason": dead.reason,
            "error_type": dead.error_type,
            "error_message": dead.error_message,
            "traceback": dead.traceback,
            "attempts": row.attempts + dead.attempts,
            "history": bounded([*row.history, *entries]),
            "last_seen_at": dead.received_at,
            "send_error": None,
            "fingerprint": fingerprint,
        },
        failed_item=dead.sent_by,
    )


def _duplicate(row: Known, dead: DeadLetter) -> Change:
    new = [] if dead.source is Source.UNROUTED else _unseen(row.history, dead.history)
    columns: dict[str, Any] = {"duplicates": row.duplicates + 1, "last_seen_at": dead.received_at}
    if new:
        columns["history"] = bounded([*row.history, *new])
        columns["attempts"] = row.attempts + sum(entry["attempt"] is not None for entry in new)
        flag = _FLAGS.get(DeadLetterState(row.state))
        if flag and flag not in row.flags:
            columns["flags"] = [*row.flags, flag]
    return Change(columns)


def _unseen(history: Sequence[Entry], arrived: Sequence[Entry]) -> list[Entry]:
    seen = {_identity(entry) for entry in history}
    return [entry for entry in arrived if _identity(entry) not in seen]


def _identity(entry: Entry) -> tuple[object, ...]:
    return (entry["attempt"], entry["at"], entry["worker"], entry["error"])


def bounded(history: list[Entry]) -> list[Entry]:
    """*history* in `MAX_ENTRIES` entries."""
    return history if len(history) <= MAX_ENTRIES else history[:1] + history[1 - MAX_ENTRIES :]


def handled_flag(state: str, by_own_redrive: bool) -> str | None:
    """What to note when success is reported for a row that is in *state*; None when it was awaited."""
    if state == DeadLetterState.DISCARDED:
        return "It was handled after it had been discarded."
    if state == DeadLetterState.IN_REVIEW:
        return "It was handled by a redrive whose failure had arrived before."
    if state == DeadLetterState.REDRIVING and not by_own_redrive:
        return "It was handled by an earlier redrive while a later one was under way."
    return None


def applied_at(now: datetime, told: datetime) -> datetime:
    """When it happened: the worker's word, unless its clock is ahead of ours."""
    return min(now, told)
