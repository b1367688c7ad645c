"""`ackline dlq retry | plan | start | pause | resume | rate | cancel | redrives`: sending dead letters back."""

from __future__ import annotations

import sys

import click

from ackline.consumers.rate import per_second
from ackline.dlq.cli import completing, redrive_view
from ackline.dlq.cli.references import named, several
from ackline.dlq.cli.seat import FAILED, UNDER_WAY, Seat, seated
from ackline.dlq.cli.selecting import Filtering, selecting
from ackline.dlq.cli.tables import as_json, counted, print_json
from ackline.dlq.cli.waiting import follow, spinner
from ackline.dlq.redrives import Redrive
from ackline.dlq.selection import Selection
from ackline.infra.errors import ConfigurationError
from ackline.infra.tables import ItemState
from ackline.infra.terminal import console, line

number = click.argument("number", metavar="REDRIVE", type=click.IntRange(1), shell_complete=completing.redrive_numbers)


def _rate(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None or value == "none":
        return None
    try:
        return per_second(value if "/" in value else f"{value}/s")
    except ConfigurationError as error:
        raise click.BadParameter(str(error), ctx, param) from None


pace = click.option(
    "--rate", metavar="RATE", callback=_rate, help="At most 50/s, or 600/m.  [default: as fast as it goes]"
)


@click.command()
@several
@click.option("--reason", default="", help="Why. It is kept, with your name.")
@click.option("--wait/--no-wait", default=True, help="Wait for what becomes of it.  [default: wait]")
@click.option("--timeout", type=click.FloatRange(0), default=60.0, show_default=True, help="Seconds to wait.")
@as_json
@seated
def retry(at: Seat, references: tuple[str, ...], reason: str, wait: bool, timeout: float, as_json: bool) -> None:
    """Send a few back at once, and say what becomes of each.

    Each goes to the consumer that failed. Many are for `plan`.

    Ends with 0 when all were handled (with --no-wait: requested), 1 when one failed again or could not be sent back,
    and 3 when one is still under way after the timeout: it goes on, and `ackline dlq show ID` tells.
    """
    asked = at.desk.redrives.retry(at.who, at.ids(named(references)), reason)
    for why in asked.refused.values():
        print(f"ackline: {line(why)}", file=sys.stderr)
    code = FAILED if asked.refused else 0
    if asked.redrive_id is None or not wait:
        for row_id in asked.items:
            print_json({"id": row_id, "redrive": asked.redrive_id}) if as_json else print(f"{row_id}: requested")
        sys.exit(code)
    states = follow(at, asked.redrive_id, timeout, as_json)
    if any(state in redrive_view.OPEN for state in states):
        code = code or UNDER_WAY
    if any(state not in (ItemState.HANDLED, *redrive_view.OPEN) for state in states):
        code = FAILED
    sys.exit(code)


@click.command(cls=Filtering)
@selecting()
@click.option(
    "--to",
    "destination",
    metavar="CONSUMER",
    shell_complete=completing.consumers,
    help="To this consumer, whoever failed.",
)
@pace
@click.option("--canary/--no-canary", default=True, help="Send 1, then 5, 25, 125, and then all.  [default: canary]")
@click.option("--include-handled", is_flag=True, help="Those too that their consumer is known to have handled.")
@click.option("--reason", default="", help="Why. It is kept, with your name.")
@as_json
def plan(
    at: Seat,
    selection: Selection,
    destination: str | None,
    rate: float | None,
    canary: bool,
    include_handled: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Plan to send many back; nothing is sent yet.

    Which they are is fixed now; what is in review of them is sent, once `start` says so. Of those that cannot be sent
    the plan says why. A canary sends a few first, and goes on when all of those were handled; the first failure stops
    it.
    """
    with spinner("Planning"):
        planned = at.desk.redrives.plan(
            at.who,
            selection,
            consumer=destination,
            rate=rate,
            canary=canary,
            include_handled=include_handled,
            reason=reason,
        )
    print_json(planned) if as_json else redrive_view.plan(console(), planned)


@click.command()
@number
@as_json
@seated
def start(at: Seat, number: int, as_json: bool) -> None:
    """Have the reviewer send what a redrive has planned."""
    found = at.desk.redrives.start(at.who, number)
    _tell(found, f"has begun: {redrive_view.planned(found)}", as_json)


@click.command()
@number
@as_json
@seated
def pause(at: Seat, number: int, as_json: bool) -> None:
    """Send no more of a redrive until it is resumed.

    What is on its way goes on.
    """
    found = at.desk.redrives.pause(at.who, number)
    _tell(found, f"is paused: {redrive_view.progress(found)}", as_json)


@click.command()
@number
@as_json
@seated
def resume(at: Seat, number: int, as_json: bool) -> None:
    """Go on with a redrive that is paused, or has stopped.

    One that has stopped by itself begins with a new canary.
    """
    _tell(at.desk.redrives.resume(at.who, number), "goes on", as_json)


@click.command()
@number
@click.argument("rate", callback=_rate)
@as_json
@seated
def rate(at: Seat, number: int, rate: float | None, as_json: bool) -> None:
    """Have a redrive send faster, or more slowly.

    RATE is as 50/s or 600/m; `none` is as fast as it goes.
    """
    _tell(at.desk.redrives.rate(at.who, number, rate), f"sends {redrive_view.paced(rate)}", as_json)


@click.command()
@number
@as_json
@seated
def cancel(at: Seat, number: int, as_json: bool) -> None:
    """Send no more of a redrive, for good.

    What is on its way goes on; the others stay in review.
    """
    found = at.desk.redrives.cancel(at.who, number)
    _tell(found, f"is cancelled: {redrive_view.progress(found)}", as_json)


def _tell(redrive: Redrive, what: str, as_json: bool) -> None:
    if as_json:
        print_json(redrive)
        return
    print(f"Redrive {redrive.id} {what}.")
    for command in redrive_view.following(redrive):
        print(f"  {command}")


@click.group()
def redrives() -> None:
    """Look at redrives: all, one, its messages, its account."""


@redrives.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most so many.")
@click.option("--cursor", type=click.IntRange(1), help="Where the page before this one ended; it says so.")
@as_json
@seated
def list_(at: Seat, limit: int, cursor: int | None, as_json: bool) -> None:
    """List redrives, the latest first."""
    found, following = at.desk.redrives.page(at.who, cursor, limit)
    if as_json:
        for one in found:
            print_json(one)
        return
    if found:
        console().print(redrive_view.listing(found))
    more = f" More: --cursor {following}" if following else ""
    print(f"{counted(len(found), 'redrive')}.{more}", file=sys.stderr)


@redrives.command()
@number
@as_json
@seated
def show(at: Seat, number: int, as_json: bool) -> None:
    """Show a redrive: what it is of, how far it is, and why it does not go on."""
    found = at.desk.redrives.get(at.who, number)
    print_json(found) if as_json else redrive_view.show(console(), found)


@redrives.command()
@number
@click.option("--state", type=click.Choice([state.value for state in ItemState]), help="Those of which this is true.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="At most so many.")
@click.option("--cursor", type=click.IntRange(1), help="Where the page before this one ended; it says so.")
@as_json
@seated
def items(at: Seat, number: int, state: str | None, limit: int, cursor: int | None, as_json: bool) -> None:
    """List the messages of a redrive: what became of each, and why one was not sent."""
    wanted = None if state is None else ItemState(state)
    found, following = at.desk.redrives.items(at.who, number, wanted, cursor, limit)
    if as_json:
        for item in found:
            print_json(item)
        return
    if found:
        console().print(redrive_view.items(found))
    more = f" More: --cursor {following}" if following else ""
    print(f"{counted(len(found), 'message')}.{more}", file=sys.stderr)


@redrives.command()
@number
@as_json
@seated
def statement(at: Seat, number: int, as_json: bool) -> None:
    """Account for every message of a redrive.

    Ends with 0 when it adds up and nothing is open, 1 when it does not add up, and 3 when something is open.
    """
    account = at.desk.redrives.statement(at.who, number)
    if as_json:
        print_json(account)
    else:
        redrive_view.statement(console(), account)
    sys.exit(0 if account.adds_up and not account.open else UNDER_WAY if account.adds_up else FAILED)
