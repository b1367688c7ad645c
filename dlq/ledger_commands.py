"""`ackline ledger`: whether everything that was accepted is somewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime

import click
from rich.table import Table

from ackline.dlq.cli.moment import Moment
from ackline.dlq.ledger import Account, Balance, Counted, Ledger
from ackline.dlq.rights import Actor, Role
from ackline.infra import database
from ackline.infra.settings import settings
from ackline.infra.terminal import console, line, moment, plain

#: Exit codes: something does not add up; it cannot be told now whether something is missing.
WRONG, UNSURE = 1, 3
#: Missing deliveries that people are shown; `--json` has all.
_SHOWN = 100
#: What an accepted delivery can be.
_ACCOUNT = {
    "handled": "handled",
    "waiting": "waiting",
    "retrying": "waiting for a retry",
    "in_review": "in review",
    "redriving": "redriving",
    "discarded": "discarded",
    "missing": "missing",
}
_COUNTED = {
    "in_review": "in review",
    "redriving": "redriving",
    "discarded": "discarded",
    "handled": "handled after review",
    "ready": "ready",
    "held": "held by workers",
    "published": "published",
    "acked": "acked",
}


@click.command()
@click.option("--since", type=Moment(), help="Accepted since 2026-01-31T22:15 (UTC), or 2h ago.  [default: all]")
@click.option("--until", type=Moment(), help="Accepted before; as --since.  [default: now]")
@click.option("--consumer", help="Only this consumer; '' for messages that no consumer takes.")
@click.option(
    "--wait",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Seconds to look again while it cannot be told whether something is missing.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def ledger(since: datetime | None, until: datetime | None, consumer: str | None, wait: float, as_json: bool) -> None:
    """Account for everything that was accepted: tracked messages by id, all others by count.

    Ends with 0 when it adds up, with 1 when it does not, and with 3 when that cannot be told now.
    """
    configured = settings()
    who = Actor(configured.acting, Role.ADMIN)
    with database.opened(configured.database) as engine:
        found = Ledger(engine, configured).window(who, since, until, consumer=consumer, wait=wait)
    if as_json:
        print(json.dumps(plain(_json(found)), ensure_ascii=False, indent=2))
    else:
        _show(found)
    wrong = bool(found.faults) or (found.missing and not found.unsure)
    sys.exit(WRONG if wrong else UNSURE if found.missing else 0)


def _json(found: Balance) -> dict[str, object]:
    return asdict(found) | {
        "adds_up": found.adds_up,
        "candidates": [delivery._asdict() for delivery in found.candidates],
    }


def _show(found: Balance) -> None:
    screen = console()
    if found.accounts:
        screen.print("Tracked deliveries, by id:")
        screen.print(_grid((account.consumer, _equation(account)) for account in found.accounts))
    else:
        screen.print("No tracked message was accepted in this window.")
    for account in found.accounts:
        if account.unclear:
            screen.print(
                f"{line(account.consumer)}: {account.unclear:,} more were accepted before it is known to have taken "
                "their type, and nothing is known of them for it; not counted."
            )
    if found.counted:
        since = f" since {moment(found.counted_since)}" if found.counted_since else ""
        screen.print(
            "\nAll deliveries, by count: dead letters that arrived in the window, messages in the queues now, and what "
            f"RabbitMQ has counted{since}:"
        )
        screen.print(_grid((counted.consumer, _counts(counted)) for counted in found.counted))
    screen.print(f"In the retry tiers, of all consumers: {found.retrying:,}")
    for queue, count in found.to_reviewer.items():
        if count:
            screen.print(f"On the way to the reviewer, in {queue}: {count:,}")
    for fault in found.faults:
        screen.print(line(fault))
    if not found.missing:
        screen.print("It does not add up." if found.faults else "It adds up.")
        return
    which = (
        "These are" if found.missing == len(found.candidates) else f"They are among these {len(found.candidates):,}:"
    )
    if found.unsure:
        screen.print(
            f"Whether it adds up cannot be told: {line(found.unsure)} Until then {found.missing:,} seem to be missing."
        )
    else:
        screen.print(f"It does not add up: {found.missing:,} deliveries are nowhere. {which}")
    for delivery in found.candidates[:_SHOWN]:
        screen.print(
            f"  {line(delivery.message_id)}  {line(delivery.type)} for {line(delivery.consumer) or 'no consumer'}, "
            f"accepted {moment(delivery.accepted_at)}, last known: {delivery.last}"
        )
    if len(found.candidates) > _SHOWN:
        screen.print(f"  and {len(found.candidates) - _SHOWN:,} more: --json lists them.")


def _equation(account: Account) -> str:
    """An account as a person adds it up; what there is none of is left out."""
    parts = [f"{count:,} {said}" for field, said in _ACCOUNT.items() if (count := getattr(account, field))]
    return f"{account.accepted:,} accepted = {' + '.join(parts) or '0'}"


def _counts(counted: Counted) -> str:
    figures = [(said, getattr(counted, field)) for field, said in _COUNTED.items()]
    parts = [f"{figure:,} {said}" for said, figure in figures if figure]
    unknown = [said for said, figure in figures if figure is None]
    return "; ".join([", ".join(parts) or "none", *([f"not counted: {', '.join(unknown)}"] if unknown else [])])


def _grid(rows: Iterable[tuple[str, str]]) -> Table:
    """A line for each consumer, wrapped where the screen ends."""
    grid = Table.grid(padding=(0, 2), pad_edge=False)
    grid.add_column()
    grid.add_column(overflow="fold")
    grid.add_column()
    for consumer, said in rows:
        grid.add_row("", line(consumer) or "(none)", said)
    return grid
