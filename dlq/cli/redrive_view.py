"""How redrives look: plans, progress, and the account at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ackline.dlq.cli.tables import ago, counted, print_facts, span, table
from ackline.dlq.pacing import ALL, STAGES
from ackline.dlq.redrives import Redrive
from ackline.dlq.statement import Statement
from ackline.dlq.view import Item
from ackline.infra.tables import OPEN_ITEM_STATES, ItemState, RedriveState
from ackline.infra.terminal import line, moment

OPEN = OPEN_ITEM_STATES
FINISHED = (RedriveState.DONE, RedriveState.CANCELLED)
_STYLES = {"running": "cyan", "stopped": "red", "paused": "yellow", "done": "green", "cancelled": "dim"}
#: Dead letters that a statement names in its text.
_NAMED = 20


def plan(to: Console, redrive: Redrive) -> None:
    """Print a plan as a person reads it, and what to do next."""
    found = redrive.plan
    assert found is not None  # noqa: S101
    title = f"Redrive {redrive.id} is planned: {planned(redrive)}. Nothing has been sent."
    to.print(Text(title, style="bold"))
    print_facts(to, {"to": _counts(found.consumers), "of type": _counts(found.types), "pace": _pace(redrive)})
    if found.ineligible:
        to.print(Text(f"  {counted(sum(found.ineligible.values()), 'dead letter')} will not be sent:"))
        for why, count in sorted(found.ineligible.items(), key=lambda pair: -pair[1]):
            to.print(Text(f"    {count:>7,}  {line(why)}"))
        to.print(Text(f"             which: ackline dlq redrives items {redrive.id} --state ineligible", style="dim"))
    for command in following(redrive):
        to.print(Text(f"  {command}"))


def show(to: Console, redrive: Redrive) -> None:
    """Print all that is known of a redrive."""
    to.print(Text(f"Redrive {redrive.id}: {redrive.state}", style="bold"))
    started = f"{moment(redrive.started_at)} by {redrive.started_by}" if redrive.started_at else "not yet"
    print_facts(
        to,
        {
            "why": redrive.why or "",
            "progress": progress(redrive),
            "of": _selection(redrive.selection),
            "to": redrive.consumer or "the consumer that failed",
            "patched": f"by {counted(len(redrive.patch), 'operation')}" if redrive.patch else "",
            "pace": _pace(redrive),
            "planned": f"{moment(redrive.created_at)} by {redrive.actor}",
            "reason": redrive.reason,
            "started": started,
            "finished": moment(redrive.finished_at),
        },
    )
    for command in following(redrive):
        to.print(Text(f"  {command}"))


def listing(found: Sequence[Redrive]) -> Table:
    """The table of `ackline dlq redrives list`."""
    drawn = table("REDRIVE", "STATE", "PROGRESS", "BY", "AGE", flexible="PROGRESS", right=("REDRIVE",))
    for one in found:
        said = Text(progress(one))
        if one.why:
            said.append(f"\n{line(one.why)}", style="dim")
        drawn.add_row(
            str(one.id), Text(one.state, style=_STYLES.get(one.state, "")), said, line(one.actor), ago(one.created_at)
        )
    return drawn


def items(found: Sequence[Item]) -> Table:
    """The table of `ackline dlq redrives items`."""
    drawn = table("DEAD LETTER", "STATE", "CONSUMER", "WHY", flexible="WHY", right=("DEAD LETTER",))
    for item in found:
        drawn.add_row(
            str(item.dead_letter_id), item.state, Text(line(item.consumer) or "-"), Text(line(item.error or ""))
        )
    return drawn


def statement(to: Console, account: Statement) -> None:
    """Print the account of a redrive: a sum, and by id whatever is open or does not add up."""
    to.print(Text(f"Redrive {account.redrive_id}: {account.state}", style="bold"))
    for state, count in account.items.items():
        if count:
            to.print(Text(f"  {count:>9,}  {state}"))
    to.print(Text(f"  {'─' * 9}"))
    verdict = "it adds up" if account.adds_up else "IT DOES NOT ADD UP"
    to.print(Text(f"  {account.planned:>9,}  planned: {verdict}"))
    if account.unanswered:
        to.print(Text(f"  Not answered yet: {_named(account.unanswered)}."))
    for row_id, why in list(account.odd.items())[:_NAMED]:
        to.print(Text(f"  Dead letter {row_id}: {line(why)}.", style="red"))
    if len(account.odd) > _NAMED:
        to.print(Text(f"  … {len(account.odd) - _NAMED:,} more: --json has them.", style="red"))
    if account.duplicates or account.flagged:
        told = f"{counted(account.duplicates, 'duplicate')} changed nothing"
        to.print(Text(f"  {told}; {counted(account.flagged, 'dead letter')} had something happen out of turn."))


def planned(redrive: Redrive) -> str:
    """How many messages it is of, when it has been planned."""
    return counted(redrive.plan.messages if redrive.plan else sum(redrive.items.values()), "message")


def progress(redrive: Redrive) -> str:
    """How far it is, in a line."""
    if redrive.state == RedriveState.PLANNING:
        return f"{sum(redrive.items.values()):,} planned so far"
    told = [f"{count:,} {name}" for name, count in counts(redrive).items() if count]
    return ", ".join(told) or "nothing to send"


def counts(redrive: Redrive) -> dict[str, int]:
    """Its messages by what a person asks for first."""
    items = redrive.items
    known = (ItemState.HANDLED, ItemState.FAILED, ItemState.NOT_SENT, ItemState.SKIPPED, ItemState.SUPERSEDED)
    under_way = sum(items[state] for state in OPEN_ITEM_STATES)
    left = {"under way": under_way, "to be sent": items[ItemState.PLANNED]}
    return {state.value: items[state] for state in known} | left


def following(redrive: Redrive) -> list[str]:
    """The commands that a person is likely to want next."""
    at = redrive.id
    return {
        RedriveState.PLANNED: [f"Start it:    ackline dlq start {at}", f"Forget it:   ackline dlq cancel {at}"],
        RedriveState.RUNNING: [f"Watch it:    ackline dlq watch {at}", f"Pause it:    ackline dlq pause {at}"],
        RedriveState.PAUSED: [f"Go on:       ackline dlq resume {at}", f"End it:      ackline dlq cancel {at}"],
        RedriveState.STOPPED: [
            f"What failed: ackline dlq redrives items {at} --state failed",
            f"Go on:       ackline dlq resume {at}   (with a new canary)",
            f"End it:      ackline dlq cancel {at}",
        ],
        RedriveState.DONE: [f"Account:     ackline dlq redrives statement {at}"],
        RedriveState.CANCELLED: [f"Account:     ackline dlq redrives statement {at}"],
    }.get(redrive.state, [])


def paced(rate: float | None) -> str:
    """A rate for people."""
    if rate is None:
        return "as fast as it goes"
    return (
        f"{rate:g} a second"
        if rate >= 1
        else f"{rate * 60:g} a minute"
        if rate * 60 >= 1
        else f"{rate * 3600:g} an hour"
    )


def _pace(redrive: Redrive) -> str:
    first = "1, 5, 25, 125, then all, " if redrive.canary else ""
    where = ""
    if redrive.canary and redrive.state == RedriveState.RUNNING and redrive.stage != ALL:
        where = f" (canary stage {STAGES.index(redrive.stage) + 1} of {len(STAGES)})" if redrive.stage in STAGES else ""
    left = redrive.items[ItemState.PLANNED]
    takes = f"; what is left takes about {span(redrive.seconds)}" if left and redrive.rate else ""
    return f"{first}{paced(redrive.rate)}{where}{takes}"


def _selection(selection: Mapping[str, object]) -> str:
    said = []
    for name, value in selection.items():
        shown = (
            ", ".join(map(str, value[:10])) + (", …" if len(value) > 10 else "") if isinstance(value, list) else value
        )
        said.append(f"{name.replace('_', ' ')} {shown}")
    return "; ".join(said) or "everything in review"


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{line(name) or 'nobody'} {count:,}" for name, count in sorted(found.items()))


def _named(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:_NAMED])) + (", …" if len(ids) > _NAMED else "")
