"""`ackline audit`: what was done, by whom and why, and that nothing of it was changed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, BinaryIO

import click
from rich.text import Text

from ackline.dlq.audit import Action, Audit
from ackline.dlq.chain import Head, Verdict, verify_lines
from ackline.dlq.cli.moment import Moment
from ackline.dlq.cli.tables import as_json, print_json, table
from ackline.dlq.rights import Actor, Role
from ackline.infra import database
from ackline.infra.settings import settings
from ackline.infra.terminal import console, line, moment


@contextmanager
def _record() -> Iterator[tuple[Audit, Actor]]:
    """The record in the configured database, and who reads it."""
    configured = settings()
    with database.opened(configured.database) as engine:
        yield Audit(engine), Actor(configured.acting, Role.ADMIN)


@click.group()
def audit() -> None:
    """See what was done, by whom, when and why, and prove that nothing of it was changed."""


@audit.command("list")
@click.option("--actor", help="Only what this one did.")
@click.option("--action", help="Only this: discard, edit, approve, unmask.")
@click.option("--id", "dead_letter", type=int, help="Only what was done to this dead letter.")
@click.option("--since", type=Moment(), help="Since 2026-01-31T22:15 (UTC), or 2h ago.")
@click.option("--until", type=Moment(), help="Before; as --since.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="At most so many.")
@click.option("--before", type=click.IntRange(1), help="Only those with a smaller number: the next page.")
@as_json
def list_(before: int | None, limit: int, as_json: bool, **filters: Any) -> None:
    """List what was done, the latest first."""
    with _record() as (record, who):
        page = record.page(who, after=before, limit=limit, **filters)
    if as_json:
        for action in page.items:
            print_json(asdict(action) | {"hash": action.hash.hex()})
        return
    listing = table("NO", "WHEN", "WHO", "ACTION", "ABOUT", "REASON", flexible="REASON", right=["NO"])
    for action in page.items:
        told = (line(action.actor), action.action, _about(action), line(action.reason))
        listing.add_row(str(action.id), moment(action.at), *map(Text, told))
    if page.items:
        console().print(listing)
    if page.next:
        print(f"More: --before {page.next}.", file=sys.stderr)


def _about(action: Action) -> str:
    """What an action was about: dead letters, a person, a request, a redrive or a group."""
    if action.dead_letter is not None:
        return f"{action.dead_letter} and {action.count - 1:,} more" if action.count > 1 else str(action.dead_letter)
    told = action.details
    return line(
        str(next((told[name] for name in ("person", "approval", "redrive", "fingerprint") if name in told), "-"))
    )


@audit.command()
@click.option("--file", type=click.File("rb"), help="Verify what `export` wrote, without the database; - is the input.")
@click.option("--expect", metavar="NUMBER:HASH", help="An end that this command printed once: it must still be there.")
@as_json
def verify(file: BinaryIO | None, expect: str | None, as_json: bool) -> None:
    """Prove that what was done is on record as it was written. Ends with 1, and says where, if it is not.

    The end of the record goes to standard output, everything else to standard error. Who keeps that end elsewhere, and
    gives it with --expect later, also learns whether the last actions were removed, or all of them written anew.

    \b
      ackline audit verify --expect "$(cat noted)" > noted.new && mv noted.new noted
    """
    noted = None if expect is None else Head.parse(expect)
    if file is not None:
        verdict = verify_lines(file, noted)
    else:
        with _record() as (record, who):
            verdict = record.verify(who, noted)
    if as_json:
        print_json(asdict(verdict) | {"head": str(verdict.head)})
    else:
        _tell(verdict)
    sys.exit(1 if verdict.broken else 0)


def _tell(verdict: Verdict) -> None:
    if verdict.broken:
        print(f"ackline: {verdict.broken.message}", file=sys.stderr)
        print(f"As they were written: {verdict.count:,} actions before it.", file=sys.stderr)
    else:
        print(
            f"All {verdict.count:,} actions are as they were written. The end, to be kept elsewhere:", file=sys.stderr
        )
        print(verdict.head)


@audit.command()
@click.option("--after", type=click.IntRange(0), default=0, metavar="NUMBER", help="Only those with a greater number.")
def export(after: int) -> None:
    """Print what was done as JSON lines, the first one first, from which `verify --file` proves it anywhere."""
    with _record() as (record, who):
        for written in record.export(who, after):
            print(written)
