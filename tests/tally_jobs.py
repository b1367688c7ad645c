"""An application with jobs for tests under fire (see `tests.job_tally`)."""

from __future__ import annotations

from ackline.consumers import fixed
from ackline.consumers.jobs import Job, job
from tests import job_tally

RETRY = fixed(attempts=job_tally.TRIES, delay="1s")


@job(name="tally", bind=True, retry=RETRY)
def tally(self: Job, number: int) -> None:
    job_tally.tally(self, echo, number)


@job(name="echo", bind=True, retry=RETRY)
def echo(self: Job, number: int) -> None:
    job_tally.note(self)
