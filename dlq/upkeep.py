"""What is done to dead letters when there is time: those that are over for long are forgotten, and what
`ACKLINE_SEARCH_PATHS` newly names is indexed of those that are there already.

What is in review is never forgotten, nor what is on its way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine, delete, select

from ackline.dlq import acceptance, search_values
from ackline.dlq.audit import REVIEWER
from ackline.dlq.condition import parse_path
from ackline.dlq.transition import transitions
from ackline.infra.database import reading, writing
from ackline.infra.settings import Settings
from ackline.infra.tables import DeadLetterState, dead_letters
from ackline.infra.wire import now

#: Dead letters in one transaction: some tens of milliseconds, for which others wait.
BATCH = 500
#: When a dead letter came into the state in which it is over.
_OVER: dict[DeadLetterState, Any] = {
    DeadLetterState.HANDLED: dead_letters.c.handled_at,
    DeadLetterState.DISCARDED: dead_letters.c.discarded_at,
}


def of_letters(engine: Engine, settings: Settings) -> dict[str, Callable[[], bool]]:
    """What dead letters in the database behind *engine* need, by name; see `ackline.dlq.chores`.

    Raises `Invalid` when a path in the settings is none.
    """
    for path in settings.search_paths:
        parse_path(path)

    def index() -> bool:
        search_values.register(engine, settings.search_paths)
        return search_values.backfill(engine, BATCH)

    def forgetting(state: DeadLetterState, days: float) -> Callable[[], bool]:
        return lambda: forget(engine, state, now() - timedelta(days=days), BATCH) == BATCH

    return {
        "indexing payloads": index,
        "forgetting handled dead letters": forgetting(DeadLetterState.HANDLED, settings.keep_handled_days),
        "forgetting discarded dead letters": forgetting(DeadLetterState.DISCARDED, settings.keep_discarded_days),
    }


def forget(engine: Engine, state: DeadLetterState, before: datetime, limit: int) -> int:
    """Delete up to *limit* dead letters that have been handled, or discarded, since *before*. Returns how many.

    That so many were is put on record; what people did to them stays there.
    """
    is_old = (dead_letters.c.state == state, _OVER[state] < before)
    query = select(dead_letters.c.id).where(*is_old).order_by(_OVER[state]).limit(limit)
    with reading(engine) as connection:  # mostly there are none, and then nobody has to wait for a writer
        ids = sorted(connection.scalars(query))
    if not ids:
        return 0
    with writing(engine) as connection, transitions(connection) as moves:
        told = (dead_letters.c.fingerprint, dead_letters.c.message_id)
        gone = connection.execute(
            delete(dead_letters).where(dead_letters.c.id.in_(ids), *is_old).returning(*told)
        ).all()
        acceptance.forget(connection, [row.message_id for row in gone])
        counted = Counter(row.fingerprint for row in gone)
        for fingerprint, count in counted.items():
            moves.count(fingerprint, state, -count)
        about = {"state": state, "count": counted.total(), "before": before.isoformat()}
        moves.record(REVIEWER, "forget", "", details=about)
    return counted.total()
