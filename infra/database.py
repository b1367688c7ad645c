"""The database: SQLite or PostgreSQL behind one SQLAlchemy engine, and the upgrade of its tables.

SQLite runs with a write-ahead log (readers never wait for the writer), `synchronous=FULL` (what is committed survives a
power cut) and `BEGIN IMMEDIATE` (a writer waits for its turn at the start, not in the middle, where SQLite refuses).
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select, text
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import Pool

from ackline.infra.errors import AcklineError, ConfigurationError
from ackline.infra.wire import now

if TYPE_CHECKING:  # it wants greenlet, which only those have who use it
    from sqlalchemy.ext.asyncio import AsyncEngine

#: Seconds that a writer on SQLite waits for another one.
BUSY_SECONDS = 5
#: Seconds to wait for a PostgreSQL server that does not answer, on a new connection or in the middle of one.
ANSWER_SECONDS = 10
#: A server that vanished without a word would otherwise be waited for until TCP gives up, after 15 minutes.
_POSTGRESQL = {
    "connect_timeout": ANSWER_SECONDS,
    "keepalives_idle": ANSWER_SECONDS,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": ANSWER_SECONDS * 1000,
}
#: PostgreSQL advisory lock that one upgrade holds; any number that nobody else uses.
_UPGRADE_LOCK = 0x61636B6C696E65
#: SQLSTATE classes that are about the row, though psycopg calls them operational (a limit of the program), and that are
#: about the database, though psycopg does not (read-only; a table, a column or a right is missing).
_ROW_FAULTS, _DATABASE_FAULTS = ("54",), ("25006", "42")

#: Of each SQLite database that is open: who of this process's threads writes.
_WRITERS: WeakKeyDictionary[Pool, threading.RLock] = WeakKeyDictionary()


class DatabaseUnavailable(AcklineError):
    """The database does not answer, refuses, or cannot be written. What was under way did not happen."""


def connect(url: str, **options: Any) -> Engine:
    """An engine for *url*; connects when it is first used. Creates SQLite's folder.

    options: for `create_engine`, beside those that are always set.
    Raises `ConfigurationError` for a URL that is neither SQLite's nor PostgreSQL's, `DatabaseUnavailable` when the
    folder cannot be created.
    """
    parsed, ours = _prepared(url)
    try:
        engine = create_engine(parsed, **ours | options)
    except ModuleNotFoundError:
        raise ConfigurationError("PostgreSQL needs a package more: pip install 'ackline[postgresql]'.") from None
    _listen(engine)
    return engine


def connect_async(url: str, **options: Any) -> AsyncEngine:
    """The same for asyncio: an engine that belongs to the event loop on which it is first used."""
    parsed, ours = _prepared(url)
    if parsed.get_backend_name() == "sqlite":
        parsed = parsed.set(drivername="sqlite+aiosqlite")
    try:
        from sqlalchemy.ext.asyncio import create_async_engine

        engine = create_async_engine(parsed, **ours | options)
    except ImportError:
        raise ConfigurationError(
            "A database in async handlers needs packages more: pip install 'ackline[inbox]', "
            "and 'ackline[postgresql]' for PostgreSQL."
        ) from None
    _listen(engine.sync_engine)
    return engine


def _prepared(url: str) -> tuple[URL, dict[str, Any]]:
    """The URL, and what is set for every engine on it."""
    parsed = _parse(url)
    if parsed.get_backend_name() == "postgresql":
        return parsed, {"pool_pre_ping": True, "connect_args": _POSTGRESQL}
    _create_folder(parsed)
    return parsed, {"connect_args": {"timeout": BUSY_SECONDS}}


def _listen(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)


def upgrade(url: str) -> None:
    """Bring the tables at *url* to the newest version. Roles that start at once wait for each other.

    Raises `DatabaseUnavailable`, `ConfigurationError`.
    """
    engine = connect(url)
    try:
        with reading(engine) as connection:  # nearly always all is well, and nobody has to wait for a lock
            newest = ScriptDirectory.from_config(migrations(connection)).get_current_head()
            if MigrationContext.configure(connection).get_current_revision() == newest:
                return
        with writing(engine) as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
            command.upgrade(migrations(connection), "head")
    finally:
        engine.dispose()


@contextmanager
def opened(url: str) -> Iterator[Engine]:
    """An engine for *url*, whose tables are brought to the newest version first; closed at the end.

    Raises what `connect` and `upgrade` raise.
    """
    upgrade(url)
    engine = connect(url)
    try:
        yield engine
    finally:
        engine.dispose()


def migrations(connection: Connection) -> Config:
    """Alembic's configuration: the migrations of this package, on *connection*, inside its transaction."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that is committed at the end of the block, and rolled back when it raises.

    Raises `DatabaseUnavailable` instead of the driver's errors that are about the database and not about the data.
    """
    try:
        with _turn(engine), engine.begin() as connection:
            yield connection
    except DBAPIError as error:
        if is_outage(error):
            raise DatabaseUnavailable(explain(error, engine.url)) from error
        raise
    except PoolTimeout as error:
        raise DatabaseUnavailable("No connection to the database was free in time: it is slow, or locked.") from error


def _turn(engine: Engine) -> AbstractContextManager[object]:
    """Holds the right to write, of the threads on this engine.

    SQLite has who finds it locked look again after up to 100 ms; whoever waits for a thread is woken at once.
    """
    if engine.dialect.name != "sqlite" or engine.get_execution_options().get("ackline_reading"):
        return nullcontext()
    return _WRITERS.setdefault(engine.pool, threading.RLock())


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads: on SQLite it waits for no writer. Raises `DatabaseUnavailable`."""
    with writing(engine.execution_options(ackline_reading=True)) as connection:
        yield connection


