"""The one way by which a dead letter changes its state: with the counts of its group, and on record.

```python
with transitions(connection) as moves:
    ids = moves.move([7, 8], DeadLetterState.IN_REVIEW, DeadLetterState.DISCARDED, discarded_at=now(), ...)
    moves.record("ada", "discard", "a test order", ids, DeadLetterState.IN_REVIEW, DeadLetterState.DISCARDED)
```

What is noted is written when the block ends, in the caller's transaction: first the counts, in the order of their keys,
then the actions. So no two transactions wait for each other in a circle, and the chain of actions, which all have to
queue for, is held for as short as can be. Nothing is to be changed in the transaction after the block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, update
from sqlalchemy.dialects import postgresql, sqlite

from ackline.dlq import audit
from ackline.dlq.rights import Actor
from ackline.infra.many import among
from ackline.infra.tables import DeadLetterState, dead_letters, fingerprint_counts


@contextmanager
def transitions(connection: Connection) -> Iterator[Transitions]:
    """Changes of states within this block."""
    moves = Transitions(connection)
    yield moves
    moves.write()


class Transitions:
    """See `transitions`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._counts: Counter[tuple[str, str]] = Counter()
        self._actions: list[audit.Entry] = []
        #: The number of the last action that was recorded, once it is written; 0 before.
        self.last_action = 0

    def move(self, ids: Collection[int], before: DeadLetterState, after: DeadLetterState, **columns: Any) -> list[int]:
        """Bring those of *ids* that are in *before* to *after*, and set *columns*. Returns which they were.

        Of two who try at once one gets the row. The same columns for all, or an expression for each.
        """
        moved: list[int] = []
        statement = (
            update(dead_letters)
            .where(among(dead_letters.c.id, ids), dead_letters.c.state == before)
            .values(state=after, **columns)
            .returning(dead_letters.c.id, dead_letters.c.fingerprint)
        )
        for row_id, fingerprint in self._connection.execute(statement):
            self.count(fingerprint, before, -1)
            self.count(fingerprint, after, 1)
            moved.append(row_id)
        return moved

    def count(self, fingerprint: str, state: str, change: int) -> None:
        """Note that *change* more dead letters of *fingerprint* are in *state*: for who changes rows otherwise."""
        if fingerprint:
            self._counts[fingerprint, state] += change

    def record(
        self,
        actor: Actor | str,
        action: str,
        reason: str,
        ids: Iterable[int] | None = None,
        before: DeadLetterState = DeadLetterState.IN_REVIEW,
        after: DeadLetterState = DeadLetterState.IN_REVIEW,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Put it on record that *actor* did *action* to the dead letters *ids*; one entry for all of them.

        actor: a person as `Actor`, so that who approved it is on record too. details: what fits into JSON. An action on
        no dead letter (empty *ids*) did not happen, and is not recorded; one that is about something else has None.
        """
        items = [(row_id, str(before), str(after)) for row_id in ids or ()]
        if items or ids is None:
            self._actions.append(audit.Entry(actor, action, reason, items, details))

    def write(self) -> None:
        """Write what was noted."""
        rows = [
            {"fingerprint": fingerprint, "state": state, "count": change}
            for (fingerprint, state), change in sorted(self._counts.items())
            if change
        ]
        if rows:
            self._connection.execute(_UPSERTS[self._connection.dialect.name], rows)
        if self._actions:
            self.last_action = audit.append(self._connection, self._actions)


def _upsert(insert: Any) -> Any:
    statement = insert(fingerprint_counts)
    old, new = fingerprint_counts.c["count"], statement.excluded["count"]
    return statement.on_conflict_do_update(
        index_elements=[fingerprint_counts.c.fingerprint, fingerprint_counts.c.state], set_={"count": old + new}
    )


_UPSERTS = {"sqlite": _upsert(sqlite.insert), "postgresql": _upsert(postgresql.insert)}
