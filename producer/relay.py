"""The relay: publishes the messages of an outbox, in the order of its rows.

**If and only if.** A row is seen when its transaction is committed, and noted as published after the broker has
confirmed it. A crash in between publishes it again under the same id; none loses it.

**Order.** One relay per database is active (`ackline.producer.lease`). It reads the waiting rows from the lowest id,
has a batch of them in flight, and reads again from the lowest id that still waits: a row whose transaction was
committed after that of a higher id is published when it becomes visible. A lost connection does not change the order
(see `ackline.producer.pipeline`); a kill repeats rows from the first that was not noted. Only a row that the broker
refuses for now (a nack) is overtaken, by those that were in flight with it.

**What cannot be published.** What may work later (no connection, an alarm, a missing exchange or right) leaves the row
waiting, with the error in it, and the relay tries again from the first such row. A row that the broker will never take
as it is becomes `failed`, for a person (`ackline outbox list --state failed`), and holds up nobody.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from concurrent.futures import Future, InvalidStateError, wait
from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import Connection, Engine, Select, and_, delete, func, or_, select, update

from ackline.infra.database import reading, writing
from ackline.infra.errors import AcklineError
from ackline.infra.outage import Outage
from ackline.infra.properties import Properties
from ackline.infra.ready import ready
from ackline.infra.table import text
from ackline.infra.tables import IS_IN_OUTBOX, OutboxState, outbox
from ackline.infra.wire import cut, entrance, now
from ackline.producer.companion import Companion, Work
from ackline.producer.errors import InvalidMessage, MessageTooLarge, NotPermitted, PublishError, PublishTimeout
from ackline.producer.lease import RELAY, Lease
from ackline.producer.publisher import Publisher

log = logging.getLogger(__name__)

#: Rows in flight, and bytes of their payloads, at most.
BATCH, BATCH_BYTES = 1000, 32 * 1024 * 1024
#: Scheduled rows that are let go in one transaction at most.
DUE_BATCH = 5000
#: Seconds between looks at an outbox in which nothing waits.
POLL_SECONDS = 0.1
#: Seconds to wait for the broker at the start.
CONNECT_SECONDS = 30.0
#: Seconds to wait for a confirm.
CONFIRM_SECONDS = 10.0
#: Seconds until rows are tried again that could not be published with the others of their batch.
AGAIN_SECONDS = 2.0
#: Seconds between rounds of cleaning up, and rows that one transaction deletes at most.
CLEAN_SECONDS, CLEAN_BATCH = 5.0, 5000
#: Bytes of an error in a row at most.
MAX_ERROR = 1024


class _NotNow(AcklineError):
    """Nothing can be published at present."""


class _Waiting(NamedTuple):
    """A row that waits to be published."""

    id: int
    type: str
    properties: bytes
    payload: bytes


class Relay:
    """Publishes the outbox of one database, from `run` to `stop`. Several on one database: one is active."""

    def __init__(
        self,
        publisher: Publisher,
        engine: Engine,
        *,
        keep_seconds: float = 3600.0,
        keep_cancelled_seconds: float = 30 * 86400.0,
        grace_seconds: float = 10.0,
        while_active: Work | None = None,
    ) -> None:
        """publisher: the relay closes it. engine: a database with the tables of an outbox.

        keep_seconds: how long published rows are kept. keep_cancelled_seconds: the same for cancelled ones, which are
        all that tells of such a message. grace_seconds: how long `stop` takes.
        while_active: what else the active one of several relays does, on a thread of its own.
        """
        self._publisher = publisher
        self._engine = engine
        self._keep = {
            OutboxState.PUBLISHED: timedelta(seconds=keep_seconds),
            OutboxState.CANCELLED: timedelta(seconds=keep_cancelled_seconds),
        }
        self._grace = grace_seconds
        self._lease = Lease(engine, RELAY)
        self._stopping = threading.Event()
        self._stop_by = float("inf")
        self._clean_at = 0.0
        self._probing = False
        self._companion = Companion(while_active, "relay companion") if while_active else None

    def run(self) -> None:
        """Work until `stop`. Call it on one thread, once.

        Raises `AcklineError` when the broker refuses or neither it nor the database answers at the start.
        """
        outage = Outage("publishing from the outbox", self._stopping)
        try:
            self._publisher.wait_until_connected(CONNECT_SECONDS)
            self._lease.start()
            ready()
            while not self._stopping.is_set():
                term = self._lease.term
                if self._companion is not None:
                    self._companion.stop() if term is None else self._companion.start()
                if term is None:
                    self._stopping.wait(POLL_SECONDS)
                    continue
                try:
                    pause = self._work(term)
                    outage.over()
                except Exception as error:  # whatever it is, the rows are kept until it is over
                    outage.wait(error)
                    continue
                self._stopping.wait(pause)
        finally:
            # In this order: who has the lease next finds nothing of ours on its way.
            if self._companion is not None:
                self._companion.stop()
            self._publisher.close(max(min(self._stop_by - time.monotonic(), self._grace), 0.5))
            if self._companion is not None:
                self._companion.join(max(min(self._stop_by - time.monotonic(), self._grace), 0.5))
            self._lease.stop(1.0)

    def stop(self) -> None:
        """End `run`: from any thread, or a signal handler."""
        self._stop_by = time.monotonic() + self._grace
        self._stopping.set()

    def _work(self, term: int) -> float:
        """Publish one batch. Returns the seconds to wait before the next.

        Raises `_NotNow` when nothing can be published at present, `DatabaseUnavailable`.
        """
        self._clean()
        with reading(self._engine) as connection:  # first, for on SQLite a writer waits for others
            time_has_come = connection.execute(_due().limit(1)).first() is not None
        if time_has_come:
            self._let_go()
        problem = self._publisher.problem
        with reading(self._engine) as connection:
            ids = _next_ids(connection, 1 if problem or self._probing else BATCH)
            if not ids:
                return POLL_SECONDS
            rows = _rows(connection, ids)
        if problem:
            self._note([], {}, {row.id: problem for row in rows})
            raise _NotNow(problem)
        return self._publish(rows, term)

    def _publish(self, rows: list[_Waiting], term: int) -> float:
        """Publish *rows* for as long as the lease is ours, and note what became of each."""
        sent: dict[int, Future[None]] = {}
        failed: dict[int, str] = {}
        for row in rows:
            if self._lease.term != term or self._stopping.is_set():
                break
            try:
                sent[row.id] = self._send(row)
            except PublishError as error:
                failed[row.id] = str(error)
        self._await(sent, term)
        published: list[int] = []
        again: dict[int, str] = {}
        unknown = 0
        for id_, future in sent.items():
            if not future.done():  # we stop: what became of it is unknown, and it is published again
                continue
            refusal = future.exception()
            if refusal is None:
                published.append(id_)
            elif _is_its_fault(refusal):
                failed[id_] = str(refusal)
            else:
                again[id_] = str(refusal)
                unknown += isinstance(refusal, PublishTimeout)
        self._note(published, failed, again)
        # A broker that is connected and silent still holds what it was sent. It is not given the whole batch again, and
        # again, but one message, until it answers.
        self._probing = unknown == len(sent) > 0
        if again and not published and not failed:
            raise _NotNow(next(iter(again.values())))
        if again:
            log.warning("%d messages could not be published yet: %s", len(again), next(iter(again.values())))
            return AGAIN_SECONDS
        return 0.0

    def _send(self, row: _Waiting) -> Future[None]:
        """Publish *row*. Raises `PublishError` when the broker would close the connection on it."""
        if not (isinstance(row.payload, bytes) and isinstance(row.properties, bytes) and len(row.type.encode()) <= 255):
            raise InvalidMessage("The row cannot be published: its type is too long, or its payload is no bytes.")
        properties = Properties.from_wire(row.properties)
        if not properties.is_whole:
            raise InvalidMessage("The row cannot be published: its properties are not those of an AMQP message.")
        return self._publisher.send(entrance(properties), row.type, properties, row.payload, timeout=CONFIRM_SECONDS)

    def _await(self, sent: dict[int, Future[None]], term: int) -> None:
        """Wait until each of *sent* is answered, which it is by its deadline; at a stop not longer than the grace.

        When the lease ends, what has no answer is taken back, so that two relays do not publish at once. (What is on
        its way to the broker already cannot be.)
        """
        for future in reversed(sent.values()):  # confirms come in order: nearly always only the last is waited for
            while not future.done() and time.monotonic() < self._stop_by and self._lease.term == term:
                wait([future], 0.25)
        if self._lease.term != term:
            for future in sent.values():
                with contextlib.suppress(InvalidStateError):
                    future.set_exception(PublishTimeout("The lease ended meanwhile; another relay publishes it."))

    # --- in the database -------------------------------------------------------------------------------

    def _let_go(self) -> None:
        """Take the time away from rows whose time has come: they wait like the others, and cannot be cancelled."""
        chosen = _due().limit(DUE_BATCH)
        while True:
            with writing(self._engine) as connection:
                # The state is asked for again: on PostgreSQL somebody may cancel the row after it was chosen.
                gone = update(outbox).where(outbox.c.id.in_(chosen), IS_IN_OUTBOX).values(due_at=None)
                if len(connection.execute(gone.returning(outbox.c.id)).all()) < DUE_BATCH:
                    return

    def _note(self, published: list[int], failed: dict[int, str], again: dict[int, str]) -> None:
        """Write down what became of rows. The broker has what is published, so this is tried until it works."""
        for id_, why in failed.items():
            log.error("row %d of the outbox failed: %s `ackline outbox retry` tries it again.", id_, why)
        outage = Outage("noting what was published", self._stopping)
        while True:
            try:
                with writing(self._engine) as connection:
                    _finish(connection, published, OutboxState.PUBLISHED, None)
                    for why, ids in _by_reason(failed).items():
                        _finish(connection, ids, OutboxState.FAILED, why)
                    for why, ids in _by_reason(again).items():
                        noted = update(outbox).where(outbox.c.id.in_(ids), outbox.c.error.is_distinct_from(why))
                        connection.execute(noted.values(error=why))
                return outage.over()
            except Exception as error:
                if self._stopping.is_set():
                    raise  # what is published will be published again
                outage.wait(error)

    def _clean(self) -> None:
        """Delete a batch of rows whose time to be kept is over, now and then."""
        if time.monotonic() < self._clean_at:
            return
        at = now()
        over = select(outbox.c.id).where(
            or_(
                *(and_(outbox.c.state == state, outbox.c.finished_at < at - keep) for state, keep in self._keep.items())
            )
        )
        with reading(self._engine) as connection:
            ids = list(connection.scalars(over.order_by(outbox.c.finished_at).limit(CLEAN_BATCH)))
        if ids:
            with writing(self._engine) as connection:
                connection.execute(delete(outbox).where(outbox.c.id.in_(ids)))
        if len(ids) < CLEAN_BATCH:
            self._clean_at = time.monotonic() + CLEAN_SECONDS


def _due() -> Select[tuple[int]]:
    """Scheduled rows whose time has come, the longest due first."""
    return select(outbox.c.id).where(IS_IN_OUTBOX, outbox.c.due_at <= now()).order_by(outbox.c.due_at, outbox.c.id)


def _next_ids(connection: Connection, limit: int) -> list[int]:
    """The rows to publish next, in order: *limit* at most, and not much more than BATCH_BYTES of payload."""
    size = func.length(outbox.c.payload)
    found = select(outbox.c.id, size).where(IS_IN_OUTBOX, outbox.c.due_at.is_(None)).order_by(outbox.c.id).limit(limit)
    ids, total = [], 0
    for id_, bytes_ in connection.execute(found):
        ids.append(id_)
        total += bytes_
        if total >= BATCH_BYTES:
            break
    return ids


def _rows(connection: Connection, ids: list[int]) -> list[_Waiting]:
    columns = (outbox.c[name] for name in _Waiting._fields)
    found = select(*columns).where(IS_IN_OUTBOX, outbox.c.id.in_(ids)).order_by(outbox.c.id)
    return [_Waiting(*row) for row in connection.execute(found)]


def _finish(connection: Connection, ids: list[int], state: OutboxState, error: str | None) -> None:
    if ids:
        finished = update(outbox).where(outbox.c.id.in_(ids), IS_IN_OUTBOX)
        connection.execute(finished.values(state=state, finished_at=now(), error=error))


def _by_reason(reasons: dict[int, str]) -> dict[str, list[int]]:
    """Ids by the reason, in words that any database takes."""
    ids: dict[str, list[int]] = {}
    for id_, why in reasons.items():
        ids.setdefault(cut(text(why.encode("utf-8", "backslashreplace")), MAX_ERROR), []).append(id_)
    return ids


def _is_its_fault(error: BaseException) -> bool:
    """Whether the broker will never take this message as it is; anything else may work later, for all of them.

    The right to write to the exchange is missing for every message, and an operator can give it; the right to a topic
    is about this one. RabbitMQ closes the channel with 403 in both cases, and only its words tell.
    """
    if isinstance(error, NotPermitted):
        return "access to exchange" not in str(error)
    return isinstance(error, (MessageTooLarge, InvalidMessage))
