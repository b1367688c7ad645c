"""The code of the documentation, so that tests run what people read."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"


def write_files(page: str, section: str, folder: Path) -> None:
    """Write the Python files of a section into *folder*: each block that begins with a comment `# name.py`."""
    found = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", section_of(page, section), re.DOTALL)
    assert found, f"{page}, {section!r} has no files"
    for name, code in found:
        (folder / name).write_text(code)


def section_of(page: str, section: str) -> str:
    """The text of a section."""
    _, _, after = (DOCS / page).read_text().partition(f"\n## {section}\n")
    assert after, f"{page} has no section {section!r}"
    return after.partition("\n## ")[0]


def load(file: Path) -> Any:
    """The module in *file*. What it registers is for who asks for the fixture `own_registry`."""
    spec = importlib.util.spec_from_file_location(f"documented_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
