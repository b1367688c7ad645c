"""`ackline reviewer`, and `ackline dlq`: working through dead letters on the command line."""

from __future__ import annotations

import json
import sys
import time
from functools import partial

import click
from sqlalchemy import Engine

from ackline.dlq.alerts import AlertSender
from ackline.dlq.approvals import Approvals
from ackline.dlq.cli import letter_view as display
from ackline.dlq.contracts import Contracts
from ackline.dlq.letters import Letters
from ackline.dlq.redrives import MAX_AT_ONCE, Redrives
from ackline.dlq.reviewer import Reviewer
from ackline.dlq.rights import Actor, Role
from ackline.dlq.selection import Selection
from ackline.dlq.view import Item
from ackline.infra import database
from ackline.infra.errors import AcklineError
from ackline.infra.logs import configure_logging
from ackline.infra.settings import Settings, settings
from ackline.infra.stopping import stop_on_signal
from ackline.infra.tables import OPEN_ITEM_STATES, DeadLetterState, ItemState
from ackline.infra.terminal import console, line

#: What `list --state` takes besides a state.
ALL_STATES = "all"
#: Exit code of `retry` when nothing failed, but something is still under way.
STILL_UNDER_WAY = 3
#: Seconds between looks for outcomes.
_LOOK_SECONDS = 0.2


@click.command()
def reviewer() -> None:
    """Take dead letters into the database, and send back those that are retried.

    SIGTERM or Ctrl-C: stores what has arrived, gives back the rest, and ends. A second one ends at once; nothing is
    lost by that.
    """
    configure_logging()
    configured = settings()
    url = configured.broker
    with database.opened(configured.database) as engine:
        role = Reviewer(
            url,
            engine,
            grace_seconds=configured.grace_seconds,
            status_keep_days=configured.status_keep_days,
            contracts=partial(Contracts.of, configured),
            alerts=AlertSender(engine, configured, configured.alert_url) if configured.alert_url else None,
        )
        stop_on_signal(role.stop)
        role.run()


@click.group()
def dlq() -> None:
    """Work through dead letters: see why they failed, send them back, or discard them.

    ID is the number that `list` shows, or a message id that only one dead letter has.
    """


