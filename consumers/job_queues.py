"""The queues of the application's jobs, for the topology. Brings Celery only where the application does."""

from __future__ import annotations

import sys

from ackline.infra.app import load_app
from ackline.infra.settings import Settings
from ackline.infra.topology import ConsumerQueue


def queues(settings: Settings) -> list[ConsumerQueue]:
    """What the topology needs to know of the queues of jobs; none where the application has no jobs."""
    if not has_jobs(settings):
        return []
    from ackline.consumers.jobs.app import app
    from ackline.consumers.jobs.queues import topology

    return topology(app)


def has_jobs(settings: Settings) -> bool:
    """Whether the application has any."""
    load_app(settings.app)
    if "ackline.consumers.jobs.app" not in sys.modules:
        return False
    from ackline.consumers.jobs import queues
    from ackline.consumers.jobs.app import app

    return bool(queues.jobs_of(app))
