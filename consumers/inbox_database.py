"""A database with an inbox, as a worker uses it: connections, the table, and a thread that keeps the table small."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ackline.consumers import inbox_rows
from ackline.consumers.decision import Park
from ackline.consumers.inbox_rows import Key
from ackline.infra import database
from ackline.infra.database import DatabaseUnavailable, is_outage
from ackline.infra.errors import AcklineError, ConfigurationError
from ackline.infra.outage import Outage
from ackline.infra.settings import settings
from ackline.infra.tables import create_missing, has_all, inbox_metadata

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Connections for handlers when nobody has said how many of them run at once: outside of a worker.
CONNECTIONS = 8
#: Seconds after which a message comes back whose database does not work.
AWAY_SECONDS = 5.0
#: Seconds between rounds of noting what the broker has confirmed.
NOTE_SECONDS = 1.0
#: Seconds between rounds of cleaning up, and rows that one transaction deletes at most, once in `NOTE_SECONDS`.
CLEAN_SECONDS, CLEAN_BATCH = 3600.0, 5000
#: Seconds that a stop waits for the thread, and for connections of an event loop to be closed.
STOP_SECONDS = 5.0


class InboxDatabase:
    """One for each URL of a process, see `of`. Thread-safe."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._lock = threading.Lock()
        self._users = 0
        self._connections = CONNECTIONS
        self._engine: Engine | None = None
        self._async_engine: AsyncEngine | None = None
        self._is_away = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._confirmed: deque[Key] = deque()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # --- for the worker --------------------------------------------------------------------------------

    def open(self, connections: int) -> None:
        """See that the table is there, and begin to keep it small; once for each `close`.

        connections: handlers that run at once; each of those that use this database has one.
        Raises `ConfigurationError`, `DatabaseUnavailable`, and `AcklineError` when the table cannot be created.
        """
        with self._lock:
            if not self._users:
                self._connections = connections
                self._create_table()
                self._stopping.clear()
                self._thread = threading.Thread(target=self._keep_house, name="inbox", daemon=True)
                self._thread.start()
            self._users += 1

    def check_async(self) -> None:
        """Raises `ConfigurationError` when no async handler can use it."""
        _connect_async(self.url, 1)

    def close(self) -> None:
        """No handler runs any more: note what is confirmed, and close the connections."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            self._stopping.set()
            if self._thread is not None:
                self._thread.join(STOP_SECONDS)
            engine, self._engine = self._engine, None
            async_engine, self._async_engine = self._async_engine, None
        if engine is not None:
            engine.dispose()
        if async_engine is not None and self._loop is not None and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(async_engine.dispose(), self._loop).result(STOP_SECONDS)

    def _create_table(self) -> None:
        """In Ackline's own database by its migrations; in another one, nothing is changed but this table created."""
        if self.url == settings().database:
            database.upgrade(self.url)
            return
        where = f"The database {self.engine.url.render_as_string(hide_password=True)}"
        try:
            with database.reading(self.engine) as connection:
                if has_all(connection, inbox_metadata):
                    return
            with database.writing(self.engine) as connection:
                create_missing(connection, inbox_metadata)
        except DatabaseUnavailable as error:
            if "permission denied" not in str(error):
                raise _named(error) from None
            raise AcklineError(
                f"{where} has no inbox, and the user {self.engine.url.username!r} may not create its table: create it "
                "with your migrations or `ackline.consumers.inbox.create_tables` (docs/handlers.md), as a user who may."
            ) from None
        log.info("created the table of the inbox, ackline_inbox, in %s", where)

    # --- for handlers ----------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """For handlers in threads, and for what this does by itself."""
        if self._engine is None:
            with _making:
                if self._engine is None:
                    self._engine = _connect(self.url, self._connections + 1)
        return self._engine

    @property
    def async_engine(self) -> AsyncEngine:
        """For handlers on an event loop: call it there. One loop uses it until `close`."""
        if self._async_engine is None:
            self._loop = asyncio.get_running_loop()
            self._async_engine = _connect_async(self.url, self._connections)
        return self._async_engine

    def begin(self, first: Callable[[Connection], T]) -> tuple[Connection, T]:
        """A connection in a transaction of which *first* is the beginning, and what that returned.

        Raises what it raises, but `Park` when the database does not work: nothing has happened yet.
        """
        for again in (True, False):
            connection = None
            try:
                connection = self.engine.connect()
                done = first(connection)
            except BaseException as error:
                if connection is not None:
                    connection.close()
                self._go_on(error, again)
            else:
                self._goes_on()
                return connection, done
        raise AssertionError("the second time always ends it")

    async def begin_async(self, first: Callable[[Connection], T]) -> tuple[AsyncConnection, T]:
        """The same on the event loop."""
        for again in (True, False):
            connection = None
            try:
                connection = await self.async_engine.connect()
                done = await connection.run_sync(first)
            except BaseException as error:
                if connection is not None:
                    await connection.close()
                self._go_on(error, again)
            else:
                self._goes_on()
                return connection, done
        raise AssertionError("the second time always ends it")

    def write(self, all_of_it: Callable[[Connection], T]) -> T:
        """A transaction of which this is all; it may be run twice. Raises what it raises, and `Park`, as above."""
        for again in (True, False):
            try:
                with self.engine.begin() as connection:
                    done = all_of_it(connection)
            except BaseException as error:
                self._go_on(error, again)
            else:
                self._goes_on()
                return done
        raise AssertionError("the second time always ends it")

    async def write_async(self, all_of_it: Callable[[Connection], T]) -> T:
        """The same on the event loop."""
        for again in (True, False):
            try:
                async with self.async_engine.begin() as connection:
                    done = await connection.run_sync(all_of_it)
            except BaseException as error:
                self._go_on(error, again)
            else:
                self._goes_on()
                return done
        raise AssertionError("the second time always ends it")

    def _go_on(self, error: BaseException, again: bool) -> None:
        """Returns when the connection had died while nobody used it; then all others of its age are not used again."""
        if isinstance(error, DBAPIError) and error.connection_invalidated and again:
            return
        if not isinstance(error, PoolTimeout) and not (isinstance(error, DBAPIError) and is_outage(error)):
            raise error
        said = database.explain(error, self.engine.url) if isinstance(error, DBAPIError) else str(error)
        if not self._is_away:
            self._is_away = True
            log.error("messages wait, for the database of their inbox does not work: %s", said)
        raise Park(AWAY_SECONDS, said) from error

    def _goes_on(self) -> None:
        if self._is_away:
            self._is_away = False
            log.info("the database of the inbox works again")

    def confirmed(self, key: Key) -> None:
        """The broker has what the handler of this message published. Waits for nothing.

        It is noted within a second. What a crash keeps from being noted is published again with a duplicate, under the
        same ids.
        """
        self._confirmed.append(key)

    # --- the thread ------------------------------------------------------------------------------------

    def _keep_house(self) -> None:
        clean_at = time.monotonic()
        outage = Outage("keeping the inbox small", self._stopping)
        while not self._stopping.wait(NOTE_SECONDS):
            try:
                self._note_confirmed()
                if time.monotonic() >= clean_at:
                    clean_at = time.monotonic() + (0.0 if self._clean() else CLEAN_SECONDS)
                outage.over()
            except Exception as error:
                outage.wait(error)
        try:
            self._note_confirmed()
        except Exception as error:
            log.warning(
                "what the broker has confirmed last is not noted, and published again with duplicates: %s", error
            )

    def _note_confirmed(self) -> None:
        keys = [self._confirmed.popleft() for _ in range(len(self._confirmed))]
        if not keys:
            return
        try:
            with database.writing(self.engine) as connection:
                inbox_rows.confirmed(connection, keys)
        except BaseException:
            self._confirmed.extendleft(keys)
            raise

    def _clean(self) -> bool:
        """Delete a batch of old rows. Whether there may be more."""
        with database.writing(self.engine) as connection:
            return inbox_rows.delete_old(connection, CLEAN_BATCH) == CLEAN_BATCH


