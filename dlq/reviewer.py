"""The reviewer: takes dead letters and outcomes from the broker into the database, and runs redrives.

Outcomes of redriven messages answer their redrives; those of tracked messages become their status, which is kept for a
while and then forgotten, with the record that the broker had accepted them (`ackline.dlq.acceptance`).

Threads: the I/O thread of the `Feed` consumes and acks; the reader takes a batch from it and reads it, while the main
thread commits the one before and then has it acked; the `Sender` publishes redrives on a connection of its own; the
`Finisher` ends plans whose maker died; the `AlertSender` tells of failures that are new or return; `Chores` are what
nobody waits for. Nothing is acked before it is committed, so what the reviewer has not stored the broker still has,
whatever happens to either.

A dead letter that the database does not take is given back to its queue, again and again, and logged: it is neither
lost nor in the way of the others. An outcome that no worker writes is logged, counted and dropped: it carries nobody's
message, and kept it would come back for ever.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache

from sqlalchemy import Engine

from ackline.dlq import acceptance, deadletter, outcome
from ackline.dlq.acceptance import Accepted
from ackline.dlq.alerts import AlertSender
from ackline.dlq.chores import Chore, Chores, of_groups
from ackline.dlq.contracts import Contracts
from ackline.dlq.deadletter import DeadLetter
from ackline.dlq.feed import Arrival, Feed
from ackline.dlq.finisher import Finisher
from ackline.dlq.outcome import NotAnOutcome, Outcome
from ackline.dlq.sender import Sender
from ackline.dlq.store import Store
from ackline.infra.database import DatabaseUnavailable
from ackline.infra.names import ACCEPTED, DEAD, OUTCOMES, UNROUTED
from ackline.infra.outage import Outage
from ackline.infra.ready import ready
from ackline.infra.settings import STATUS_KEEP_DAYS
from ackline.infra.topology import declare
from ackline.infra.wire import now

log = logging.getLogger(__name__)

#: Deliveries, and bytes of payload, in one transaction at most.
BATCH, BATCH_BYTES = 500, 32 * 1024 * 1024
#: Deliveries of each queue that are held unacked at most: three batches, so that one arrives and one is read while
#: another is committed. Outcomes are small, and as many as the workers handle.
PREFETCH = {DEAD: 3 * BATCH, UNROUTED: BATCH, OUTCOMES: 4 * BATCH, ACCEPTED: BATCH}
#: Seconds between looks for statuses to forget, and how many are deleted in one transaction at most.
FORGET_SECONDS, FORGET_BATCH = 60.0, 1000
#: Seconds that a batch waits for more.
LINGER_SECONDS = 0.03
#: Seconds before a dead letter that could not be stored is delivered again.
GIVE_BACK_SECONDS = 5.0
#: Seconds to wait for the broker at the start.
CONNECT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Batch:
    """Deliveries that came together, by what they are, and what is in them: a dead letter in each of *arrivals*,
    any number of outcomes in a report, at most one record of an acceptance in a copy.
    """

    arrivals: list[Arrival] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    reports: list[Arrival] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    copies: list[Arrival] = field(default_factory=list)
    accepted: list[Accepted] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.arrivals or self.reports or self.copies)


class Reviewer:
    """Runs until `stop`. One is enough; several share the work."""

    def __init__(
        self,
        url: str,
        engine: Engine,
        *,
        grace_seconds: float = 10.0,
        status_keep_days: float = STATUS_KEEP_DAYS,
        contracts: Callable[[], Contracts] = lambda: Contracts({}),
        alerts: AlertSender | None = None,
        upkeep: Mapping[str, Chore] | None = None,
    ) -> None:
        """url: the broker. engine: the database, whose tables are up to date. grace_seconds: how long `stop` takes.

        status_keep_days: a status that has not changed for so long is forgotten. contracts: of the application, which
        is imported only when a redrive needs it: one with a patch, or one whose plan somebody else did not end. alerts:
        tells of failures, if somebody is to be told. upkeep: chores beside those that groups need.
        """
        self._store = Store(engine, alerting=alerts is not None)
        self._feed = Feed(url, PREFETCH, declare=lambda: declare(url))
        self._status_kept = timedelta(days=status_keep_days)
        self._forget_at = 0.0
        contracts = cache(contracts)
        self._sender = Sender(engine, url, contracts)
        self._finisher = Finisher(engine, url, contracts)
        self._beside: list[Chores | AlertSender] = [Chores({**of_groups(engine), **(upkeep or {})})]
        if alerts is not None:
            self._beside.append(alerts)
        self._grace = grace_seconds
        self._stopping = threading.Event()
        self._outage = Outage("taking dead letters", self._stopping)
        #: Outcomes that no worker wrote, or that the database does not take, or that answer no redrive of it.
        self.strange_outcomes = 0

    def run(self) -> None:
        """Work until `stop`. Call it on one thread, once.

        Raises `AcklineError` when the broker refuses, or does not answer at the start.
        """
        deadline = None
        try:
            self._feed.start(CONNECT_SECONDS)
            self._sender.start()
            self._finisher.start()
            for thread in self._beside:
                thread.start()
            # What is there now stays: else each full collection would go through it, and hold everybody up meanwhile.
            gc.collect()
            gc.freeze()
            ready()
            deadline = self._work()
        finally:
            for thread in self._beside:
                thread.stop(0.5)
            self._finisher.stop(2.0)
            self._sender.stop(max((deadline or 0.0) - time.monotonic(), 0.5))
            self._feed.stop(2.0)

    def stop(self) -> None:
        """End `run`: from any thread, or a signal handler."""
        self._stopping.set()

    def _work(self) -> float:
        """Take in what comes until `stop`, then what has arrived. Returns the time by which to have ended.

        While one batch is being stored the next one is read.
        """
        with ThreadPoolExecutor(1, "reviewer-reader") as reader:
            coming = reader.submit(self._next, 0.25)
            while not self._stopping.is_set():
                batch = coming.result()
                coming = reader.submit(self._next, 0.25)
                self._store_batch(batch)
                self._forget()
            deadline = time.monotonic() + self._grace
            self._feed.pause(1.0)
            batch = coming.result()
        while self._store_batch(batch) and time.monotonic() < deadline:
            batch = self._next(timeout=0.0)
        return deadline

    def _next(self, timeout: float) -> _Batch:
        """What has arrived, read. Empty when nothing came within *timeout* seconds."""
        batch = _Batch()
        for arrival in self._feed.take(BATCH, BATCH_BYTES, LINGER_SECONDS, timeout):
            if arrival.queue == OUTCOMES:
                batch.reports.append(arrival)
                batch.outcomes.extend(self._read_outcomes(arrival))
            elif arrival.queue == ACCEPTED:
                batch.copies.append(arrival)
                if (found := acceptance.read(arrival.properties, arrival.routing_key, now())) is not None:
                    batch.accepted.append(found)
            elif (letter := self._read(arrival)) is not None:
                batch.arrivals.append(arrival)
                batch.letters.append(letter)
        return batch

    def _store_batch(self, batch: _Batch) -> bool:
        """Store it and have it acked. Whether there was anything, and it could be stored."""
        return (
            bool(batch)
            and self._keep(batch.arrivals, lambda: self._store_letters(batch))
            and self._keep(batch.reports, lambda: self._store_outcomes(batch))
            and self._keep(batch.copies, lambda: self._store_accepted(batch))
        )

    def _store_letters(self, batch: _Batch) -> list[Arrival]:
        unstored = {failed.index: failed.reason for failed in self._store.ingest(batch.letters)}
        for index, reason in unstored.items():
            log.error("the database does not take the dead letter %s: %s", batch.letters[index].message_id, reason)
            self._feed.give_back([batch.arrivals[index]], GIVE_BACK_SECONDS)
        return [arrival for index, arrival in enumerate(batch.arrivals) if index not in unstored]

    def _store_outcomes(self, batch: _Batch) -> list[Arrival]:
        for found in self._store.outcomes(batch.outcomes) if batch.outcomes else []:
            about = f"of {found.message_id} for {found.consumer}, redrive {found.redrive_item_id or 'none'}"
            self._note_strange(f"it answers no redrive, or the database does not take it: {about}")
        return batch.reports

    def _store_accepted(self, batch: _Batch) -> list[Arrival]:
        self._store.accepted(batch.accepted)
        return batch.copies

    def _keep(self, arrivals: list[Arrival], store: Callable[[], list[Arrival]]) -> bool:
        """Call *store*, again and again while the database is away, and ack what it returns.

        Nothing is acked once the broker delivers them again. False: the reviewer was asked to stop before.
        """
        while arrivals and self._feed.is_current(arrivals[0]):
            try:
                kept = store()
            except Exception as error:  # whatever it is, the broker keeps them until it is over
                self._outage.wait(error)
                if self._stopping.is_set():
                    return False
                continue
            self._outage.over()
            self._feed.ack(kept)
            break
        return True

    def _read(self, arrival: Arrival) -> DeadLetter | None:
        """The dead letter; None when a fault of ours stands in the way: then the broker keeps it."""
        try:
            return deadletter.read(
                arrival.properties, arrival.body, arrival.exchange, arrival.routing_key, arrival.queue, now()
            )
        except Exception:
            log.exception("a dead letter cannot be read; it stays in %s", arrival.queue)
            self._feed.give_back([arrival], GIVE_BACK_SECONDS)
            return None

    def _forget(self) -> None:
        """Delete some of the statuses that have not changed for long, when it is time to look for them."""
        if time.monotonic() < self._forget_at:
            return
        try:
            forgotten = self._store.forget_deliveries(now() - self._status_kept, FORGET_BATCH)
        except DatabaseUnavailable as error:
            log.warning("old statuses stay for another %g s: %s", FORGET_SECONDS, error)
            forgotten = 0
        self._forget_at = time.monotonic() + (0.0 if forgotten == FORGET_BATCH else FORGET_SECONDS)

    def _read_outcomes(self, arrival: Arrival) -> Iterator[Outcome]:
        for found in outcome.read(arrival.body, now()):
            if isinstance(found, NotAnOutcome):
                self._note_strange(str(found))
            else:
                yield found

    def _note_strange(self, why: str) -> None:
        self.strange_outcomes += 1
        log.warning("an outcome that nobody waits for was dropped (the %dth): %s", self.strange_outcomes, why)
