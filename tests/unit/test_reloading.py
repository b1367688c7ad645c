"""Which changes of an application's sources are seen."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ackline.consumers.reloading import Sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An application's folder, with a source."""
    found = tmp_path / "shop"
    (found / "handlers").mkdir(parents=True)
    (found / "handlers" / "billing.py").touch()
    return found


def test_nothing_has_changed_at_first(folder: Path) -> None:
    assert Sources((), folder).changed() is None


def test_a_source_that_is_written_is_seen_once(folder: Path) -> None:
    sources = Sources((), folder)
    billing = folder / "handlers" / "billing.py"
    os.utime(billing, (1, 1))
    assert sources.changed() == billing
    assert sources.changed() is None


def test_a_source_that_comes_or_goes_is_seen(folder: Path) -> None:
    sources = Sources((), folder)
    (folder / "new.py").touch()
    assert sources.changed() == folder / "new.py"
    (folder / "new.py").unlink()
    assert sources.changed() == folder / "new.py"


@pytest.mark.parametrize(
    "place", [".git/hook.py", "__pycache__/x.py", "env/lib/x.py", "node_modules/x.py", "notes.txt"]
)
def test_what_is_no_source_of_the_application_is_not_looked_at(folder: Path, place: str) -> None:
    file = folder / place
    file.parent.mkdir(exist_ok=True, parents=True)
    (folder / "env").mkdir(exist_ok=True)
    (folder / "env" / "pyvenv.cfg").touch()
    sources = Sources((), folder)
    file.touch()
    assert sources.changed() is None


def test_a_package_of_the_application_elsewhere_is_seen_and_not_imported(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "elsewhere" / "reloaded_app"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(package.parent)
    sources = Sources(["reloaded_app.handlers"], folder)
    (package / "handlers.py").touch()
    assert sources.changed() == package / "handlers.py"
    assert "reloaded_app" not in sys.modules
