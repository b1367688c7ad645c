"""The beat: runs the ticks of schedules, from `run` to `stop`. Any number of beats; one is active.

Once a second, and when a tick is due, the active one reads the schedules and the time from the database, decides what
is due (`due`), and has each schedule's ticks run in a transaction of their own (`rows`). It keeps nothing in memory
from one look to the next, so it makes no difference which beat looks, or how long it slept.

**The clock** is the one that all beats share: the database's (SQLite: the machine's). Where it jumps ahead, the ticks
in between are late, and what becomes of them is their schedule's rule. Where it goes back, ticks are planned again from
the time that it shows, and those that were run are not run again.

**What cannot be done.** While the database is away nothing is run; afterwards what is late is treated as above. A tick
that cannot be made (no such job, data that its contract refuses) is tried again at every look, and its schedule shows
the error; the other schedules go on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Protocol

from sqlalchemy import Connection, Engine, text

from ackline.consumers.schedules import rows
from ackline.consumers.schedules.due import due
from ackline.consumers.schedules.rows import Stored
from ackline.consumers.schedules.schedule import Origin, Schedule
from ackline.infra.database import DatabaseUnavailable, clock, reading, writing
from ackline.infra.errors import AcklineError
from ackline.infra.outage import Outage
from ackline.infra.ready import ready
from ackline.infra.settings import process_name
from ackline.producer.lease import RELAY, holder

log = logging.getLogger(__name__)

#: Seconds between looks at most.
LOOK_SECONDS = 1.0
#: Seconds between rounds of cleaning up.
_CLEAN_SECONDS = 60.0
#: By how much a clock may be set back without a word: ticks are then simply awaited once more.
_SLACK = timedelta(seconds=1)
#: Milliseconds that a transaction may stand still.
_IDLE_MILLISECONDS = 5000
#: Seconds to wait at the start until it is known who is active.
_START_SECONDS = 30.0


class _Choice(Protocol):
    """Who is active (`leadership`)."""

    @property
    def is_active(self) -> bool: ...
    def start(self, timeout: float) -> None: ...
    def stop(self) -> None: ...


class Beat:
    """Runs the schedules of one database."""

    def __init__(
        self,
        engine: Engine,
        choice: _Choice,
        declared: Mapping[str, tuple[Origin, Schedule]],
        *,
        now: Callable[[Connection], datetime] = clock,
    ) -> None:
        """engine: the tables of the newest version. choice: the beat starts and stops it. declared: as of
        `schedule.declared`. now: the time, in UTC, by the clock that all beats share.
        """
        self._engine = engine
        self._choice = choice
        self._declared = declared
        self._now = now
        self._by = process_name()
        self._stopping = threading.Event()
        self._synchronised = False
        self._clean_at: datetime | None = None
        self._unheard = False

    def run(self) -> None:
        """Work until `stop`. Call it on one thread, once. Raises `BrokerRefused` at the start."""
        self._choice.start(_START_SECONDS)
        outage = Outage("running schedules", self._stopping)
        ready()
        try:
            while not self._stopping.is_set():
                if not self._choice.is_active:
                    self._synchronised = False
                    self._stopping.wait(LOOK_SECONDS)
                    continue
                try:
                    pause = self.look()
                    outage.over()
                except Exception as error:  # whatever it is, the rows know what is due
                    outage.wait(error)
                    continue
                self._stopping.wait(pause)
        finally:
            self._choice.stop()

    def stop(self) -> None:
        """End `run`: from any thread, or a signal handler."""
        self._stopping.set()

    def look(self) -> float:
        """Run what is due. Returns the seconds until something may be due again. Raises `DatabaseUnavailable`."""
        if not self._synchronised:
            with self._writing() as connection:
                rows.synchronise(connection, self._declared, self._now(connection))
            self._synchronised = True
        with reading(self._engine) as connection:
            now = self._now(connection)
            stored = rows.listed(connection)
        waits = [self._run(each, now) for each in stored if each.declared and each.paused_at is None]
        self._clean(now)
        return min(LOOK_SECONDS, *waits) if waits else LOOK_SECONDS

    def _run(self, stored: Stored, now: datetime) -> float:
        """Run the ticks of one schedule. Returns the seconds until its next one."""
        try:
            if stored.covered_to > now + _SLACK:
                return self._go_back(stored, now)
            schedule = stored.schedule
            timing = schedule.timing
            found = due(timing, stored.covered_to, now, schedule.missed, schedule.allowance)
            if found is None:
                following = timing.after(now)
                return LOOK_SECONDS if following is None else max((following - now).total_seconds(), 0.0)
            with self._writing() as connection:
                ids = rows.run(connection, stored, found.run, found.reached, self._by, now)
        except DatabaseUnavailable:
            raise
        except Exception as error:
            self._say_failed(stored, error)
            return LOOK_SECONDS
        if ids is not None:
            self._say_run(stored, found.run, ids, found.skipped)
        return 0.0

    def _go_back(self, stored: Stored, now: datetime) -> float:
        """The clock was ahead: begin anew from the time that it shows now."""
        with self._writing() as connection:
            if rows.cover(connection, stored, now):
                log.warning(
                    "%s: the clock went back, from %s or later to %s; ticks that have been run are not run again",
                    stored.name,
                    stored.covered_to.isoformat(timespec="seconds"),
                    now.isoformat(timespec="seconds"),
                )
        return 0.0

    def _say_run(self, stored: Stored, ticks: list[datetime], ids: list[str], skipped: datetime | None) -> None:
        if skipped is not None:
            log.warning(
                "%s: missed up to %s, and skipped as its rule says",
                stored.name,
                skipped.isoformat(timespec="seconds"),
            )
        if ids:
            log.info("%s: ran %s as %s", stored.name, ticks[-1].isoformat(timespec="seconds"), ids[-1])

    def _say_failed(self, stored: Stored, error: Exception) -> None:
        """Keep why it cannot be run, for the list, and log it once."""
        said = str(error) if isinstance(error, AcklineError) else f"{type(error).__name__}: {error}"
        with self._writing() as connection:
            if rows.fail(connection, stored, said):
                bug = None if isinstance(error, AcklineError) else error
                log.error("%s cannot be run: %s Trying again until it can.", stored.name, said, exc_info=bug)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction that PostgreSQL ends if this process stands still in it, so that others can go on."""
        with writing(self._engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = {_IDLE_MILLISECONDS}"))
            yield connection

    def _clean(self, now: datetime) -> None:
        """Delete what is old, and say when nobody publishes, now and then."""
        if self._clean_at is not None and timedelta(0) <= now - self._clean_at < timedelta(seconds=_CLEAN_SECONDS):
            return
        with self._writing() as connection:
            rows.clean(connection, now)
            relay = holder(connection, RELAY)
        if relay is None and self._clean_at is not None and not self._unheard:
            log.warning("no relay is active: what schedules run waits in the outbox until `ackline relay` publishes it")
        self._unheard = relay is None
        self._clean_at = now
