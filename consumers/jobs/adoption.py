"""`adopt(app)`: an existing Celery app under the guarantees of jobs.

Its code stays: tasks, their names, `delay`, retries, schedules, result backend, and `celery -A shop worker`. What
changes is how a task is sent and taken, and where it ends: queues are Ackline's, under the names that the app has for
them, and what fails is in review with its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from celery import Celery, signals
from kombu import Queue

from ackline.consumers.jobs.app import SETTINGS, JobAMQP
from ackline.consumers.jobs.job import Job
from ackline.consumers.jobs.queues import described
from ackline.infra.errors import ConfigurationError

#: What an app keeps as it has it: how times are meant, its log, and the names that other tools know.
_ITS_OWN = {
    "timezone",
    "enable_utc",
    "worker_hijack_root_logger",
    "worker_redirect_stdouts",
    "control_exchange",
    "event_exchange",
    "event_queue_prefix",
}

#: The settings that `adopt` sets.
ADOPTED = {name: value for name, value in SETTINGS.items() if name not in _ITS_OWN}


def adopt(app: Celery) -> Celery:
    """Give *app* the guarantees of jobs, and return it. Call it once, below its configuration; tasks may follow.

    Its tasks are published with confirms and a deadline, wait for a countdown or ETA in the broker, are acked when they
    succeeded, and go to review when they fail, or cannot be decoded, or are unknown. Its default queue is now
    `ackline.jobs`, and any other `video` is `ackline.jobs.video`; in the app, and for `celery worker -Q`, they keep
    their names. What waits in the former queues stays there: "Coming from plain Celery" in docs/celery.md.

    Raises `ConfigurationError` when tasks have taken over their settings already.
    """
    if app.finalized:
        raise ConfigurationError("adopt(app) comes too late, for the app is in use: call it right below its settings.")
    if app.set_as_current:
        app.set_current()  # the app of this package, which was imported on the way, is for those who have no other

    def configure(**_: Any) -> None:
        former, default = names(app), app.conf.task_default_queue
        options = {**(app.conf.broker_transport_options or {}), **ADOPTED["broker_transport_options"]}
        queues = [_renamed(None, default), *(_renamed(name, name) for name in former if name != default)]
        app.conf.update(ADOPTED | {"broker_transport_options": options, "task_queues": queues})
        app.amqp_cls = JobAMQP
        vars(app).pop("amqp", None)

    def receive(instance: Any, **_: Any) -> None:
        """Before a worker starts, when all tasks are known, those too that have a base class of their own."""
        if instance.app is app:
            for task in app.tasks.values():
                task.Request = Job.Request

    if app.configured:
        configure()
    else:
        app.on_after_configure.connect(configure, weak=False)
    signals.celeryd_after_setup.connect(receive, weak=False)
    return app


def names(app: Celery) -> list[str]:
    """The queues that *app* has by its settings, and those that its routes name."""
    return sorted({*app.amqp.queues, *_routed(app.conf.task_routes)})


def _renamed(name: str | None, alias: str) -> Queue:
    queue = described(name)
    queue.alias = alias
    return queue


def _routed(routes: Any) -> Iterable[str]:
    """The names of queues in `task_routes`; what a function would answer is not known."""
    for route in routes if isinstance(routes, (list, tuple)) else [routes]:
        pairs = route.items() if isinstance(route, Mapping) else route if isinstance(route, (list, tuple)) else ()
        for _, target in pairs:
            queue = target.get("queue") if isinstance(target, Mapping) else target
            if isinstance(queue, (str, Queue)):
                yield str(getattr(queue, "name", queue))
