"""`adopt(app)`: an existing Celery app under the guarantees of jobs.

Its code stays: tasks, their names, `delay`, retries, schedules, result backend, and `celery -A shop worker`. What
changes is how a task is sent and taken, and where it ends: queues are Ackline's, under the names that the app has for
them, and what fails is in review with its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from celery import Celery, signals
from kombu import Connection, Queue

from ackline.consumers.celery_check.facts import on_rabbitmq
from ackline.consumers.jobs.app import SETTINGS, JobAMQP
from ackline.consumers.jobs.job import make_job
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

    Raises `ConfigurationError` when tasks have taken over their settings already, and when Ackline cannot use the
    address of its broker.
    """
    if app.finalized:
        raise ConfigurationError("adopt(app) comes too late, for the app is in use: call it right below its settings.")
    if app.set_as_current:
        app.set_current()  # the app of this package, which was imported on the way, is for those who have no other

    def configure(**_: Any) -> None:
        former, default = names(app), app.conf.task_default_queue
        options = {**(app.conf.broker_transport_options or {}), **ADOPTED["broker_transport_options"]}
        queues = [_renamed(None, default), *(_renamed(name, name) for name in former if name != default)]
        app.conf.update(ADOPTED | _addresses(app) | {"broker_transport_options": options, "task_queues": queues})
        app.amqp_cls = JobAMQP
        vars(app).pop("amqp", None)

    def receive(instance: Any, **_: Any) -> None:
        """Before a worker starts, when all tasks are known, those too that have a base class of their own."""
        if instance.app is app:
            for task in app.tasks.values():
                make_job(task)

    app.conf.finalize()
    configure()
    app.on_after_configure.connect(configure, weak=False)  # should it be configured anew
    signals.celeryd_after_setup.connect(receive, weak=False)
    return app


def names(app: Celery) -> list[str]:
    """The queues that *app* has by its settings, and those that its routes name."""
    declared = app.conf.task_queues or [app.conf.task_default_queue]
    return sorted({*map(_name, declared), *_routed(app.conf.task_routes)})


def _addresses(app: Celery) -> dict[str, str]:
    if not on_rabbitmq(app):
        return {}
    try:
        read, write = app.connection_for_read(), app.connection_for_write()
    except ValueError:  # which may quote a part of the password
        raise ConfigurationError(
            "The address of this app's broker cannot be read. If its password holds one of / ? # @ : and the like, "
            "percent-encode it."
        ) from None
    return {"broker_read_url": _address(app, read), "broker_write_url": _address(app, write)}


def _address(app: Celery, connection: Connection) -> str:
    """The address as every client understands it: with kombu's `pyamqp://host//` others see no vhost."""
    if len(connection.alt) > 1:
        raise ConfigurationError(
            "This app names several brokers, and Ackline connects to one address: name that of a load balancer before "
            "them, or a DNS name that they share."
        )
    if isinstance(app.conf.broker_use_ssl, Mapping):
        raise ConfigurationError(
            "This app gives certificates by `broker_use_ssl`. Ackline takes the system's, or those of the file that "
            "SSL_CERT_FILE names: set `broker_use_ssl = True`."
        )
    told = connection.info()  # with what is left out of an address
    scheme = "amqps" if told["ssl"] else "amqp"
    user, password, vhost = (quote(told[part], safe="") for part in ("userid", "password", "virtual_host"))
    return f"{scheme}://{user}:{password}@{told['hostname']}:{told['port']}/{vhost}"


def _renamed(name: str | None, alias: str) -> Queue:
    queue = described(name)
    queue.alias = alias
    return queue


def _routed(routes: Any) -> Iterator[str]:
    """The names of queues in `task_routes`; what a function would answer is not known."""
    for route in routes if isinstance(routes, (list, tuple)) else [routes]:
        pairs = route.items() if isinstance(route, Mapping) else route if isinstance(route, (list, tuple)) else ()
        for _, target in pairs:
            queue = target.get("queue") if isinstance(target, Mapping) else target
            if queue is not None:
                yield _name(queue)


def _name(queue: Queue | str) -> str:
    return str(queue.name if isinstance(queue, Queue) else queue)
