"""The worker of `ackline jobs`: Celery's prefork pool, in the manner of Ackline's roles."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

from celery import signals
from celery.apps.worker import Worker
from celery.exceptions import SecurityWarning, TaskRevokedError
from celery.platforms import EX_OK
from celery.worker import state

from ackline.consumers.jobs.app import app
from ackline.consumers.jobs.queues import jobs_of, topology
from ackline.infra.app import load_app
from ackline.infra.errors import ConfigurationError
from ackline.infra.link import BrokerUnreachable
from ackline.infra.logs import configure_logging
from ackline.infra.settings import Settings
from ackline.infra.topology import TopologyNotPermitted, declare

log = logging.getLogger(__name__)

#: Seconds between tries to apply the topology.
_RETRY_SECONDS = 2.0


def run(configured: Settings, queues: Sequence[str] | None, concurrency: int | None) -> None:
    """Run jobs until told to stop, and end the process.

    queues: the names of those to take from; None: all. concurrency: processes; as configured when None. Raises
    `ConfigurationError` for an application without jobs and a queue that none of them is in, and what is wrong with the
    broker or the topology.
    """
    configure_logging()
    load_app(configured.app)
    if not jobs_of(app):
        raise ConfigurationError(
            f"The application ({', '.join(configured.app)}) has no jobs: decorate a function with @job."
        )
    for name in queues or ():
        if name not in app.amqp.queues:
            raise ConfigurationError(f"No job of the application is in a queue {name!r}.")
    _apply_topology(configured)
    worker = JobWorker(
        app=app,
        hostname=f"jobs-{os.getpid()}@{socket.gethostname()}",
        queues=queues,
        concurrency=concurrency or configured.job_concurrency,
        loglevel=logging.WARNING,
        quiet=True,
    )
    worker.start()
    sys.exit(worker.exitcode)


def _apply_topology(configured: Settings) -> None:
    while True:
        try:
            declare(configured.broker, topology(app))
            return
        except BrokerUnreachable as error:
            log.warning("%s Trying again in %g s.", error, _RETRY_SECONDS)
        except TopologyNotPermitted as error:
            log.warning("%s Going on with what exists.", error)
            return
        time.sleep(_RETRY_SECONDS)


class JobWorker(Worker):  # type: ignore[misc]
    """Runs jobs until it is told to stop."""

    def on_before_init(self, **options: Any) -> None:
        """Without Celery's warning of root, whom pickle might harm: nothing is unpickled here."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecurityWarning)
            super().on_before_init(**options)

    def on_init_blueprint(self) -> None:
        """Log as every role does, in the processes of the pool too."""
        signals.setup_logging.connect(_log, weak=False)
        super().on_init_blueprint()

    def _process_task(self, req: Any) -> None:
        # Celery lets through what else it raises: to the event loop, which ends with it, from the end of another job.
        try:
            req.execute_using_pool(self.pool)
        except TaskRevokedError:
            self._quick_release()
        except Exception as error:
            log.exception("the job %s cannot be begun", req.id)
            req.cannot_begin(error)
            self._quick_release()

    def install_platform_tweaks(self, worker: Any) -> None:
        """SIGTERM, Ctrl-C: stop. A second one ends at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        state.should_stop = EX_OK


def _log(**_: Any) -> None:
    configure_logging()
