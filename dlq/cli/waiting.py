"""Waiting for redrives, with a bar on a terminal; and `ackline dlq watch`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from ackline.dlq.cli import completing, groups, letter_view, redrive_view
from ackline.dlq.cli.seat import FAILED, UNDER_WAY, Seat, seated
from ackline.dlq.cli.tables import as_json, print_json
from ackline.dlq.errors import Refused
from ackline.dlq.groups import GroupFilter
from ackline.dlq.redrives import MAX_AT_ONCE, Redrive
from ackline.dlq.view import Item
from ackline.infra.tables import OPEN_ITEM_STATES, DeadLetterState, ItemState, RedriveState
from ackline.infra.terminal import line

#: Seconds between looks: for outcomes of a few, at a redrive, and at all groups.
_LOOK_SECONDS, _WATCH_SECONDS, _GROUPS_SECONDS = 0.2, 0.5, 2.0
#: Groups, and redrives, on the screen of `watch`.
_GROUPS, _REDRIVES = 15, 10

Move = Callable[..., None]
"""Moves a bar on; takes what rich's `Progress.update` does: completed, advance, description."""


def spinner(what: str) -> Any:
    """A block during which a terminal shows that something is being done."""
    to = Console(stderr=True)
    return to.status(what) if _moves(to) else nullcontext()


def _moves(to: Console) -> bool:
    return to.is_terminal and not to.is_dumb_terminal


@contextmanager
def bar(what: str, total: int | None = None, hidden: bool = False) -> Iterator[Move]:
    """A bar on standard error while the block runs, if that is a terminal."""
    to = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=to, transient=True, disable=hidden or not _moves(to)) as shown:
        yield partial(shown.update, shown.add_task(what, total=total))


def follow(at: Seat, redrive_id: int, timeout: float, as_json: bool) -> list[str]:
    """Print what becomes of each message of what was sent back at once, for *timeout* seconds; returns their states."""
    deadline = time.monotonic() + timeout
    told: set[int] = set()
    while True:
        items = at.desk.redrives.items(at.who, redrive_id, limit=MAX_AT_ONCE).items
        over = time.monotonic() >= deadline
        for item in items:
            if item.dead_letter_id not in told and (over or item.state not in OPEN_ITEM_STATES):
                told.add(item.dead_letter_id)
                print_json(item) if as_json else print(_told(at, item, timeout), flush=True)
        if over or len(told) == len(items):
            return [item.state for item in items]
        time.sleep(_LOOK_SECONDS)


def _told(at: Seat, item: Item, timeout: float) -> str:
    if item.state in OPEN_ITEM_STATES:
        sent = "sent, not answered yet" if item.state == ItemState.CONFIRMED else "is the reviewer running?"
        said = f"still under way after {timeout:g} s ({line(item.error or sent)})"
    elif item.state == ItemState.HANDLED:
        said = f"handled by {line(item.consumer)}"
    elif item.state == ItemState.FAILED:
        said = f"in review again: {letter_view.error(at.desk.letters.get(at.who, item.dead_letter_id))}"
    else:
        said = line(item.error or item.state)
    return f"{item.dead_letter_id}: {said}"


@click.command()
@click.argument(
    "number", metavar="[REDRIVE]", type=click.IntRange(1), required=False, shell_complete=completing.redrive_numbers
)
@click.option("--timeout", type=click.FloatRange(0), help="Seconds to wait.  [default: until it is over]")
@as_json
@seated
def watch(at: Seat, number: int | None, timeout: float | None, as_json: bool) -> None:
    """Follow a redrive until it is over; or all, live.

    Without REDRIVE a terminal shows the groups, and the redrives that run, until Ctrl-C. That leaves everything
    running.

    Ends with 0 when all was handled, 1 when some was not, or it has stopped, is
    paused or cancelled, and 3 when it is still under way after the timeout. With --json, an object at each change.
    """
    try:
        sys.exit(_follow_groups(at) if number is None else _follow_one(at, number, timeout, as_json))
    except KeyboardInterrupt:
        print("It goes on without you.", file=sys.stderr)
        sys.exit(UNDER_WAY)


def _follow_one(at: Seat, number: int, timeout: float | None, as_json: bool) -> int:
    deadline = None if timeout is None else time.monotonic() + timeout
    found = at.desk.redrives.get(at.who, number)
    if found.state in (RedriveState.PLANNING, RedriveState.PLANNED):
        raise Refused(f"Redrive {number} has not begun: `ackline dlq start {number}` has it sent.")
    total = sum(found.items.values()) - found.items[ItemState.INELIGIBLE]
    with bar(f"Redrive {number}", total) as move:
        while _is_under_way(found) and (deadline is None or time.monotonic() < deadline):
            if as_json:
                print_json(found)
            counts = redrive_view.counts(found)
            done = total - counts["under way"] - counts["to be sent"]
            why = f": {line(found.why)}" if found.why else ""
            move(completed=done, description=f"Redrive {number} {found.state}{why}")
            before = found
            while (found := at.desk.redrives.get(at.who, number)) == before:
                if deadline is not None and time.monotonic() >= deadline:
                    break
                time.sleep(_WATCH_SECONDS)
    if as_json:
        print_json(found)
    else:
        print(f"Redrive {number} is {found.state}: {redrive_view.progress(found)}.")
        if found.why:
            print(f"  {line(found.why)}")
        for command in redrive_view.following(found):
            print(f"  {command}")
    if _is_under_way(found):
        return UNDER_WAY
    handled = found.items[ItemState.HANDLED]
    return 0 if found.state == RedriveState.DONE and handled == total else FAILED


def _is_under_way(found: Redrive) -> bool:
    """Whether something is still to be waited for: what is on its way counts, whatever the redrive's state."""
    return found.state == RedriveState.RUNNING or any(found.items[state] for state in OPEN_ITEM_STATES)


def _follow_groups(at: Seat) -> int:
    if not sys.stdout.isatty():
        raise click.UsageError("Name a redrive, or watch all on a terminal; `ackline dlq groups --json` is for a pipe.")
    with Live(_screen(at), console=Console(highlight=False), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(_GROUPS_SECONDS)
            live.update(_screen(at), refresh=True)


def _screen(at: Seat) -> Group:
    found = at.desk.groups.page(at.who, GroupFilter(state=DeadLetterState.IN_REVIEW), limit=_GROUPS).items
    running = [
        one for one in at.desk.redrives.page(at.who, limit=_REDRIVES).items if one.state not in redrive_view.FINISHED
    ]
    parts: list[Any] = [groups.listing(found) if found else Text("Nothing is in review.")]
    return Group(*parts, redrive_view.listing(running)) if running else Group(*parts)
