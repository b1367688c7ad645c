"""docs/jobs.md and docs/workflows.md, run: each command of their blocks prints what stands below it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from ackline.consumers.handlers import daily_mail
from ackline.infra.settings import Settings
from tests.console import Step, shell, steps
from tests.documented import DOCS
from tests.doors import connected
from tests.roles import role

JOBS, WORKFLOWS = DOCS / "jobs.md", DOCS / "workflows.md"


def blocks(page: Path) -> list[tuple[str, str]]:
    """What blocks the page has: of which kind each is, and what it holds."""
    text = page.read_text()
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)
    assert text.count("```") == 2 * len(found), "a block of no kind"
    return found


def write_files(page: Path, folder: Path) -> list[str]:
    """Write the files of the page into *folder*. Returns its Python blocks that are no files."""
    snippets = []
    for kind, text in blocks(page):
        named = re.match(r"# (\w+\.py)\n", text)
        if kind == "python" and named is None:
            snippets.append(text)
        elif kind == "python" and named is not None:
            (folder / named[1]).write_text(text)
        elif kind == "toml":
            (folder / "ackline.toml").write_text(text)
        else:
            assert kind in ("console", "pycon", "sh"), f"a block of the kind {kind}"
    return snippets


def test_every_command_of_the_page_of_jobs_prints_what_the_page_says(
    ackline_settings: Settings, tmp_path: Path
) -> None:
    (folder := tmp_path / "studio").mkdir()
    (snippet,) = write_files(JOBS, folder)
    assert snippet in inspect.getsource(daily_mail)
    (folder / "a.mp4").write_text("video")  # a schedule of the page may want it before the page writes it
    (app,) = re.findall(r"^export ACKLINE_APP=(\S+)$", JOBS.read_text(), re.M)
    settings = ackline_settings.model_copy(update={"app": tuple(app.split(","))})
    with (
        role(settings, "reviewer", folder=str(folder)),
        role(settings, "relay", folder=str(folder)),
        role(settings, "jobs", folder=str(folder)),
        role(settings, "beat", folder=str(folder)),
        role(settings, "gateway", "--port", "0", folder=str(folder)) as gateway,
    ):
        address = connected(gateway)
        with shell(folder, settings, ACKLINE=address) as entered:
            for step in steps(JOBS):
                entered.enter(step)
        assert "Traceback" not in gateway.log.read_text()


def test_the_chain_the_group_and_the_chord_of_the_page_of_workflows(ackline_settings: Settings, tmp_path: Path) -> None:
    assert write_files(WORKFLOWS, tmp_path) == []
    (session,) = [text for kind, text in blocks(WORKFLOWS) if kind == "pycon"]
    (tmp_path / "session.txt").write_text(session)
    settings = ackline_settings.model_copy(update={"app": ("albums",)})
    with role(settings, "jobs", folder=str(tmp_path)), shell(tmp_path, settings) as entered:
        entered.enter(Step("python3 -m doctest session.txt", ""))
