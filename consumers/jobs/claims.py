"""Claims: a job that runs for long is not begun by another worker to which it is delivered meanwhile.

RabbitMQ before 4.3 has one `consumer_timeout` for all, of half an hour, and delivers what takes longer again: to the
worker that runs it, where `taking` makes it the job's own delivery, or to another one. Therefore a worker notes what
has run for NOTED_SECONDS in the table of inboxes in Ackline's database, and renews that; a worker to which something is
*re*delivered looks there. What another one runs is parked, and asks again; what that one has brought to an end, well or
in review, is acked. The claim of a worker that is dead is not renewed, so it ends, and the job is run.

A claim is of one try. Without a database, or while it does not answer, nothing is claimed, and a job that is delivered
twice may run twice.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterable
from datetime import timedelta
from enum import Enum

from sqlalchemy import ColumnElement, Connection, Engine, select, tuple_, update

from ackline.consumers import inbox_rows
from ackline.consumers.inbox_rows import Key
from ackline.consumers.jobs.message import JobMessage
from ackline.infra.database import clock, connect, reading, upgrade, writing
from ackline.infra.tables import inbox

log = logging.getLogger(__name__)

#: Seconds after which what runs is claimed, and between two renewals.
NOTED_SECONDS = 5.0
#: How long a claim holds that is not renewed, and how long it is known that something ended.
_EXPIRES, _KEEP = timedelta(seconds=30), timedelta(days=7)


class Standing(Enum):
    """How a job stands that is delivered once more."""

    FREE = "nobody runs it"
    RUNS = "another worker runs it"
    OVER = "another worker has brought it to an end"


class Claims:
    """The claims of one worker, which a thread of its own keeps. Every method is for any thread."""

    def __init__(self, url: str, running: Callable[[], Iterable[JobMessage]]) -> None:
        """url: the database. running: what has run for NOTED_SECONDS; called on the thread."""
        self._url = url
        self._running = running
        self._engine: Engine = connect(url)
        self._upgraded = False
        self._held: set[Key] = set()
        #: What ended since the last look: whether that is to be known, or forgotten.
        self._ended: dict[Key, bool] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="claims", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Write down what has ended, and end. What is claimed stays so until it expires."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout)
        self._engine.dispose()

    def holds(self, message: JobMessage) -> bool:
        """Whether this worker has claimed it."""
        return bool(self._held) and _key(message) in self._held

    def end(self, message: JobMessage, *, known: bool) -> None:
        """It is over here. known: a further delivery of it is to be acked; else that is run."""
        with self._lock:
            self._ended[_key(message)] = known
        self._wake.set()

    def standing(self, message: JobMessage) -> Standing:
        """How a job stands that is delivered once more. `FREE` as well when the database does not say."""
        key = _key(message)
        if key in self._held:
            return Standing.RUNS
        try:
            with reading(self._engine) as connection:
                found = select(inbox.c.claimed_until).where(_is_in([key]))
                row = connection.execute(found).first()
                if row is None:
                    return Standing.FREE
                if row.claimed_until is None:
                    return Standing.OVER
                return Standing.RUNS if row.claimed_until > clock(connection) else Standing.FREE
        except Exception as error:
            log.warning(
                "nobody can say whether another worker runs the job %s, so it is run: %s", message.task_id, error
            )
            return Standing.FREE

    def _run(self) -> None:
        failing = False
        while not self._stopping:
            self._wake.wait(NOTED_SECONDS)
            self._wake.clear()
            try:
                self._look()
                failing = False
            except Exception as error:
                if not failing:
                    log.warning("long jobs cannot be claimed, so that another worker may run them, too: %s", error)
                failing = True

    def _look(self) -> None:
        running = {_key(message): message for message in self._running()}
        with self._lock:
            ended = dict(self._ended)
        if running or self._held or ended:
            self._note(running, ended)

    def _note(self, running: dict[Key, JobMessage], ended: dict[Key, bool]) -> None:
        if not self._upgraded:
            upgrade(self._url)
            self._upgraded = True
        new = {key: hashlib.sha256(message.body).digest() for key, message in running.items() if key not in self._held}
        with writing(self._engine) as connection:
            theirs: set[Key] = set()
            if new:
                theirs = set(inbox_rows.take(connection, new, keep=_KEEP, expires=_EXPIRES)[1])
            self._renew(connection)
            for key, known in ended.items():
                if known:
                    inbox_rows.finish(connection, key, None)
                else:
                    inbox_rows.forget(connection, [key])
        with self._lock:
            self._held = (self._held | set(new)) - theirs - set(ended)
            for key in ended:
                self._ended.pop(key, None)
        # What ended meanwhile was settled as one that is not claimed: nobody else would let go of its claim.
        still = {_key(message) for message in self._running()}
        with self._lock:
            for key in (self._held & set(new)) - still:
                self._ended.setdefault(key, False)

    def _renew(self, connection: Connection) -> None:
        if self._held:
            mine = update(inbox).where(_is_in(self._held), inbox.c.claimed_until.is_not(None))
            connection.execute(mine.values(claimed_until=clock(connection) + _EXPIRES))


def _is_in(keys: Iterable[Key]) -> ColumnElement[bool]:
    return tuple_(inbox.c.consumer, inbox.c.message_id).in_(list(keys))


def _key(message: JobMessage) -> Key:
    """Of one try: the next one is another."""
    return Key(message.queue, message.try_)
