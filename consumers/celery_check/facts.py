"""What an app is, as far as its settings, tasks and queues tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import Celery
from kombu import Queue

from ackline.infra.names import RESERVED_PREFIX

#: Seconds after which RabbitMQ takes back what is not acked, unless broker or queue are configured otherwise.
CONSUMER_TIMEOUT = 1800.0


def own_tasks(app: Celery) -> list[Any]:
    """The app's tasks without Celery's own, by name."""
    return [task for name, task in sorted(app.tasks.items()) if not name.startswith("celery.")]


def by_default(app: Celery) -> Any:
    """A task that overrides nothing: it has what settings and `task_annotations` give to every task."""
    return app.tasks["celery.backend_cleanup"]


def transport(app: Celery) -> str:
    """The name of kombu's transport for its tasks, such as `amqp` or `redis`; kombu itself would import its client."""
    urls = app.conf.broker_write_url
    url = urls if isinstance(urls, str) else (urls or [""])[0]
    scheme, separator, _ = url.partition("://")
    return scheme.partition("+")[0] if separator else app.conf.broker_transport or "amqp"


def on_rabbitmq(app: Celery) -> bool:
    """Whether its broker is RabbitMQ."""
    return transport(app) in ("amqp", "amqps", "pyamqp", "librabbitmq")


def sent_by_celery(app: Celery) -> bool:
    """Whether Celery publishes its tasks itself; Ackline does it confirmed, mandatory, and within a deadline."""
    return not type(app.amqp).__module__.startswith("ackline.")


def taken_by_celery(app: Celery) -> bool:
    """Whether Celery's worker takes its tasks; Ackline's holds few of them, and keeps one that runs for long."""
    return not str(app.conf.worker_consumer).startswith("ackline.")


def queues(app: Celery) -> list[Queue]:
    """The queues that the app declares itself, without those of Ackline's topology."""
    return [queue for queue in app.amqp.queues.values() if not queue.name.startswith(RESERVED_PREFIX)]


def arguments(queue: Queue) -> Mapping[str, Any]:
    """The arguments with which the queue is declared."""
    shortcuts = {"x-expires": queue.expires, "x-message-ttl": queue.message_ttl, "x-max-length": queue.max_length}
    return {name: value for name, value in shortcuts.items() if value is not None} | (queue.queue_arguments or {})


def is_quorum(queue: Queue) -> bool:
    """Whether it is declared as a quorum queue."""
    return arguments(queue).get("x-queue-type") == "quorum"


def quorum_queues(app: Celery) -> list[Queue]:
    """Those of them that are quorum queues."""
    return [queue for queue in queues(app) if is_quorum(queue)]


def holds_delayed(app: Celery, queue: Queue) -> bool:
    """Whether a worker holds the delayed tasks of this queue (celery/app/base.py, `send_task`; worker/strategy.py).

    Celery delays on the broker if any queue is a quorum queue, and only through exchanges that are not direct.
    """
    return not quorum_queues(app) or queue.exchange.type == "direct"


def late_acks(app: Celery) -> bool:
    """Whether any of its tasks is acked when it has run."""
    return any(task.acks_late for task in own_tasks(app) or [by_default(app)])


def consumer_timeout(app: Celery) -> float:
    """Seconds after which RabbitMQ takes back what is not acked: the longest of its queues."""
    own = (arguments(queue).get("x-consumer-timeout") for queue in queues(app))
    return max((timeout / 1000 for timeout in own if timeout), default=CONSUMER_TIMEOUT)


def longest_limit(app: Celery) -> float | None:
    """The longest hard time limit of its tasks, in seconds; None if one has none."""
    limits = [task.time_limit for task in own_tasks(app) or [by_default(app)]]
    return None if None in limits else max(limits)
