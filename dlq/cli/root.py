"""`ackline dlq` itself: all its commands, under headings, in the order of a bad night."""

from __future__ import annotations

import click

from ackline.dlq.cli import editing, groups, letters, redriving, transfer, waiting
from ackline.dlq.cli.sections import Sections

_SECTIONS = {
    "See what happened": [groups.groups, letters.list_, letters.show, waiting.watch],
    "Say who sees to it": [groups.triage, letters.note],
    "Mend the data": [editing.edit, editing.revert, editing.patch],
    "Send back": [
        redriving.retry,
        redriving.plan,
        redriving.start,
        redriving.pause,
        redriving.resume,
        redriving.rate,
        redriving.cancel,
        redriving.redrives,
    ],
    "Take out of review": [letters.discard, letters.restore, letters.undo],
    "Move elsewhere": [transfer.export, transfer.import_],
}


@click.group(cls=Sections, sections=_SECTIONS)
def dlq() -> None:
    """Work through dead letters: see why they failed, mend them, send them back, or discard them.

    ID is the number that `list` shows, or a message id that only one dead letter has; `-` reads ids, or what
    `list --json` prints, from standard input. GROUP and REDRIVE are as `groups` and `redrives list` show them.

    Who acts is ACKLINE_ACTOR, else the system's user.

    \b
    Exit codes: 0 all of it is done    1 something was refused, or failed
                2 wrong command line   3 something is still under way
                4 it waits for a second person
    """