@dlq.command("list")
@click.option(
    "--state",
    type=click.Choice([*(state.value for state in DeadLetterState), ALL_STATES]),
    help="Those in this state.  [default: in review and redriving, which wait for an end]",
)
@click.option("--consumer", help="Only those of this consumer; '' for those that no consumer takes.")
@click.option("--type", "type_", help="Only messages of this type.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="At most so many.")
@click.option("--before", type=click.IntRange(1), help="Only those with a smaller id: the next page.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def list_(
    state: str | None, consumer: str | None, type_: str | None, limit: int, before: int | None, as_json: bool
) -> None:
    """List dead letters, the latest first."""
    configured = settings()
    who, letters = _acting(configured), _letters(configured)
    rows, more, _ = letters.page(
        who, Selection.parse(states=_states(state), consumer=consumer, type=type_), before, limit
    )
    if as_json:
        for row in rows:
            print(json.dumps(display.summary_json(row), ensure_ascii=False))
        return
    if rows:
        screen = console()
        screen.print(display.listing(rows, screen.width))
    counts = letters.counts(who, Selection.parse(consumer=consumer, type=type_))
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    rest = f" More: --before {more}." if more else ""
    print(f"{told}.{rest}", file=sys.stderr)


def _states(chosen: str | None) -> tuple[str, ...]:
    """The states that `--state` names; none stands for all of them."""
    if chosen is None:
        return (DeadLetterState.IN_REVIEW, DeadLetterState.REDRIVING)
    return () if chosen == ALL_STATES else (chosen,)


@dlq.command()
@click.argument("reference", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, with the whole payload.")
@click.option("--payload", is_flag=True, help="Only the payload, to standard output, byte by byte.")
def show(reference: str, as_json: bool, payload: bool) -> None:
    """Show all of a dead letter: why it failed, each attempt, its headers and its payload."""
    configured = settings()
    who, letters = _acting(configured), _letters(configured)
    found = letters.find(who, reference)
    if payload:
        sys.stdout.buffer.write(letters.payload(who, found.id))
        sys.stdout.buffer.flush()
        return
    detail = letters.get(who, found.id)
    if as_json:
        document = display.detail_json(detail, letters.payload(who, found.id))
        print(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        display.show(console(), detail)


@dlq.command()
@click.argument("references", metavar="ID...", nargs=-1, required=True)
@click.option("--wait/--no-wait", default=True, help="Wait for what becomes of it.  [default: wait]")
@click.option("--timeout", type=click.FloatRange(0), default=60.0, show_default=True, help="Seconds to wait.")
def retry(references: tuple[str, ...], wait: bool, timeout: float) -> None:
    """Send dead letters back to their consumers, and say what becomes of each.

    Ends with 0 when all were handled (with --no-wait: requested), 1 when one failed again or could not be sent back,
    and 3 when one is still under way after the timeout: it goes on, and `ackline dlq show ID` tells.
    """
    configured = settings()
    who, engine = _acting(configured), _engine(configured)
    letters = Letters(engine, Contracts({}), Approvals(engine, configured))
    rows = [letters.find(who, reference) for reference in references]
    # The application is imported for what no consumer took: it knows who would.
    contracts = Contracts({}) if all(row.consumer for row in rows) else Contracts.of(configured)
    redrives = Redrives(engine, configured, contracts, Approvals(engine, configured))
    asked = redrives.retry(who, [row.id for row in rows])
    for reason in asked.refused.values():
        print(f"ackline: {line(reason)}", file=sys.stderr)
    if not wait:
        for row_id in asked.items:
            print(f"{row_id}: requested")
        sys.exit(1 if asked.refused else 0)
    states = _follow(redrives, letters, who, asked.redrive_id, timeout)
    unfinished = any(state in OPEN_ITEM_STATES for state in states)
    failed = any(state not in (ItemState.HANDLED, *OPEN_ITEM_STATES) for state in states)
    sys.exit(1 if asked.refused or failed else STILL_UNDER_WAY if unfinished else 0)


@dlq.command()
@click.argument("references", metavar="ID...", nargs=-1, required=True)
@click.option("--reason", required=True, help="Why. It is kept with the dead letter.")
def discard(references: tuple[str, ...], reason: str) -> None:
    """Take dead letters out of review for good. They are kept, with who did it and why."""
    if not reason.strip():
        raise click.UsageError("A dead letter is discarded for a reason: --reason must not be blank.")
    configured = settings()
    who, letters = _acting(configured), _letters(configured)
    rows = [letters.find(who, reference) for reference in references]
    refused = False
    for row in rows:
        try:
            letters.discard(who, Selection(ids=(row.id,)), reason)
            print(f"{row.id}: discarded")
        except AcklineError as error:
            refused = True
            print(f"ackline: {error}", file=sys.stderr)
    sys.exit(1 if refused else 0)


def _engine(configured: Settings) -> Engine:
    database.upgrade(configured.database)
    return database.connect(configured.database)


def _letters(configured: Settings) -> Letters:
    engine = _engine(configured)
    return Letters(engine, Contracts({}), Approvals(engine, configured))


def _acting(configured: Settings) -> Actor:
    """Who can reach the database can do anything."""
    return Actor(configured.acting, Role.ADMIN)


def _follow(redrives: Redrives, letters: Letters, who: Actor, redrive_id: int, timeout: float) -> list[str]:
    """Print what becomes of each item as it is known; returns their states, at *timeout* seconds at the latest."""
    deadline = time.monotonic() + timeout
    told: set[str] = set()
    while True:
        items = redrives.items(who, redrive_id, limit=MAX_AT_ONCE).items
        for item in items:
            if item.state not in OPEN_ITEM_STATES and item.id not in told:
                told.add(item.id)
                print(_told(letters, who, item), flush=True)
        if len(told) == len(items) or time.monotonic() >= deadline:
            break
        time.sleep(_LOOK_SECONDS)
    for item in items:
        if item.id in told:
            continue
        waits = item.error or (
            "is the reviewer running?" if item.state == ItemState.WAITING else "sent, not answered yet"
        )
        print(f"{item.dead_letter_id}: still under way after {timeout:g} s ({line(waits)})", flush=True)
    return [item.state for item in items]


def _told(letters: Letters, who: Actor, item: Item) -> str:
    if item.state == ItemState.HANDLED:
        return f"{item.dead_letter_id}: handled by {line(item.consumer)}"
    if item.state == ItemState.FAILED:
        return f"{item.dead_letter_id}: in review again: {display.error(letters.get(who, item.dead_letter_id))}"
    return f"{item.dead_letter_id}: {line(item.error or item.state)}"
