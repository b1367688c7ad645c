"""What a reviewer does beside its work and nobody waits for: in small transactions, on a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import datetime

from sqlalchemy import Connection, Engine

from ackline.dlq import alerts, arrivals
from ackline.infra.database import DatabaseUnavailable, reading, writing
from ackline.infra.wire import now

log = logging.getLogger(__name__)

#: Seconds between rounds, and between two while there is more to do, so that others get to write; rows of one chore in
#: one transaction at most.
ROUND_SECONDS, NEXT_SECONDS, BATCH = 60.0, 0.05, 500

Chore = Callable[[], bool]
"""Does a part of what there is to do, and returns whether there is more. Raises `DatabaseUnavailable`."""


def of_groups(engine: Engine) -> dict[str, Chore]:
    """What groups in the database behind *engine* need, by name."""

    def chore(is_due: Callable[[Connection], bool], do: Callable[[Connection, int], int]) -> Chore:
        def part() -> bool:
            with reading(engine) as connection:  # mostly there is nothing to do, and then nobody waits for a writer
                if not is_due(connection):
                    return False
            with writing(engine) as connection:
                return do(connection, BATCH) >= BATCH

        return part

    def rates_since() -> datetime:
        return now() - arrivals.RATES_KEPT

    def alerts_since() -> datetime:
        return now() - alerts.KEPT

    return {
        "completing groups": chore(arrivals.are_incomplete, lambda db, limit: arrivals.complete(db, now(), limit)),
        "forgetting rates of groups": chore(
            lambda db: arrivals.are_old(db, rates_since()),
            lambda db, limit: arrivals.forget_rates(db, rates_since(), limit),
        ),
        "forgetting alerts": chore(
            lambda db: alerts.are_old(db, alerts_since()), lambda db, limit: alerts.forget(db, alerts_since(), limit)
        ),
    }


class Chores:
    """Does *chores* by turns, until it is stopped."""

    def __init__(self, chores: Mapping[str, Chore]) -> None:
        self._chores = chores
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reviewer-chores", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End after the transaction that is under way, within *timeout* seconds."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            is_more = [self._do(name, chore) for name, chore in self._chores.items() if not self._stopping.is_set()]
            self._stopping.wait(NEXT_SECONDS if any(is_more) else ROUND_SECONDS)

    def _do(self, name: str, chore: Chore) -> bool:
        try:
            return chore()
        except DatabaseUnavailable as error:
            log.warning("%s waits for %g s: %s", name, ROUND_SECONDS, error)
        except Exception:  # a fault in one chore keeps nobody from the others
            log.exception("%s waits for %g s", name, ROUND_SECONDS)
        return False
