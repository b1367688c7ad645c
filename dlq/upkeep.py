"""What a reviewer does beside its work and nobody waits for: in small transactions, on a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import Connection, Engine

from ackline.dlq import alerts, arrivals
from ackline.infra.database import DatabaseUnavailable, reading, writing
from ackline.infra.wire import now

log = logging.getLogger(__name__)

#: Seconds between rounds, and between two while there is more to do, so that others get to write; rows of one chore in
#: one transaction at most.
ROUND_SECONDS, NEXT_SECONDS, BATCH = 60.0, 0.05, 500


class Chore(NamedTuple):
    """A part of the upkeep. is_due only reads, so that mostly nobody waits for a writer; do changes up to so many rows,
    and returns how many it were."""

    is_due: Callable[[Connection], bool]
    do: Callable[[Connection, int], int]


def _before(kept: timedelta, do: Callable[..., int]) -> Callable[[Connection, int], int]:
    return lambda connection, limit: do(connection, now() - kept, limit)


CHORES: Mapping[str, Chore] = {
    "fingerprints of dead letters that have none": Chore(
        arrivals.are_incomplete, lambda connection, limit: arrivals.complete(connection, now(), limit)
    ),
    "old rates of groups": Chore(
        lambda connection: arrivals.are_old(connection, now() - arrivals.RATES_KEPT),
        _before(arrivals.RATES_KEPT, arrivals.forget_rates),
    ),
    "old alerts": Chore(
        lambda connection: alerts.are_old(connection, now() - alerts.KEPT), _before(alerts.KEPT, alerts.forget)
    ),
}


class Upkeep:
    """Does *chores* on the database behind *engine*, until it is stopped."""

    def __init__(self, engine: Engine, chores: Mapping[str, Chore] = CHORES) -> None:
        self._engine = engine
        self._chores = chores
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reviewer-upkeep", daemon=True)

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
        """Do a part of *chore*. Whether there is more."""
        try:
            with reading(self._engine) as connection:
                if not chore.is_due(connection):
                    return False
            with writing(self._engine) as connection:
                return chore.do(connection, BATCH) >= BATCH
        except DatabaseUnavailable as error:
            log.warning("%s wait for %g s: %s", name, ROUND_SECONDS, error)
        except Exception:  # a fault in one chore keeps nobody from the others
            log.exception("%s wait for %g s", name, ROUND_SECONDS)
        return False
