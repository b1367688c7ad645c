"""Results of jobs as a service of its own asks for them, in the process of the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ackline.consumers.jobs.app import Jobs, configuration
from ackline.infra.settings import Settings, settings

#: Where the jobs of `tests.result_app` look for files.
FOLDER = "ACKLINE_TEST_RESULTS"


@contextmanager
def asking(configured: Settings) -> Iterator[Any]:
    """A Celery app with the results of *configured*, as long as the block runs: `app.AsyncResult(id)`."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ACKLINE_DATABASE_URL", configured.database)
        environment.setenv("ACKLINE_AMQP_URL", configured.broker)
        settings.cache_clear()
        app = Jobs("asking", set_as_current=False)
        app.conf.update(configuration(configured))
        yield app
    settings.cache_clear()
