"""docs/http.md, run: each command of its `console` blocks prints what stands below it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import httpx

from ackline.infra.settings import Settings
from tests.mail import MailSink
from tests.roles import ROOT, environment, listening, role
from tests.waiting import until

PAGE = ROOT / "docs" / "http.md"
#: Between what two commands print.
_SEPARATOR = "\x1e"


class Step(NamedTuple):
    """A command, and what it prints; `…` stands for anything."""

    command: str
    printed: str


def steps() -> list[Step]:
    """Every command of the page."""
    found: list[Step] = []
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.M | re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, printed = part.partition("\n")
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
        return printed.removesuffix(_SEPARATOR + "\n").replace("\r", "").strip()

    def close(self) -> None:
        """End it."""
        self._bash.kill()
        self._bash.communicate()


def fits(step: Step, printed: str) -> bool:
    pattern = ".*".join(re.escape(piece) for piece in step.printed.split("…"))
    return re.fullmatch(pattern, printed, re.S) is not None


def test_every_command_of_the_page_prints_what_the_page_says(
    ackline_settings: Settings, smtp_sink: MailSink, tmp_path: Path
) -> None:
    first, *rest = steps()
    assert first.command == "export ACKLINE=http://127.0.0.1:8000"
    assert len(rest) > 40
    settings = ackline_settings.model_copy(update={"smtp_url": smtp_sink.url})
    with (
        role(settings, "reviewer"),
        role(settings, "worker"),
        role(settings, "relay"),
        role(settings, "gateway", "--port", "0") as gateway,
    ):
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        address = listening(gateway)
        until(lambda: httpx.get(f"{address}/readyz").json()["broker"] == "connected", what="the straight way")
        shell = Shell(tmp_path, environment(settings, ACKLINE=address, PATH=programs))
        try:
            for step in rest:
                _run(shell, step)
        finally:
            shell.close()
        assert "Traceback" not in gateway.log.read_text()


def _run(shell: Shell, step: Step) -> None:
    printed = shell.run(step.command)
    if not fits(step, printed) and _may_be_repeated(step.command):  # the broker's connection, a report, a key: soon
        said: list[str] = []

        def now() -> bool:
            said.append(shell.run(step.command))
            return fits(step, said[-1])

        try:
            until(now, what=step.command)
        except AssertionError:
            printed = said[-1]
        else:
            return
    assert fits(step, printed), f"$ {step.command}\n{printed}\n--- but the page says\n{step.printed}"


def _may_be_repeated(command: str) -> bool:
    """Whether it only looks."""
    return command.startswith("curl") and not re.search(r"--json|-d |--data|-F |-X ", command)
