"""A lease: of several processes on one database, the one that is active.

The holder's row expires `LEASE_SECONDS` after it was last renewed, by the clock of the database (SQLite: of the
machine, which all of them share). It is renewed every second; who finds it expired takes it over. The holder itself
counts on its own monotonic clock, from *before* it asked the database, and stops `MARGIN_SECONDS` early: so it knows
that its lease has ended before anybody else can have it, whatever the database or the network does meanwhile.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from datetime import timedelta

from sqlalchemy import Connection, Engine, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from ackline.infra.database import clock, reading, writing
from ackline.infra.outage import Outage
from ackline.infra.settings import process_name
from ackline.infra.tables import leases

log = logging.getLogger(__name__)

#: The lease of the relay of a database.
RELAY = "relay"
#: Seconds after which a lease that is not renewed can be taken over.
LEASE_SECONDS = 3.0
#: Seconds before its end at which the holder stops.
MARGIN_SECONDS = 0.5
#: Seconds between renewals, and between a standby's looks.
RENEW_SECONDS, LOOK_SECONDS = 1.0, 0.5


class Lease:
    """Takes and keeps the lease *name* on a thread of its own, from `start` to `stop`."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        self._holder = f"{process_name()} {secrets.token_hex(4)}"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease {name}", daemon=True)
        self._term = 0
        self._until = 0.0
        self._holder_seen = ""

    def start(self) -> None:
        """Try to get it, for as long as it takes.

        The first try is made here. Raises `DatabaseUnavailable` when that cannot be made.
        """
        self._try()
        self._thread.start()

    @property
    def term(self) -> int | None:
        """A number while the lease is held, None while it is not. Another number after somebody else may have had it.

        Costs nothing: look before each step that only the holder may do.
        """
        return self._term if time.monotonic() < self._until else None

    def stop(self, timeout: float) -> None:
        """Give it up, so that another has it at once. Do first what only the holder may do."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        outage = Outage("keeping the lease", self._stopping)
        while not self._stopping.wait(LOOK_SECONDS if self.term is None else RENEW_SECONDS):
            try:
                self._try()
                outage.over()
            except Exception as error:
                outage.wait(error)
        self._until = 0.0
        try:
            with writing(self._engine) as connection:
                connection.execute(delete(leases).where(leases.c.name == self._name, leases.c.holder == self._holder))
        except Exception as error:
            log.warning("the lease could not be given up, and ends in %g s: %s", LEASE_SECONDS, error)

    def _try(self) -> None:
        """Renew the lease, or take it if it is nobody's."""
        asked = time.monotonic()
        named = leases.c.name == self._name
        with reading(self._engine) as connection:  # a standby disturbs no writer
            held = connection.execute(select(leases.c.holder, leases.c.expires_at).where(named)).first()
            if held is not None and held.holder != self._holder and held.expires_at > clock(connection):
                self._stand_by(held.holder)
                return
        try:
            with writing(self._engine) as connection:
                at = clock(connection)
                ours = {"holder": self._holder, "expires_at": at + timedelta(seconds=LEASE_SECONDS)}
                renewed = update(leases).where(named, leases.c.holder == self._holder).values(ours)
                kept = bool(connection.execute(renewed.returning(leases.c.name)).all())
                if not kept:
                    self._term += 1
                    if held is None:
                        connection.execute(insert(leases).values(name=self._name, **ours))
                    else:
                        taken = update(leases).where(named, leases.c.expires_at <= at).values(ours)
                        if not connection.execute(taken.returning(leases.c.name)).all():
                            return  # another was quicker
        except IntegrityError:
            return  # as above
        if not kept:
            log.info("active: this process has the lease %r", self._name)
            self._holder_seen = self._holder
        self._until = asked + LEASE_SECONDS - MARGIN_SECONDS

    def _stand_by(self, holder: str) -> None:
        self._until = 0.0
        if holder != self._holder_seen:
            log.info("standing by: %s has the lease %r", holder, self._name)
            self._holder_seen = holder


def holder(connection: Connection, name: str) -> str | None:
    """Who has the lease *name* now; None when nobody has."""
    found = connection.execute(select(leases.c.holder, leases.c.expires_at).where(leases.c.name == name)).one_or_none()
    return None if found is None or found.expires_at <= clock(connection) else str(found.holder)
