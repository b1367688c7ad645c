"""Dead letters as they are named on the command line, and through a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator

import click

from ackline.dlq.cli.completing import in_review

#: In place of ids: they are on standard input.
STDIN = "-"

#: `ID...`: numbers, message ids, or `-`.
several = click.argument("references", metavar="ID...", nargs=-1, required=True, shell_complete=in_review)
one = click.argument("reference", metavar="ID", shell_complete=in_review)


def named(references: Iterable[str]) -> list[str]:
    """The dead letters that *references* name, each once. `-` stands for the lines of standard input: ids, or the JSON
    objects that `ackline dlq list --json` prints.

    Raises `click.UsageError` for a line that is neither.
    """
    found: dict[str, None] = {}
    for reference in references:
        found.update(dict.fromkeys(_lines() if reference == STDIN else [reference]))
    return list(found)


def _lines() -> Iterator[str]:
    for number, line in enumerate(sys.stdin, start=1):
        text = line.strip()
        if text.startswith("{"):
            yield _id(text, number)
        elif text:
            yield text.strip('"')


def _id(text: str, number: int) -> str:
    try:
        return str(json.loads(text)["id"])
    except (ValueError, KeyError, RecursionError):
        raise click.UsageError(
            f"Line {number} of standard input is no dead letter: one id in each line, or what `list --json` prints."
        ) from None