def confirmed(url: str, key: Key) -> None:
    """`InboxDatabase.confirmed`, as a value: a message that is handled in another process is settled in this one."""
    of(url).confirmed(key)


_databases: dict[str, InboxDatabase] = {}
_making = threading.Lock()


def of(url: str | None) -> InboxDatabase:
    """The database at *url*, or the one that the settings name: the same for all inboxes that use it."""
    chosen = url or settings().inbox_database
    with _making:
        return _databases.setdefault(chosen, InboxDatabase(chosen))


def _connect(url: str, connections: int) -> Engine:
    try:
        # No ping: a connection that has died is noticed by the first statement, which is ours, and tried again.
        return database.connect(url, pool_size=connections, max_overflow=0, pool_pre_ping=False)
    except (ConfigurationError, DatabaseUnavailable) as error:
        raise _named(error) from None


def _connect_async(url: str, connections: int) -> AsyncEngine:
    try:
        return database.connect_async(url, pool_size=connections, max_overflow=0, pool_pre_ping=False)
    except (ConfigurationError, DatabaseUnavailable) as error:
        raise _named(error) from None


def _named(error: AcklineError) -> AcklineError:
    """*error*, which names the setting that holds Ackline's own database."""
    return type(error)(str(error).replace("ACKLINE_DATABASE_URL", "the URL of the inbox"))
