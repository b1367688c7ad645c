"""The reviewer's third thread: it goes on with plans of redrives whose maker was killed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy import Engine

from ackline.dlq.contracts import Contracts
from ackline.dlq.planning import Planner, abandoned
from ackline.dlq.queues import Queues
from ackline.infra.database import reading
from ackline.infra.outage import Outage

log = logging.getLogger(__name__)

#: Seconds between looks for such plans.
LOOK_SECONDS = 5.0


class Finisher:
    """Finishes the plans in the database behind *engine* that nobody goes on with, until it is stopped."""

    def __init__(self, engine: Engine, url: str, contracts: Callable[[], Contracts]) -> None:
        """url: the broker. contracts: of the application; asked for when there is a plan."""
        self._engine = engine
        self._url = url
        self._contracts = contracts
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reviewer-finisher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End after the chunk that is under way, within *timeout* seconds; the next reviewer goes on with the plan."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        outage = Outage("finishing plans", self._stopping)
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                with reading(self._engine) as connection:
                    left = abandoned(connection)
                if left:
                    self._finish(left)
                outage.over()
            except Exception as error:
                outage.wait(error)

    def _finish(self, redrive_ids: list[int]) -> None:
        with Queues(self._url) as queues:
            planner = Planner(self._engine, self._known(), queues)
            for redrive_id in redrive_ids:
                log.info("going on with the plan of redrive %d", redrive_id)
                while not self._stopping.is_set() and planner.step(redrive_id):
                    pass

    def _known(self) -> Contracts:
        """What is known of the application; nothing when it cannot be imported here, which the plan says then."""
        try:
            return self._contracts()
        except Exception as error:
            log.warning("plans are finished without the application, which cannot be imported here: %s", error)
            return Contracts({})
