"""Who did what to which dead letter, when and why: the table `actions`, only ever added to."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, insert

from ackline.infra.tables import DeadLetterState, actions
from ackline.infra.wire import now

#: The actor of what no person did.
REVIEWER = "ackline reviewer"


def record(
    connection: Connection,
    dead_letter_ids: Iterable[int],
    actor: str,
    action: str,
    reason: str,
    before: DeadLetterState,
    after: DeadLetterState,
) -> None:
    """Note that *actor* did *action* to each of *dead_letter_ids*, in the caller's transaction."""
    at = now()
    rows = [
        {
            "at": at,
            "actor": actor,
            "action": action,
            "reason": reason,
            "dead_letter_id": dead_letter_id,
            "state_before": before,
            "state_after": after,
        }
        for dead_letter_id in dead_letter_ids
    ]
    if rows:
        connection.execute(insert(actions), rows)
