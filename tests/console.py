"""The `console` blocks of a page of the documentation: each command prints what stands below it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ackline.infra.settings import Settings
from tests.roles import environment
from tests.waiting import until

#: Between what two commands print.
_SEPARATOR = "\x1e"
#: Commands that only look, and may do so until they see it.
_LOOKS = re.compile(
    r"curl (?!.*(--json|-d |--data|-F |-X ))|ackline \w+ (list|status) ?|python3 -c '[^']*\bprint\(\w+\.count"
)


class Step(NamedTuple):
    """A command, and what it prints; `…` stands for anything."""

    command: str
    printed: str


def steps(page: Path) -> list[Step]:
    """Every command of the page. Those that set a variable for the reader's own machine are left out."""
    found: list[Step] = []
    for block in re.findall(r"^```console\n(.*?)^```$", page.read_text(), re.M | re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, printed = part.partition("\n")
            if not command.startswith("export "):
                found.append(Step(command, printed.strip()))
    return found


class Shell:
    """A bash that runs one command after the other, and remembers variables as a person's does."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self._bash = subprocess.Popen(
            ["bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=variables,
        )

    def run(self, command: str) -> str:
        """What *command* prints, errors included."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{command}\nprintf '{_SEPARATOR}\\n'\n")
        self._bash.stdin.flush()
        printed = ""
        while not printed.endswith(_SEPARATOR + "\n"):
            line = self._bash.stdout.readline()
            assert line, f"bash ended: {printed}"
            printed += line
        return re.sub(r" +$", "", printed.removesuffix(_SEPARATOR + "\n").replace("\r", ""), flags=re.M).strip()

    def enter(self, step: Step) -> None:
        """Run a command of a page. Fails when it does not print, or soon, where it only looks, what the page says."""
        said: list[str] = []

        def as_told() -> bool:
            said.append(self.run(step.command))
            return _fits(step, said[-1])

        try:
            if _LOOKS.match(step.command):  # the broker's connection, a report, a key: soon
                until(as_told, what=step.command)
            else:
                assert as_told()
        except AssertionError:
            raise AssertionError(f"$ {step.command}\n{said[-1]}\n--- but the page says\n{step.printed}") from None

    def close(self) -> None:
        """End it."""
        self._bash.kill()
        self._bash.communicate()


@contextmanager
def shell(folder: Path, settings: Settings, **variables: str) -> Iterator[Shell]:
    """A shell in *folder*, with these settings and the commands of this virtual environment."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    running = Shell(folder, environment(settings, PATH=programs, **variables))
    try:
        yield running
    finally:
        running.close()


def _fits(step: Step, printed: str) -> bool:
    pattern = ".*".join(re.escape(piece) for piece in step.printed.split("…"))
    return re.fullmatch(pattern, printed, re.S) is not None
