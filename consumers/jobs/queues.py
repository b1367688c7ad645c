"""The queues of jobs: `ackline.jobs`, and one `ackline.jobs.<name>` for each `@job(queue="<name>")`."""

from __future__ import annotations

from typing import Any

from celery.app.amqp import Queues
from kombu import Exchange, Queue

from ackline.infra.names import JOBS, MESSAGES, job_queue
from ackline.infra.topology import ConsumerQueue


def described(name: str | None) -> Queue:
    """The queue of that name as Celery sees it. Celery never declares it: the topology does."""
    queue = job_queue(name)
    exchange = Exchange(MESSAGES, "topic", no_declare=True)
    return Queue(queue, exchange, routing_key=queue, alias=name, no_declare=True)


def names(app: Any) -> list[str]:
    """The names that the jobs of *app* give to their queues. Evaluates all that is declared."""
    app.finalize()
    # Nobody needs a broker to be told which queues there are, and `conf` would ask for its address.
    known = app.conf.task_queues if app.configured else None
    adopted = {str(queue.alias) for queue in known or () if queue.name != JOBS}
    named: set[Any] = {getattr(task, "job_queue", None) or getattr(task, "queue", None) for task in app.tasks.values()}
    return sorted(adopted | (named - {None, JOBS}))


def jobs_of(app: Any) -> dict[str, Any]:
    """The jobs of *app* by name, without Celery's own. Evaluates all that is declared."""
    app.finalize()
    return {name: task for name, task in app.tasks.items() if not name.startswith("celery.")}


def topology(app: Any) -> list[ConsumerQueue]:
    """What the topology needs to know of the queues of *app*."""
    queues = [JOBS, *map(job_queue, names(app))]
    return [ConsumerQueue(queue, (queue,)) for queue in queues]


class JobQueues(Queues):  # type: ignore[misc]
    """The queues that there are; a job that is declared later brings its own. No other name is taken for one."""

    def __init__(self, app: Any) -> None:
        known = list(app.conf.task_queues or [described(None)])
        aliases = {queue.alias for queue in known}
        super().__init__(
            [*known, *(described(name) for name in names(app) if name not in aliases)], create_missing=False
        )
        self._app = app

    def __missing__(self, name: str) -> Queue:
        if name not in names(self._app):
            raise KeyError(name)
        return self.select_add(described(name))
