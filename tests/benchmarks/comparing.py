"""How contenders are compared: in turns, round by round, so that a noisy minute hits all of them; medians count."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ackline.infra.running_broker import Broker

ROOT = Path(__file__).parents[2]
#: Seconds that one measurement may take.
MEASURE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Bench:
    """What a benchmark is given: a broker that is ready, a folder of its own, and how thorough to be."""

    broker: Broker
    folder: Path
    short: bool

    @property
    def rounds(self) -> int:
        """How often each contender is measured."""
        return 1 if self.short else 5

    def scaled(self, count: int) -> int:
        """*count* messages, or a tenth in the short form."""
        return max(count // 10, 1) if self.short else count


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of a comparison. *measure* runs it once and returns its figures by name."""

    name: str
    measure: Callable[[], Mapping[str, float]]


#: The figures of each contender, one mapping for each round.
Figures = dict[str, list[Mapping[str, float]]]


def alternate(contenders: Sequence[Contender], rounds: int) -> Figures:
    """Measure each contender once per round, *rounds* times; says on stderr what it does."""
    figures: Figures = {contender.name: [] for contender in contenders}
    for number in range(1, rounds + 1):
        for contender in contenders:
            began = time.monotonic()
            found = contender.measure()
            figures[contender.name].append(found)
            shown = ", ".join(f"{name} {value:,.6g}" for name, value in found.items())
            took = time.monotonic() - began
            print(f"round {number} of {rounds}: {contender.name}: {shown} ({took:.0f} s)", file=sys.stderr)
    return figures


def median(figures: Figures, contender: str, figure: str) -> float:
    """The median of one figure of a contender over the rounds."""
    return statistics.median(found[figure] for found in figures[contender])


def spread(figures: Figures, contender: str, figure: str) -> str:
    """The least and the most of one figure of a contender, for people."""
    values = [found[figure] for found in figures[contender]]
    return f"{min(values):,.0f}–{max(values):,.0f}"


def table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table under its title."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join([f"### {title}", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def figures_of(command: Sequence[str | Path], **environment: str) -> Mapping[str, float]:
    """Run a program that prints its figures as one JSON object, in a process of its own, and return them.

    Raises `RuntimeError` with what it wrote when it fails.
    """
    done = subprocess.run(
        command,
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=MEASURE_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    found: Mapping[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compiled(name: str, folder: Path) -> Path:
    """The C client of that name, compiled into *folder*. Needs cc and librabbitmq (Debian: librabbitmq-dev)."""
    program = folder / name
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run(["cc", "-O2", "-Wall", "-o", program, source, "-lrabbitmq"], check=True)
    return program
