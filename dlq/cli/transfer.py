"""`ackline dlq export` and `import`: dead letters as JSON lines, for another database or another program."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import IO

import click

from ackline.dlq.cli.seat import FAILED, Seat, seated
from ackline.dlq.cli.selecting import Filtering, selecting
from ackline.dlq.cli.tables import as_json, counted, print_json
from ackline.dlq.cli.waiting import Move, bar
from ackline.dlq.selection import Selection
from ackline.infra.terminal import line


@click.command(cls=Filtering)
@selecting(everything=True)
@click.option(
    "--unmask", metavar="REASON", help="With what contracts mask; only this can be imported. It is on record."
)
def export(at: Seat, selection: Selection, unmask: str | None) -> None:
    """Write dead letters to standard output as JSON lines.

    Each with its payload, properties, history, edits and notes.

    \b
    ackline dlq export --since 1d > night.jsonl
    """
    count = 0
    # On a terminal the lines themselves are the progress.
    with bar("Dead letters", hidden=sys.stdout.isatty()) as move:
        for row in at.desk.letters.export(at.who, selection, unmask=unmask):
            print_json(row)
            count += 1
            move(advance=1)
    print(f"{counted(count, 'dead letter')} exported.", file=sys.stderr)


@click.command("import")
@click.argument("file", type=click.File("r", encoding="utf-8", errors="surrogateescape"))
@as_json
@seated
def import_(at: Seat, file: IO[str], as_json: bool) -> None:
    """Take in what `export` wrote; `-` is standard input.

    All of it is in review here; what is here already stays as it is. Ends with 1 when a line could not be used; the
    others were taken in.
    """
    with bar("Lines") as move:
        done = at.desk.letters.import_(at.who, _passing(file, move))
    if as_json:
        print_json(done)
    else:
        print(f"{counted(done.stored, 'dead letter')} taken in, {done.duplicates:,} known already.")
        for fault in done.faults:
            print(f"ackline: {line(fault.path)}: {line(fault.message)}", file=sys.stderr)
        if done.faulty > len(done.faults):
            print(f"ackline: and {done.faulty - len(done.faults):,} lines more.", file=sys.stderr)
    sys.exit(FAILED if done.faulty else 0)


def _passing(lines: IO[str], move: Move) -> Iterator[str]:
    for written in lines:
        yield written
        move(advance=1)
