"""`ackline jobs`."""

from __future__ import annotations

import click


@click.command()
@click.option("--queues", help="Run the jobs of these queues only: their names, comma-separated. [all]")
@click.option("--concurrency", type=click.IntRange(1, 256), help="Processes that run jobs. [ACKLINE_JOB_CONCURRENCY]")
def jobs(queues: str | None, concurrency: int | None) -> None:
    """Run the jobs of the application (the modules of ACKLINE_APP).

    SIGTERM or Ctrl-C: takes no more jobs, finishes what runs within ACKLINE_GRACE_SECONDS, gives back the rest, and
    ends. A second one ends at once; nothing is lost by that.
    """
    from ackline.consumers.jobs.worker import run
    from ackline.infra.settings import settings

    run(settings(), None if queues is None else [name.strip() for name in queues.split(",")], concurrency)
