"""`ackline keys`: who may publish through the gateway."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import click
from rich import box
from rich.table import Table
from rich.text import Text
from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from ackline.infra import database
from ackline.infra.errors import AcklineError
from ackline.infra.settings import settings
from ackline.infra.tables import api_keys
from ackline.infra.terminal import console, line, moment, plain
from ackline.infra.wire import now
from ackline.producer.api_key import PREFIX, digest, generate

#: Characters of a key that are kept, to know it by: `ack_` and 4 of 40.
_SHOWN = len(PREFIX) + 4
#: Starts with a letter or digit, so that no name looks like an option, or like the gateway's own "(configured)".
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TYPE = re.compile(r"\*|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(\.?\*)?")
_RATE = re.compile(r"([1-9][0-9]{0,5})(/s)?")


@click.group()
def keys() -> None:
    """Say who may publish through the gateway. As soon as there is a key, it takes nothing without one."""


@keys.command()
@click.argument("name")
@click.option(
    "--type", "types", multiple=True, help="What it may publish: order.placed, order.*  [default: everything]"
)
@click.option("--rate", metavar="N/s", help="Messages a second at most, per gateway process.  [default: no limit]")
def create(name: str, types: tuple[str, ...], rate: str | None) -> None:
    """Make a key called NAME, and print it, this once: only its SHA-256 is kept.

    The key goes to standard output, so that it can be piped into a secret store; all else to standard error.
    """
    if not _NAME.fullmatch(name):
        raise click.UsageError(
            "A name has 1 to 64 letters, digits, '.', '_' and '-', and begins with a letter or digit."
        )
    for type_ in types:
        if not _TYPE.fullmatch(type_):
            raise click.UsageError(f"{type_!r} is no message type: order.placed, or order.* for all that begin so.")
    per_second = None if rate is None else _RATE.fullmatch(rate)
    if rate is not None and per_second is None:
        raise click.UsageError(f"--rate {rate} is no rate: 50/s is 50 messages a second.")
    configured = settings()
    key = generate()
    row = {
        "name": name,
        "prefix": key[:_SHOWN],
        "key_sha256": digest(key.encode()),
        "types": list(types),
        "rate": None if per_second is None else int(per_second[1]),
        "created_at": now(),
        "created_by": configured.acting,
    }
    with database.opened(configured.database) as engine:
        try:
            with database.writing(engine) as connection:
                connection.execute(insert(api_keys).values(row))
        except IntegrityError:
            raise AcklineError(
                f"There is a key {name!r} already (a revoked one keeps its name): choose another name."
            ) from None
    print(f"The key {name!r} may publish {_types(types)}. It is shown this once:", file=sys.stderr)
    print(key)


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def list_(as_json: bool) -> None:
    """List the keys, revoked ones included. The keys themselves are not known any more."""
    columns = [column for column in api_keys.c if column.name not in ("id", "key_sha256")]
    with database.opened(settings().database) as engine, database.reading(engine) as connection:
        rows = [dict(row) for row in connection.execute(select(*columns).order_by(api_keys.c.id)).mappings()]
    if as_json:
        for row in rows:
            print(json.dumps(plain(row), ensure_ascii=False))
        return
    if rows:
        console().print(_listing(rows))
    revoked = sum(row["revoked_at"] is not None for row in rows)
    print(f"{len(rows) - revoked:,} in use, {revoked:,} revoked.", file=sys.stderr)


def _listing(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for name in ("NAME", "KEY", "TYPES", "RATE", "CREATED", "REVOKED"):
        table.add_column(name, no_wrap=name in ("KEY", "RATE"))
    for row in rows:
        table.add_row(
            Text(row["name"], style="dim" if row["revoked_at"] else ""),
            f"{row['prefix']}…",
            _types(row["types"]),
            f"{row['rate']:,}/s" if row["rate"] else "-",
            f"{moment(row['created_at'])} by {line(row['created_by'])}",
            f"{moment(row['revoked_at'])} by {line(row['revoked_by'])}" if row["revoked_at"] else "-",
        )
    return table


def _types(types: Sequence[str]) -> str:
    return ", ".join(types) or "everything"


@keys.command()
@click.argument("name")
def revoke(name: str) -> None:
    """End the key NAME for good. Gateways refuse it within seconds; who did it and when is kept."""
    configured = settings()
    mine = api_keys.c.name == name
    with database.opened(configured.database) as engine, database.writing(engine) as connection:
        change = update(api_keys).where(mine, api_keys.c.revoked_at.is_(None))
        if connection.execute(change.values(revoked_at=now(), revoked_by=configured.acting)).rowcount:
            print(f"{name}: revoked")
            return
        found = connection.execute(select(api_keys).where(mine)).one_or_none()
    if found is None:
        raise AcklineError(f"There is no key {line(name)!r}: `ackline keys list` shows those that there are.")
    raise AcklineError(f"The key {name!r} was revoked at {moment(found.revoked_at)} by {line(found.revoked_by)}.")
