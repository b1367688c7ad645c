"""`ackline callbacks`: who was called back, who could not be, and the secret that receivers verify with."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click
from rich import box
from rich.table import Table
from rich.text import Text

from ackline.infra import database
from ackline.infra.settings import settings
from ackline.infra.tables import CallbackState
from ackline.infra.terminal import console, line, moment, plain
from ackline.producer import callbacks as owed
from ackline.producer import webhook

#: What `list --state` takes besides a state.
ALL_STATES = "all"
_STYLES = {CallbackState.WAITING: "yellow", CallbackState.FAILED: "red", CallbackState.DELIVERED: "green"}


@click.group()
def callbacks() -> None:
    """Callbacks: POSTs to the `callback_url` of a message that is final. The relay makes them.

    ID is the id of the message.
    """


@callbacks.command("list")
@click.option(
    "--state",
    type=click.Choice([*(state.value for state in CallbackState), ALL_STATES]),
    help="Those in this state.  [default: waiting and failed]",
)
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def list_(state: str | None, limit: int, as_json: bool) -> None:
    """List callbacks, the latest first."""
    with database.opened(settings().database) as engine, database.reading(engine) as connection:
        rows = owed.page(connection, _states(state), limit)
    if as_json:
        for row in rows:
            print(json.dumps(plain(asdict(row)), ensure_ascii=False))
    elif rows:
        console().print(_listing(rows))
    else:
        print("No callbacks.", file=sys.stderr)


def _states(chosen: str | None) -> tuple[str, ...]:
    if chosen is None:
        return (CallbackState.WAITING, CallbackState.FAILED)
    return tuple(CallbackState) if chosen == ALL_STATES else (chosen,)


def _listing(rows: list[owed.Callback]) -> Table:
    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for name in ("MESSAGE ID", "STATE", "TYPE", "ATTEMPTS", "CREATED", "NEXT"):
        table.add_column(name, no_wrap=True, justify="right" if name == "ATTEMPTS" else "left")
    for name in ("URL", "ERROR"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(
            Text(line(row.message_id)),
            Text(row.state, style=_STYLES.get(CallbackState(row.state), "")),
            Text(line(row.type)),
            str(row.attempts),
            moment(row.created_at),
            moment(row.next_at) if row.state == CallbackState.WAITING else "",
            Text(line(row.url)),
            Text(line(row.error or "")),
        )
    return table


@callbacks.command()
@click.argument("message_ids", metavar="ID...", nargs=-1, required=True)
def retry(message_ids: tuple[str, ...]) -> None:
    """Call again, whatever became of the calls before: at once, and with as many attempts as at first."""
    refused = False
    with database.opened(settings().database) as engine:
        for message_id in message_ids:
            try:
                with database.writing(engine) as connection:
                    owed.retry(connection, message_id)
                print(f"{line(message_id)}: will be called")
            except owed.NoSuchCallback as error:
                refused = True
                print(f"ackline: {error}", file=sys.stderr)
    sys.exit(1 if refused else 0)


@callbacks.command()
def secret() -> None:
    """Print the secret that callbacks are signed with, for those who receive them."""
    with database.opened(settings().database) as engine:
        print(webhook.shown(webhook.key(settings(), engine)))
