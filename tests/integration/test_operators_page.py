"""The operators' page, `docs/operators.md`: its night is lived through in order, and every command says what it shows.

Each block of the page is a step. Commands are entered in a shell on a terminal of 80 columns without colours; reviewer
and worker are processes. What differs from run to run (times, hashes, names of machines) is compared as a placeholder.
So are the numbers of dead letters and of actions; where a later command names such a number, it gets that of this run.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from ackline.dlq.cli.root import dlq
from ackline.dlq.contracts import Contracts
from ackline.dlq.desk import Desk
from ackline.dlq.rights import Actor, Role
from ackline.dlq.selection import Selection
from ackline.infra import database
from ackline.infra.settings import Settings
from ackline.infra.tables import DeadLetterState
from tests.documented import DOCS
from tests.roles import RoleProcess, environment, role
from tests.waiting import until

PAGE = (DOCS / "operators.md").read_text()
#: The blocks of the page in their order: of which kind each is, and what it holds.
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
#: Dead letters of the night.
DEAD = 359

#: What differs from run to run, and what stands for it.
VARIES = [
    (r' *File "\S*/consumers/\w+\.py", line \d+, in \w+\n.*\n( *\^+\n)?', ""),  # Ackline's own frames
    (r"[\s─^]+", " "),  # where lines end, and where tracebacks of some Pythons point
    (r'File "\S+/(\w+\.py)", line \d+', r'File "\1"'),
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z", "<time>"),
    (r"timestamp = \d+", "timestamp = <time>"),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<uuid>"),
    (r"\b\d+:[0-9a-f]{64}\b", "<head>"),
    (r"All \d+ actions", "All actions"),
    (r"\+?\b\d+(\.\d+)? ?(s|min|h)\b", "<span>"),
    (r" on \S+:\d+: ", " on <worker>: "),
    (r"[▁▂▃▄▅▆▇█]{2,}", "<bars>"),
]
#: A number that is this run's own: of an action, or of a dead letter.
NUMBERS = {
    "action": re.compile(r"(?<=action )\d+|(?<=dlq undo )\d+"),
    "dead letter": re.compile(
        r"(?<=[Dd]ead letter )\d+|(?<=example {7})\d+|^ *\d+(?=   (?:in review|discarded) )|^\d+(?=: )"
        + "".join(rf"|(?<=dlq {command} )\d+" for command in ("show", "edit", "revert", "retry", "note", "restore")),
        re.MULTILINE,
    ),
}


@dataclass
class Night:
    """The folder of the page, its worker, and what the page's numbers are in this run."""

    settings: Settings
    folder: Path
    worker: RoleProcess
    numbers: dict[tuple[str, str], str] = field(default_factory=dict)

    def enter(self, command: str) -> str:
        """What *command* prints on a terminal."""
        master, slave = pty.openpty()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        more = {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1", "PATH": path, "PYTHONPATH": str(self.folder)}
        variables = environment(self.settings, ACKLINE_ACTOR="ada", **more)
        shell = ["bash", "-c", command]
        process = subprocess.Popen(shell, env=variables, cwd=self.folder, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        pieces = []
        try:
            while piece := os.read(master, 65536):
                pieces.append(piece)
        except OSError:  # what a terminal says when its other side is closed
            pass
        os.close(master)
        process.wait(60)
        return b"".join(pieces).decode().replace("\r\n", "\n")

    def in_review(self) -> int:
        """How many dead letters are in review."""
        with database.opened(self.settings.database) as engine:
            desk = Desk(engine, self.settings, Contracts({}))
            return desk.letters.counts(Actor("test", Role.VIEWER), Selection())[DeadLetterState.IN_REVIEW]

    def deploy(self, change: str) -> None:
        """Have the worker run a changed `shop.py`; *change*: its lines with - and +."""
        shop = self.folder / "shop.py"
        before, after = (
            "".join(line[1:] + "\n" for line in change.splitlines() if line.startswith(sign)) for sign in "-+"
        )
        assert before in shop.read_text()
        shop.write_text(shop.read_text().replace(before, after))
        self.worker.stop()
        self.worker.start()

    def lives(self, command: str, page: str) -> bool:
        """Enter *command*: it shows what the page says. Learns which of the page's numbers are which of this run."""
        shown = self.enter(self.translated(command))
        for kind, pattern in NUMBERS.items():
            here, there = pattern.findall(shown), pattern.findall(page)
            shown, page = pattern.sub(f"<{kind}>", shown), pattern.sub(f"<{kind}>", page)
            self.numbers.update({(kind, old.strip()): new.strip() for old, new in zip(there, here, strict=False)})
        assert steady(shown) == steady(page), f"$ {command}\n{shown}"
        return True

    def translated(self, command: str) -> str:
        """A command of the page, with the numbers of this run."""
        for kind, pattern in NUMBERS.items():
            for old in set(pattern.findall(command)):
                command = re.sub(rf"(?<= ){old}\b", self.numbers.get((kind, old), old), command)
        return command


def steady(text: str) -> str:
    """*text* without what differs from run to run, and without where its lines end."""
    for pattern, placeholder in VARIES:
        text = re.sub(pattern, placeholder, text)
    return text.strip()


def steps(block: str) -> list[tuple[str, str]]:
    """The commands of a block, each with what it prints."""
    return re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)


@pytest.fixture
def night(ackline_settings: Settings, tmp_path: Path) -> Iterator[Night]:
    folder = tmp_path / "shop"
    folder.mkdir()
    for kind, text in BLOCKS:
        if kind in ("python", "toml"):
            name, _, content = text.removeprefix("# ").partition("\n")
            (folder / name).write_text(content)
    settings = ackline_settings.model_copy(update={"app": ("shop",)})
    with (
        role(settings, "reviewer", PYTHONPATH=str(folder)),
        role(settings, "worker", PYTHONPATH=str(folder)) as worker,
    ):
        yield Night(settings, folder, worker)


@pytest.mark.timeout(1800)
def test_the_night(night: Night) -> None:
    for kind, block in BLOCKS:
        if kind == "diff":
            night.deploy(block)
        elif kind == "console":
            for command, page in steps(block):
                if "ledger" in command:  # RabbitMQ tells its own counts only every few seconds
                    until(partial(night.lives, command, page), what="the ledger to add up")
                else:
                    night.lives(command, page)
                if command == "python night.py":
                    until(lambda: night.in_review() == DEAD, what="all dead letters of the night")


def test_every_block_is_run_or_written() -> None:
    assert {kind for kind, _ in BLOCKS} == {"python", "toml", "console", "diff"}
    assert PAGE.count("```") == 2 * len(BLOCKS)


def test_every_command_is_on_the_page() -> None:
    assert set(re.findall(r"`(?:ackline dlq )?([a-z]+)\b", PAGE)) >= set(dlq.commands)
