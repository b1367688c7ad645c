"""An application with jobs for chains, groups and chords; see `tests.job_app` for what they note."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from celery import chord, group
from celery.signals import before_task_publish

from ackline.consumers.jobs import Job, app, job
from tests.job_app import is_mended, note


@job(name="give")
def give(value: int) -> int:
    note(f"give {value}")
    return value


@job(name="sum")
def add_up(values: list[int]) -> int:
    return sum(values)


@job(name="collect-deadly")
def collect_deadly(values: Any) -> Any:
    """Whoever publishes it dies, until it is mended."""
    note(f"collect {json.dumps(values)}")
    return values


def _die(**_: Any) -> None:
    if not is_mended():
        os.kill(os.getpid(), signal.SIGKILL)


before_task_publish.connect(_die, sender="collect-deadly")


@job(name="plus")
def plus(value: int, more: int) -> int:
    note(f"plus {value} {more}")
    return value + more


@job(name="collect")
def collect(values: Any) -> Any:
    note(f"collect {json.dumps(values)}")
    return values


@job(name="fragile")
def fragile(value: int) -> int:
    """Raises, until it is mended."""
    note(f"fragile {value}")
    if not is_mended():
        raise ValueError(f"no {value}")
    return value


@job(name="deadly")
def deadly(value: int) -> int:
    """Its process dies, until it is mended."""
    note(f"deadly {value}")
    if not is_mended():
        os.kill(os.getpid(), signal.SIGKILL)
    return value


@job(name="failed", bind=True)
def failed(self: Job, task_id: str) -> None:
    note(f"failed {task_id} {self.request.id}")


@job(name="failed-here")
def failed_here(request: Any, error: BaseException, traceback: object) -> None:
    """An error callback that runs where it failed."""
    note(f"failed-here {type(error).__name__}")


@job(name="growing", bind=True)
def growing(self: Job, value: int) -> int:
    """A part that adds one more to its chord."""
    note(f"growing {value}")
    self.add_to_chord(give.s(value + 1))
    return value


@job(name="becoming", bind=True)
def becoming(self: Job, value: int) -> Any:
    """A part that becomes a chord of its own."""
    note(f"becoming {value}")
    raise self.replace(chord([give.s(value), give.s(value + 1)], collect.s()))


@job(name="spread")
def spread(values: list[int]) -> str:
    """A chord that is published by a job."""
    note(f"spread {json.dumps(values)}")
    return str(chord(group(give.s(value) for value in values), collect.s(), app=app).apply_async().id)