def clock(connection: Connection) -> datetime:
    """The time by the clock that all who use this database share (SQLite: of the machine)."""
    if connection.dialect.name == "postgresql":
        at: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        return at
    return now()


def is_outage(error: DBAPIError) -> bool:
    """Whether *error* is about the database (away, locked, full, read-only), so that trying again later may help."""
    code = getattr(error.orig, "sqlstate", None) or ""
    if code.startswith(_ROW_FAULTS):
        return False
    if error.connection_invalidated or code.startswith(_DATABASE_FAULTS):
        return True
    # A plain DatabaseError, none of its kinds, is SQLite's for a file that is damaged, or no database.
    return isinstance(error, (OperationalError, InterfaceError)) or type(error) is DatabaseError


def explain(error: DBAPIError, url: URL) -> str:
    """What the driver said, as a sentence that says what to do."""
    said = " ".join(str(error.orig).split())
    if url.get_backend_name() == "sqlite":
        return _explain_sqlite(said, str(url.database))
    where = f"PostgreSQL at {url.host or 'its socket'}:{url.port or 5432}"
    if "password authentication failed" in said or "no password supplied" in said:
        return f"{where} refuses the user {url.username!r}: wrong user or password in ACKLINE_DATABASE_URL."
    if "does not exist" in said and "database" in said:
        return f"{where} has no database {url.database!r}: create it, or correct ACKLINE_DATABASE_URL."
    if "Connection refused" in said or "No such file or directory" in said:
        return f"Nothing answers as {where}: is it running there?"
    if "could not translate host name" in said or "resolve" in said:
        return f"{where} cannot be reached: the host name is not known."
    return f"{where} does not work: {said[:300]}."


def _explain_sqlite(said: str, path: str) -> str:
    if "unable to open" in said:
        return f"The database {path} cannot be opened: its folder is missing or cannot be written."
    if "readonly" in said:
        return f"The database {path} cannot be written: the file or its folder is read-only for this user."
    if "locked" in said:
        return f"The database {path} has been locked by another process for {BUSY_SECONDS} s: try again."
    return f"The database {path} does not work: {said[:300]}."


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url)
        backend = parsed.get_backend_name()
        if backend == "postgresql":
            return parsed.set(drivername="postgresql+psycopg")
        if backend == "sqlite" and parsed.database not in (None, "", ":memory:"):
            return parsed
    except (ArgumentError, NoSuchModuleError, ValueError):
        pass
    raise ConfigurationError(
        "ACKLINE_DATABASE_URL cannot be used: it must read postgresql://user:password@host:5432/database "
        "or sqlite:////absolute/path/of/file.db."
    )


def _create_folder(url: URL) -> None:
    folder = Path(str(url.database)).absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseUnavailable(f"The folder {folder} of the database cannot be created: {error.strerror}.") from None


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # SQLAlchemy says BEGIN by itself (below); the driver must not do it as well.
    connection.isolation_level = None
    _write_ahead(connection)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch the file to a write-ahead log. SQLite does not wait by itself for others that do the same at once."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    reads_only = connection.get_execution_options().get("ackline_reading", False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")
