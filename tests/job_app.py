"""An application with jobs, for tests: what they do is noted in the file that `ACKLINE_TEST_NOTES` names."""

from __future__ import annotations

import os
from pathlib import Path

from ackline.consumers.jobs import job


def note(line: str) -> None:
    """One line in the file, whole whoever else writes."""
    with Path(os.environ["ACKLINE_TEST_NOTES"]).open("a") as notes:
        notes.write(line + "\n")


@job(name="add")
def add(a: int, b: int) -> int:
    note(f"add {a} {b}")
    return a + b


@job(name="fail")
def fail(text: str) -> None:
    note(f"fail {text}")
    raise ValueError(text)
