"""`ackline relay`, and `ackline outbox`: what waits to be published, and what is done about it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich import box
from rich.table import Table
from rich.text import Text
from sqlalchemy import Connection, Engine, func, select

from ackline.infra import database, tables
from ackline.infra.database import DatabaseUnavailable
from ackline.infra.errors import AcklineError, ConfigurationError
from ackline.infra.link import BrokerRefused
from ackline.infra.logs import configure_logging
from ackline.infra.settings import settings
from ackline.infra.stopping import stop_on_signal
from ackline.infra.tables import OutboxState
from ackline.infra.terminal import console, line, moment, plain
from ackline.infra.topology import TopologyNotPermitted, declare
from ackline.producer import outbox as rows
from ackline.producer.callback_sender import CallbackSender
from ackline.producer.outbox import Stored
from ackline.producer.publisher import Publisher
from ackline.producer.relay import Relay

log = logging.getLogger(__name__)

#: What `list --state` takes besides a state: those that wait for their time. `waiting` then means the others.
SCHEDULED = "scheduled"
#: What a relay does with the tables.
_RIGHTS = {
    tables.outbox.name: ("SELECT", "UPDATE", "DELETE"),
    tables.leases.name: ("SELECT", "INSERT", "UPDATE", "DELETE"),
}
_HOW_TO_CREATE = "create it with the service's migrations or `outbox.create_tables` (docs/outbox.md)"
_STYLES = {"waiting": "yellow", SCHEDULED: "cyan", "published": "green", "failed": "red", "cancelled": "dim"}

_of_database = click.option(
    "--database-url",
    metavar="URL",
    help="Database of the outbox: an upstream service's own.  [default: ACKLINE_DATABASE_URL]",
)


@click.command()
@_of_database
def relay(database_url: str | None) -> None:
    """Publish the messages of an outbox, in the order of its rows, scheduled ones when they are due.

    One is active for each database; others that run on it stand by. SIGTERM or Ctrl-C: waits for the confirms that are
    under way, lets another take over, and ends. A second one ends at once; nothing is lost by that.

    On Ackline's own database the active one makes the callbacks, too.
    """
    configure_logging()
    configured = settings()
    url = configured.broker
    with _outbox(database_url, or_create=True) as engine:
        try:
            declare(url)
        except (BrokerRefused, ConfigurationError):
            raise
        except TopologyNotPermitted as error:
            log.warning("%s Going on with what exists.", error)
        except AcklineError as error:
            log.warning("%s Waiting for it.", error)
        publisher = Publisher(url, name="relay", app_id=configured.service)
        is_own = database_url in (None, configured.database)
        role = Relay(
            publisher,
            engine,
            keep_seconds=configured.outbox_keep_seconds,
            keep_cancelled_seconds=configured.status_keep_days * 86400,
            grace_seconds=configured.grace_seconds,
            while_active=(lambda stopping: CallbackSender(engine, configured, stopping).run()) if is_own else None,
        )
        stop_on_signal(role.stop)
        role.run()


@click.group()
def outbox() -> None:
    """See what waits to be published, cancel what is scheduled, try again what failed.

    ID is a message id, as `list` shows it.
    """


@outbox.command("list")
@click.option(
    "--state",
    type=click.Choice([SCHEDULED, *(state.value for state in OutboxState)]),
    help="Those in this state.  [default: failed, waiting and scheduled]",
)
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="At most so many of each."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@_of_database
def list_(state: str | None, limit: int, as_json: bool, database_url: str | None) -> None:
    """List messages of an outbox: failed ones, then the others in the order in which they will be published."""
    states = (OutboxState.FAILED, OutboxState.WAITING, SCHEDULED) if state is None else (state,)
    with _outbox(database_url) as engine, database.reading(engine) as connection:
        listed = [row for each in states for row in _rows_in(connection, each, limit)]
        waiting = rows.depth(connection)
    if as_json:
        for row in listed:
            print(json.dumps(plain(row._asdict() | {"state": _state(row)}), ensure_ascii=False))
        return
    if listed:
        console().print(_listing(listed))
    print(f"{waiting:,} wait to be published now.", file=sys.stderr)


@outbox.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@_of_database
def cancel(ids: tuple[str, ...], database_url: str | None) -> None:
    """Have scheduled messages not published, and give up failed ones.

    Ends with 0 when all were cancelled, 1 when one was not: it is published or about to be, or there is none.
    """
    _for_each(ids, database_url, lambda connection, id_: rows.cancel(connection, id_, failed=True), "cancelled")


@outbox.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@_of_database
def retry(ids: tuple[str, ...], database_url: str | None) -> None:
    """Have failed messages published after all, when what was in their way has been mended.

    Ends with 0 when all of them wait again, 1 when one had not failed.
    """
    _for_each(ids, database_url, rows.retry, "waiting")


def _for_each(
    ids: tuple[str, ...], database_url: str | None, change: Callable[[Connection, str], bool], done: str
) -> None:
    """Change each message, and say so, or what it is instead."""
    refused = False
    with _outbox(database_url) as engine:
        for id_ in ids:
            with database.writing(engine) as connection:
                changed = change(connection, id_)
                found = None if changed else rows.find(connection, id_)
            if changed:
                print(f"{line(id_)}: {done}")
            else:
                refused = True
                state = f"it is {_state(found)}" if found else "the outbox has no such message"
                print(f"ackline: {line(id_)}: not {done}, {state}.", file=sys.stderr)
    sys.exit(1 if refused else 0)


@contextmanager
def _outbox(database_url: str | None, *, or_create: bool = False) -> Iterator[Engine]:
    """The database of an outbox, with its tables: Ackline's own, upgraded, when *database_url* is not another.

    or_create: create the tables in another one too. Raises `ConfigurationError`, `DatabaseUnavailable`, `AcklineError`
    when the tables are missing.
    """
    own = settings().database
    if database_url is None or database_url == own:
        database.upgrade(own)
        engine = database.connect(own)
    else:
        engine = _of_a_service(database_url, or_create)
    try:
        yield engine
    finally:
        engine.dispose()


def _of_a_service(url: str, or_create: bool) -> Engine:
    """The database of an upstream service, in which nothing is changed but the tables of its outbox created."""
    try:
        engine = database.connect(url)
        where = _where(engine)
        with database.reading(engine) as connection:
            complete = rows.has_tables(connection)
        if not complete and not or_create:
            raise AcklineError(f"{where} has no outbox yet: {_HOW_TO_CREATE}, or start `ackline relay` on it.")
        if not complete:
            _create_tables(engine)
        if or_create:
            _check_rights(engine)
    except (ConfigurationError, DatabaseUnavailable) as error:
        # They name the setting that holds Ackline's own database.
        raise type(error)(str(error).replace("ACKLINE_DATABASE_URL", "--database-url")) from None
    return engine


def _create_tables(engine: Engine) -> None:
    try:
        with database.writing(engine) as connection:
            rows.create_tables(connection)
    except DatabaseUnavailable as error:
        if "permission denied" not in str(error):
            raise
        raise AcklineError(
            f"{_where(engine)} has no outbox, and the user {engine.url.username!r} may not create its tables: "
            f"{_HOW_TO_CREATE}, as a user who may."
        ) from None
    log.info("created the tables of the outbox, %s, in %s", " and ".join(_RIGHTS), _where(engine))


def _check_rights(engine: Engine) -> None:
    """Say at the start, not in the middle of work, what the user of a PostgreSQL may not do."""
    if engine.dialect.name != "postgresql":
        return
    with database.reading(engine) as connection:
        missing = [
            f"GRANT {', '.join(rights)} ON {table} TO {engine.url.username};"
            for table, rights in _RIGHTS.items()
            if not all(connection.scalar(select(func.has_table_privilege(table, right))) for right in rights)
        ]
    if missing:
        raise AcklineError(
            f"The user {engine.url.username!r} may not do in {_where(engine)} what a relay does: {' '.join(missing)}"
        )


def _where(engine: Engine) -> str:
    return f"The database {engine.url.render_as_string(hide_password=True)}"


def _rows_in(connection: Connection, state: str, limit: int) -> list[Stored]:
    if state == SCHEDULED:
        return rows.scheduled(connection, limit)
    return rows.listed(connection, OutboxState(state), limit)


def _state(row: Stored) -> str:
    """The state for people."""
    return SCHEDULED if row.state == OutboxState.WAITING and row.due_at is not None else row.state


def _listing(listed: list[Stored]) -> Table:
    """The table of `ackline outbox list`."""
    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    table.add_column("ID", no_wrap=True)
    table.add_column("STATE", no_wrap=True)
    table.add_column("TYPE", overflow="fold")
    table.add_column("DUE", no_wrap=True)
    table.add_column("CREATED", no_wrap=True)
    table.add_column("ERROR", ratio=1, overflow="fold")
    for row in listed:
        state = _state(row)
        table.add_row(
            Text(line(row.message_id)),
            Text(state, style=_STYLES[state]),
            Text(line(row.type)),
            moment(row.due_at) or "-",
            moment(row.created_at),
            Text(line(row.error or "")),
        )
    return table
