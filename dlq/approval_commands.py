"""`ackline approvals`: what waits for a second person."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click
from rich.text import Text

from ackline.dlq.approvals import Approval
from ackline.dlq.cli import letter_view
from ackline.dlq.cli.seat import FAILED, Seat, seated
from ackline.dlq.cli.tables import as_json, print_facts, print_json, table
from ackline.infra.tables import ApprovalState
from ackline.infra.terminal import console, line, moment

#: What `list --state` takes besides a state.
ALL_STATES = "all"

_number = click.argument("number", type=int)
_reason = click.option("--reason", default="", help="Why. It is kept on record.")


@click.group()
def approvals() -> None:
    """See what waits for a second person by the rules of ACKLINE_APPROVAL_RULES, and decide on it."""


@approvals.command("list")
@click.option(
    "--state",
    type=click.Choice([*(state.value for state in ApprovalState), ALL_STATES]),
    default=ApprovalState.WAITING.value,
    show_default=True,
    help="Those in this state.",
)
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="At most so many.")
@click.option("--before", type=click.IntRange(1), help="Only those with a smaller number: the next page.")
@as_json
@seated
def list_(at: Seat, state: str, limit: int, before: int | None, as_json: bool) -> None:
    """List requests, the latest first."""
    states = () if state == ALL_STATES else (ApprovalState(state),)
    page = at.desk.approvals.page(at.who, states, before, limit)
    if as_json:
        for found in page.items:
            print_json(asdict(found))
        return
    listing = table("NO", "STATE", "ASKED", "BY", "WHAT", flexible="WHAT", right=["NO"])
    for found in page.items:
        told = (line(found.requested_by), line(found.summary))
        listing.add_row(str(found.id), found.state, moment(found.requested_at), *map(Text, told))
    if page.items:
        console().print(listing)
    print(f"More: --before {page.next}." if page.next else f"{len(page.items):,} requests.", file=sys.stderr)


@approvals.command()
@_number
@as_json
@seated
def show(at: Seat, number: int, as_json: bool) -> None:
    """Show the request NUMBER: what it asks for, and what became of it."""
    found = at.desk.approvals.get(at.who, number)
    if as_json:
        print_json(asdict(found))
    else:
        _show(found)


@approvals.command()
@_number
@_reason
@seated
def approve(at: Seat, number: int, reason: str) -> None:
    """Approve the request NUMBER of somebody else, and have it carried out as it was asked for.

    Ends with 1 if that fails, because something has changed since, and says why.
    """
    found = at.desk.approvals.approve(at.who, number, reason)
    if found.state == ApprovalState.FAILED:
        said = (found.result or {}).get("error", "")
        print(f"ackline: Request {number} was approved, and could not be carried out: {line(said)}", file=sys.stderr)
        sys.exit(FAILED)
    print(f"{number}: done ({line(found.summary)})")


@approvals.command()
@_number
@_reason
@seated
def refuse(at: Seat, number: int, reason: str) -> None:
    """Refuse the request NUMBER of somebody else."""
    print(f"{at.desk.approvals.refuse(at.who, number, reason).id}: refused")


@approvals.command()
@_number
@_reason
@seated
def withdraw(at: Seat, number: int, reason: str) -> None:
    """Withdraw one's own request NUMBER."""
    print(f"{at.desk.approvals.withdraw(at.who, number, reason).id}: withdrawn")


def _show(found: Approval) -> None:
    decided = f"{moment(found.decided_at)} by {found.decided_by}" if found.decided_by else moment(found.decided_at)
    screen = console()
    screen.print(Text(f"Request {found.id}, {found.state}: {line(found.summary)}"))
    for told in letter_view.differences(found.diff):
        screen.print(Text("  ") + told)
    print_facts(
        screen,
        {
            "asked": f"{moment(found.requested_at)} by {found.requested_by}",
            "reason": found.reason,
            "waits because": found.rule,
            "waits until": moment(found.expires_at) if found.state == ApprovalState.WAITING else "",
            "decided": decided,
            "decided why": found.decision_reason or "",
            "result": ", ".join(f"{name}: {value}" for name, value in (found.result or {}).items()),
        },
    )
