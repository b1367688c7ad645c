"""`ackline dlq list | show | note | discard | restore | undo`: dead letters, one or many."""

from __future__ import annotations

import sys

import click

from ackline.dlq.cli import completing, letter_view
from ackline.dlq.cli.references import named, one
from ackline.dlq.cli.seat import Seat, seated
from ackline.dlq.cli.selecting import Filtering, selecting
from ackline.dlq.cli.tables import as_json, counted, print_json
from ackline.dlq.letters import CONFIRM_ABOVE, Done
from ackline.dlq.selection import Selection
from ackline.dlq.view import Summary
from ackline.infra.tables import DeadLetterState
from ackline.infra.terminal import console

#: Dead letters that are read in one go.
_PAGE = 500


def _said(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not value.strip():
        raise click.BadParameter("must not be blank: whoever comes next will want to know.", ctx, param)
    return value


reason = click.option("--reason", required=True, callback=_said, help="Why. It is kept, with your name.")


@click.command("list", cls=Filtering)
@selecting(DeadLetterState.IN_REVIEW, DeadLetterState.REDRIVING, everything=True)
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, help="At most so many.")
@click.option("--cursor", type=click.IntRange(1), help="Where the page before this one ended; it says so.")
@as_json
def list_(at: Seat, selection: Selection, limit: int, cursor: int | None, as_json: bool) -> None:
    """List dead letters, the latest first.

    They are those in review or on their way back, unless --state says otherwise, and of those the ones of which all
    filters are true.

    In a pipe nothing is cut; `ackline dlq list --json | ackline dlq retry -` sends back what is listed.
    """
    found: list[Summary] = []
    while True:
        page = at.desk.letters.page(at.who, selection, cursor, min(limit - len(found), _PAGE))
        found, cursor = found + page.items, page.next
        if cursor is None or len(found) >= limit:
            break
    if as_json:
        for row in found:
            print_json(row)
        return
    if found:
        screen = console()
        screen.print(letter_view.listing(found, screen.width))
    more = f" More: --cursor {cursor}" if cursor else ""
    print(f"{counted(len(found), 'dead letter')}.{more}", file=sys.stderr)


@click.command()
@one
@click.option("--payload", is_flag=True, help="Only the payload, to standard output, byte by byte.")
@click.option(
    "--version", type=click.IntRange(0), help="With --payload: of this edit; 0 is as it came. Else the latest."
)
@click.option("--unmask", metavar="REASON", help="Show what the contract masks, too. That you did is on record.")
@as_json
@seated
def show(at: Seat, reference: str, payload: bool, version: int | None, unmask: str | None, as_json: bool) -> None:
    """Show a dead letter: why it failed, what it says.

    Each attempt, the payload, the headers, and what people did with it, too.
    """
    [row_id] = at.ids([reference])
    if payload:
        sys.stdout.buffer.write(at.desk.letters.payload(at.who, row_id, version=version, unmask=unmask))
        sys.stdout.buffer.flush()
        return
    detail = at.desk.letters.get(at.who, row_id, unmask=unmask)
    print_json(detail) if as_json else letter_view.show(console(), detail)


@click.command()
@one
@click.argument("text")
@seated
def note(at: Seat, reference: str, text: str) -> None:
    """Leave a note with a dead letter for the next one."""
    [row_id] = at.ids([reference])
    at.desk.letters.note(at.who, row_id, text)
    print(f"{row_id}: noted.")


@click.command(cls=Filtering)
@selecting(DeadLetterState.IN_REVIEW)
@reason
@click.option(
    "--expect", type=click.IntRange(0), metavar="N", help="They are N; with any other number nothing is done."
)
@as_json
def discard(at: Seat, selection: Selection, reason: str, expect: int | None, as_json: bool) -> None:
    """Take dead letters out of review for good.

    They are kept, with who did it and why, and can be restored. To discard many at once you are asked how many they
    are; a script says so by --expect.
    """
    if expect is None and sys.stdin.isatty() and sys.stderr.isatty():
        count = at.desk.letters.counts(at.who, selection)[DeadLetterState.IN_REVIEW]
        if count > CONFIRM_ABOVE:
            prompt = f"This discards {counted(count, 'dead letter')}. Type how many to go on"
            expect = click.prompt(prompt, type=int, err=True)
    done = at.desk.letters.discard(at.who, selection, reason, expect=expect)
    _tell(done, "discarded", f" Undo: ackline dlq undo {done.action} --reason …", as_json)


@click.command()
@click.argument("references", metavar="ID...", nargs=-1, required=True, shell_complete=completing.discarded)
@reason
@as_json
@seated
def restore(at: Seat, references: tuple[str, ...], reason: str, as_json: bool) -> None:
    """Bring discarded dead letters back into review."""
    done = at.desk.letters.restore(at.who, at.ids(named(references)), reason)
    _tell(done, "restored", " In review again.", as_json)


@click.command()
@click.argument("action", type=click.IntRange(1))
@reason
@as_json
@seated
def undo(at: Seat, action: int, reason: str, as_json: bool) -> None:
    """Restore exactly what an ACTION discarded.

    ACTION is the number that `discard` printed, and that `show` and `ackline audit` have. What somebody has done
    something with since stays as it is.
    """
    done = at.desk.letters.undo(at.who, action, reason)
    _tell(done, "restored", " In review again.", as_json)


def _tell(done: Done, what: str, more: str, as_json: bool) -> None:
    if as_json:
        print_json(done)
    else:
        print(f"{counted(done.count, 'dead letter')} {what}.{more if done.count else ''}")
