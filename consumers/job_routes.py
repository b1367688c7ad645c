"""The gateway's routes of jobs. Brings Celery only where the application does."""

from __future__ import annotations

from fastapi import APIRouter

from ackline.consumers.job_queues import has_jobs
from ackline.infra.settings import Settings


def router(settings: Settings) -> APIRouter | None:
    """The routes; None where the application has no jobs."""
    if not has_jobs(settings):
        return None
    from ackline.consumers.jobs.routes import router

    return router
