"""What jobs do that are run under fire, by Ackline and by plain Celery alike: each run that ends is noted by its id."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests import notes

NOTES = "ACKLINE_TEST_TALLY"
#: Of so many jobs one fails at first; and one publishes another, from the process that runs it.
FAILING, ECHOING = 25, 10
#: Seconds that a job takes; and tries that it may have, with a second between two.
WORK, TRIES = 0.02, 5


def tally(task: Any, echo: Any, number: int) -> None:
    """The work of the job `tally-<number>`."""
    time.sleep(WORK)
    if number % FAILING == 0 and task.request.retries == 0:
        raise RuntimeError("told to fail at first")
    if number % ECHOING == 0:
        echo.apply_async((number,), task_id=f"echo-{number}")
    note(task)


def note(task: Any) -> None:
    """The job that runs ends well."""
    notes.add(Path(os.environ[NOTES]), task.request.id)


def tallied(file: Path) -> Counter[str]:
    """How often each job has ended well."""
    return Counter(notes.read(file))


def expected(jobs: int, ended: Counter[str]) -> set[str]:
    """The ids of so many jobs, and of those that the *ended* ones among them have published."""
    numbers = range(jobs)
    echoes = {f"echo-{number}" for number in numbers[::ECHOING] if f"tally-{number}" in ended}
    return echoes | {f"tally-{number}" for number in numbers}
