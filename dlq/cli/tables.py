"""How commands print: tables for people, at 80 columns and without colour too; JSON for programs."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ackline.infra.terminal import line, plain
from ackline.infra.wire import now

_BARS = "▁▂▃▄▅▆▇█"
#: Columns before what is known of something.
_INDENT = 16
#: Seconds of each unit, and from how many of them on the next one is used.
_UNITS = (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48), ("d", 86400, None))

as_json = click.option("--json", "as_json", is_flag=True, help="As JSON; of a list, one object in each line.")


def print_json(value: Any) -> None:
    """*value* as JSON, in one line."""
    print(json.dumps(plain(value), ensure_ascii=False))


def table(*columns: str, flexible: str, right: Iterable[str] = ()) -> Table:
    """A table with these columns; what does not fit is folded in *flexible*. right: those of numbers."""
    drawn = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for name in columns:
        if name == flexible:
            drawn.add_column(name, ratio=1, overflow="fold")
        else:
            drawn.add_column(name, no_wrap=True, justify="right" if name in right else "left")
    return drawn


def stacked(*lines: str | Text) -> Text:
    """*lines* under each other, without the empty ones."""
    return Text("\n").join([Text(line) if isinstance(line, str) else line for line in lines if line])


def ago(at: datetime) -> str:
    """How long ago it was."""
    return span(max((now() - at).total_seconds(), 0.0))


def span(seconds: float) -> str:
    """A duration for people, `40 s` or `12 min`: in the largest unit of which there are two."""
    return next(f"{seconds / size:.0f} {name}" for name, size, most in _UNITS if most is None or seconds < most * size)


def bars(counts: Sequence[int]) -> str:
    """*counts* as a line of bars, the highest of which is the greatest."""
    most = max(counts, default=0)
    return "".join(_BARS[round(count / most * (len(_BARS) - 1))] if most else _BARS[0] for count in counts)


def counted(count: int, noun: str) -> str:
    """`1 dead letter`, `1,200 dead letters`."""
    return f"{count:,} {noun}{'s'[: count != 1]}"


def print_facts(to: Console, known: Mapping[str, str]) -> None:
    """Print names and what is known of them, without what is empty."""
    for name, value in known.items():
        if value:
            told = textwrap.wrap(line(value), max(to.width - _INDENT, _INDENT), break_on_hyphens=False)
            to.print(Text.assemble((f"  {name:<{_INDENT - 2}}", "dim"), f"\n{' ' * _INDENT}".join(told)))
