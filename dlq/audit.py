"""What was done, by whom, when, why and to which dead letters: a chain that is only ever added to.

Each action's hash is the SHA-256 of the hash before it and of the action as JSON, its dead letters included. So who
changes or removes one, in whatever way, has to make every later hash anew; and who noted the last one's number and
hash, as `ackline audit verify` prints them, finds that too. Actions are numbered without gaps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, insert, select

from ackline.infra.tables import action_items, actions
from ackline.infra.wire import now

#: The actor of what no person did.
REVIEWER = "ackline reviewer"
#: PostgreSQL advisory lock of whoever adds to the chain; any number that nobody else uses.
_CHAIN_LOCK = 0x61636B6C636861
#: What the first action's hash covers.
BEGINNING = bytes(32)


class Entry(NamedTuple):
    """An action to be: on (dead letter, state before, state after) each."""

    actor: str
    action: str
    reason: str
    items: Sequence[tuple[int, str, str]] = ()
    details: Mapping[str, Any] | None = None


def append(connection: Connection, entries: Iterable[Entry]) -> int:
    """Add *entries* to the chain, in the caller's transaction; returns the number of the last.

    Until that ends, everybody else who adds waits: call it last in the transaction.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_CHAIN_LOCK)))
    last = connection.execute(select(actions.c.id, actions.c.hash).order_by(actions.c.id.desc()).limit(1)).one_or_none()
    number, before = (last.id, bytes(last.hash)) if last else (0, BEGINNING)
    rows, items = [], []
    at = now()
    for entry in entries:
        number += 1
        met = sorted(entry.items)
        details = dict(entry.details or {})
        before = chained(before, number, at, entry.actor, entry.action, entry.reason, details, met)
        rows.append(
            {
                "id": number,
                "at": at,
                "actor": entry.actor,
                "action": entry.action,
                "reason": entry.reason,
                "details": details,
                "count": len(met),
                "hash": before,
            }
        )
        items += [
            {"action_id": number, "dead_letter_id": row_id, "state_before": old, "state_after": new}
            for row_id, old, new in met
        ]
    if rows:
        connection.execute(insert(actions), rows)
    if items:
        connection.execute(insert(action_items), items)
    return number


def chained(
    before: bytes,
    number: int,
    at: datetime,
    actor: str,
    action: str,
    reason: str,
    details: Mapping[str, Any],
    items: Sequence[tuple[int, str, str]],
) -> bytes:
    """The hash of an action that follows the one with the hash *before*. items: in the order of their ids."""
    told = [number, at.astimezone(UTC).isoformat(timespec="microseconds"), actor, action, reason, details, items]
    # Without spaces and with sorted keys, so that whoever reads it back from a database has the same text.
    written = json.dumps(told, ensure_ascii=True, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(before + written.encode()).digest()
