"""The application of `tests.tally_jobs` in plain Celery, with its defaults, for `celery -A tests.plain_jobs worker`.

It says when it is ready, as Ackline's roles do.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import worker_ready

from ackline.infra.ready import ready
from tests import job_tally

app: Any = Celery("plain", broker=os.environ["ACKLINE_AMQP_URL"])
_RETRY = {"autoretry_for": (Exception,), "default_retry_delay": 1, "max_retries": job_tally.TRIES - 1}


def tally(self: Any, number: int) -> None:
    job_tally.tally(self, echo_task, number)


def echo(self: Any, number: int) -> None:
    job_tally.note(self)


tally_task = app.task(tally, name="tally", bind=True, **_RETRY)
echo_task = app.task(echo, name="echo", bind=True, **_RETRY)


@worker_ready.connect  # type: ignore[untyped-decorator]
def _ready(**_: Any) -> None:
    ready()
