"""`ackline dlq groups` and `triage`: kinds of failures, and what people say of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ackline.dlq.cli import completing
from ackline.dlq.cli.seat import seat
from ackline.dlq.cli.tables import ago, as_json, bars, counted, print_facts, print_json, stacked, table
from ackline.dlq.groups import Group, GroupFilter, Order
from ackline.infra.tables import DeadLetterState, GroupStatus
from ackline.infra.terminal import console, line, moment

#: What `--order` takes.
_ORDERS = {"last-seen": Order.LAST_SEEN, "count": Order.COUNT}


@click.command()
@click.argument("group", required=False, shell_complete=completing.groups)
@click.option("--status", type=click.Choice([status.value for status in GroupStatus]), help="With this status.")
@click.option("--consumer", shell_complete=completing.consumers, help="Of this consumer.")
@click.option("--owner", help="Of this owner; '' for those without one.")
@click.option("--text", help="With these words in the error.")
@click.option("--all", "everything", is_flag=True, help="Those too with nothing in review.")
@click.option("--order", type=click.Choice(list(_ORDERS)), default="last-seen", show_default=True, help="First come.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most so many.")
@click.option("--cursor", help="Where the page before this one ended; it says so.")
@as_json
def groups(
    group: str | None,
    status: str | None,
    consumer: str | None,
    owner: str | None,
    text: str | None,
    everything: bool,
    order: str,
    limit: int,
    cursor: str | None,
    as_json: bool,
) -> None:
    """List the kinds of failures in review, or show one GROUP.

    Equal failures are a group: the same consumer, error and place in the code, whatever numbers and names the messages
    hold. The bars are the failures of each of the last 24 hours.
    """
    with seat() as at:
        if group is not None:
            one = at.desk.groups.get(at.who, group)
            _told(one, as_json)
            return
        wanted = GroupFilter(
            status=None if status is None else GroupStatus(status),
            consumer=consumer,
            owner=owner,
            state=None if everything else DeadLetterState.IN_REVIEW,
            text=text,
        )
        found, following = at.desk.groups.page(at.who, wanted, cursor, limit, _ORDERS[order])
    if as_json:
        for one in found:
            print_json(one)
    elif found:
        console().print(listing(found))
    in_review = sum(one.counts[DeadLetterState.IN_REVIEW] for one in found)
    more = f" More: --cursor '{following}'" if following else ""
    print(f"{counted(len(found), 'group')}, {in_review:,} in review.{more}", file=sys.stderr)


@click.command()
@click.argument("group", shell_complete=completing.groups)
@click.option("--status", type=click.Choice([status.value for status in GroupStatus]), help="What is true of it now.")
@click.option("--resolved-in", metavar="VERSION", help="With `--status resolved`: the version that mends it.")
@click.option("--owner", help="Who sees to it; '' for nobody.")
@click.option("--note", help="What the next one should know; '' takes it away.")
@click.option("--runbook", metavar="URL", help="Where it says what to do; '' takes it away.")
@as_json
def triage(
    group: str,
    status: str | None,
    resolved_in: str | None,
    owner: str | None,
    note: str | None,
    runbook: str | None,
    as_json: bool,
) -> None:
    """Say who sees to a GROUP, and how it stands.

    One that is resolved is open again by itself when it returns.
    """
    if status is resolved_in is owner is note is runbook is None:
        raise click.UsageError("Say something of it: --status, --owner, --note or --runbook.")
    with seat() as at:
        changed = at.desk.groups.triage(
            at.who,
            group,
            status=None if status is None else GroupStatus(status),
            owner=owner,
            note=note,
            runbook=runbook,
            resolved_in=resolved_in,
        )
    _told(changed, as_json)


def _told(one: Group, as_json: bool) -> None:
    if as_json:
        print_json(one)
    else:
        show(console(), one)


def listing(found: Sequence[Group]) -> Table:
    """The table of `ackline dlq groups`."""
    drawn = table(
        "GROUP", "FAILURE", "IN\nREVIEW", "ALL", "LAST\nSEEN", flexible="FAILURE", right=("IN\nREVIEW", "ALL")
    )
    for one in found:
        failure = stacked(
            Text(_title(one), style="bold"),
            line(one.message),
            Text(line(one.frame), style="dim"),
            _standing(one),
            Text(bars(one.rate), style="cyan"),
        )
        in_review, everything = one.counts[DeadLetterState.IN_REVIEW], sum(one.counts.values())
        drawn.add_row(one.fingerprint, failure, f"{in_review:,}", f"{everything:,}", ago(one.last_seen))
    return drawn


def show(to: Console, one: Group) -> None:
    """Print all that is known of a group."""
    counts = ", ".join(f"{count:,} {state}" for state, count in one.counts.items() if count)
    seen = f"{moment(one.first_seen)} to {moment(one.last_seen)}, {counted(one.arrivals, 'failure')}"
    known = {
        "failure": _title(one),
        "said": one.message,
        "raised in": one.frame,
        "type": one.type,
        "dead letters": counts or "none",
        "seen": seen,
        "last 24 h": bars(one.rate),
        "status": f"{_status(one)} since {moment(one.status_at)}, by {one.status_by}",
        "reopened": f"{one.reopened} times" if one.reopened else "",
        "owner": one.owner or "",
        "note": one.note or "",
        "runbook": one.runbook or "",
        "example": f"{one.sample.id} ({one.sample.message_id}): ackline dlq show {one.sample.id}" if one.sample else "",
    }
    to.print(Text(f"Group {one.fingerprint}", style="bold"))
    print_facts(to, known)


def _title(one: Group) -> str:
    return line(": ".join(filter(None, [one.consumer or "nobody", one.error_type])))


def _status(one: Group) -> str:
    return f"resolved in {line(one.resolved_in)}" if one.resolved_in else str(one.status)


def _standing(one: Group) -> str:
    """What people say of it, in a line; nothing of one that nobody has looked at."""
    if one.status == GroupStatus.OPEN and not (one.owner or one.note or one.reopened):
        return ""
    again = "open again" if one.status == GroupStatus.OPEN and one.reopened else _status(one)
    return line(", ".join(filter(None, [again, one.owner])) + (f": {one.note}" if one.note else ""))
