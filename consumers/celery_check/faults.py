"""Faults that take more than a look at one value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from celery import Celery
from celery.schedules import crontab
from kombu import Queue
from kombu.serialization import registry

from ackline.consumers.celery_check.facts import (
    arguments,
    by_default,
    consumer_timeout,
    is_quorum,
    longest_limit,
    on_rabbitmq,
    own_tasks,
    transport,
)
from ackline.consumers.celery_check.looking import Fault, assignment, is_off, task_setting

_RABBITMQ = 'app.conf.broker_url = "amqp://user:password@host/vhost"'

#: Seconds that kombu gives a task over these transports (redis.py, SQS/__init__.py: `visibility_timeout`).
_VISIBILITY = {"redis": 3600, "rediss": 3600, "sentinel": 3600, "sqs": 1800, "SQS": 1800}

#: Schedulers that let one beat send at a time.
_ONE_AT_A_TIME = ("redbeat.", "ackline.")


def other_broker(app: Celery) -> Iterator[Fault]:
    """The broker is not RabbitMQ."""
    if not on_rabbitmq(app):
        yield Fault("broker_url", app.conf.broker_write_url or f"{transport(app)}://", _RABBITMQ)


def visibility(app: Celery) -> Iterator[Fault]:
    """The broker is one over which kombu hands out a task again after some time."""
    default = _VISIBILITY.get(transport(app))
    if default is not None:
        seconds = (app.conf.broker_transport_options or {}).get("visibility_timeout", default)
        fix = f"{_RABBITMQ}  # which has no such timeout"
        yield Fault('broker_transport_options["visibility_timeout"]', seconds, fix)


def unconfirmed(app: Celery) -> Iterator[Fault]:
    """Publisher confirms are off."""
    options = app.conf.broker_transport_options or {}
    if not options.get("confirm_publish"):
        # By name, for there may be passwords among them.
        kept = "**app.conf.broker_transport_options, " if options else ""
        fix = f"app.conf.broker_transport_options = {{{kept}'confirm_publish': True}}"
        yield Fault('broker_transport_options["confirm_publish"]', options.get("confirm_publish"), fix)


def unbounded_publish(app: Celery) -> Iterator[Fault]:
    """A publish is tried again for ever."""
    policy = app.conf.task_publish_retry_policy or {}
    # kombu/connection.py, `ensure`: None is for ever, and so is a policy that does not say
    if app.conf.task_publish_retry and policy.get("max_retries") is None:
        fix = assignment("task_publish_retry_policy", {**policy, "max_retries": 3})
        yield Fault('task_publish_retry_policy["max_retries"]', None, fix)


def unroutable(app: Celery) -> Iterator[Fault]:
    """Tasks are not published as mandatory. There is no setting for that, but each task may have it as an attribute."""
    given = app.conf.task_annotations
    by_name = given if isinstance(given, Mapping) else {}
    everywhere = {**by_name, "*": {**by_name.get("*", {}), "mandatory": True}}
    for fault in task_setting('task_annotations["*"]["mandatory"]', "mandatory", is_off, True)(app):
        yield replace(fault, fix=assignment("task_annotations", everywhere))


def drops_oldest(app: Celery, queue: Queue) -> bool:
    """Whether the queue is bounded, and makes room by dropping."""
    limits = arguments(queue)
    bounded = "x-max-length" in limits or "x-max-length-bytes" in limits
    return bounded and limits.get("x-overflow", "drop-head") == "drop-head"


def at_most_once(app: Celery, queue: Queue) -> bool:
    """Whether it is a quorum queue that dead-letters at most once, as `drop-head` makes it do as well."""
    found = arguments(queue)
    safe = found.get("x-dead-letter-strategy") == "at-least-once" and found.get("x-overflow") == "reject-publish"
    return is_quorum(queue) and "x-dead-letter-exchange" in found and not safe


def unlimited_deliveries(app: Celery, queue: Queue) -> bool:
    """Whether it is a quorum queue whose limit is none, or the broker's default."""
    limit = arguments(queue).get("x-delivery-limit")
    return is_quorum(queue) and (limit is None or limit < 0)


def untold(app: Celery) -> Iterator[Fault]:
    """A failed task is acked, and its failure is not stored either."""

    def at_fault(task: Any) -> bool:
        return bool(task.ignore_result and not task.store_errors_even_if_ignored and task.acks_on_failure)

    if at_fault(by_default(app)):
        yield Fault("task_ignore_result", True, assignment("task_store_errors_even_if_ignored", True))
        return
    for task in filter(at_fault, own_tasks(app)):
        yield Fault("ignore_result", True, "@app.task(store_errors_even_if_ignored=True)", f"task {task.name}")


def undecodable(app: Celery) -> Iterator[Fault]:
    """The worker's consumer is Celery's own."""
    if app.conf.worker_consumer == "celery.worker.consumer:Consumer":
        yield Fault("worker_consumer", app.conf.worker_consumer, "adopt(app)  # from ackline.consumers.jobs")


def not_accepted(app: Celery) -> Iterator[Fault]:
    """What the app sends is not among what its workers accept."""
    if app.conf.accept_content is None:
        return iter(())  # all that kombu holds for safe
    accepted = set(map(content_type, app.conf.accept_content))
    return task_setting("task_serializer", "serializer", lambda name: content_type(name) not in accepted, "json")(app)


def content_type(serializer: str) -> str:
    """The content type of what *serializer* writes; its own name if kombu does not know it."""
    return str(registry.name_to_type.get(serializer, serializer))


def is_pickle(serializer: str | None) -> bool:
    """Whether that serializer, or content type, is pickle."""
    return serializer is not None and content_type(serializer) == "application/x-python-serialize"


def holds_pickle(accepted: Any) -> bool:
    """Whether pickle is among the accepted ones."""
    return any(map(is_pickle, accepted or ()))


def unlimited_prefetch(app: Celery) -> Iterator[Fault]:
    """The last task that a process has prefetched may wait and run for longer than the consumer timeout."""
    multiplier, limit = app.conf.worker_prefetch_multiplier, longest_limit(app)
    in_time = limit is not None and multiplier * limit < consumer_timeout(app)
    if multiplier == 0 or (multiplier > 1 and not in_time):
        yield Fault("worker_prefetch_multiplier", multiplier, assignment("worker_prefetch_multiplier", 1))


def too_long(app: Celery) -> Iterator[Fault]:
    """A task's time limit is not below the consumer timeout."""
    timeout, queue = consumer_timeout(app), app.conf.task_default_queue
    for fault in task_setting("task_time_limit", "time_limit", lambda limit: (limit or 0) >= timeout, None)(app):
        argument = f'{{"x-consumer-timeout": {int(fault.value * 2000)}}}'
        yield replace(fault, fix=f"Queue({queue!r}, ..., queue_arguments={argument})")


def refused_queues(app: Celery) -> Iterator[Fault]:
    """The worker's own queues are neither durable nor exclusive."""
    for kind in ("control", "event"):
        if not (app.conf[f"{kind}_queue_exclusive"] or app.conf[f"{kind}_queue_durable"]):
            yield Fault(f"{kind}_queue_exclusive", False, assignment(f"{kind}_queue_exclusive", True))


def is_rpc(backend: Any) -> bool:
    """Whether results are messages to the process that called."""
    return isinstance(backend, str) and backend.partition(":")[0] == "rpc"


def beat(app: Celery) -> Iterator[Fault]:
    """There is a schedule, and its scheduler does not look whether there is another one."""
    scheduler = app.conf.beat_scheduler
    name = scheduler if isinstance(scheduler, str) else f"{scheduler.__module__}:{scheduler.__qualname__}"
    kept_elsewhere = not name.startswith("celery.beat")  # the schedule of such a scheduler is in a database
    if (app.conf.beat_schedule or kept_elsewhere) and not name.startswith(_ONE_AT_A_TIME):
        fix = "celery beat  # in one place, stopped before it is started anew; of several `ackline beat` one is active"
        yield Fault("beat_scheduler", name, fix)


def zone(app: Celery) -> Iterator[Fault]:
    """Times of day are meant, and nobody says where."""
    schedules = [
        entry.get("schedule") if isinstance(entry, Mapping) else entry.schedule
        for entry in (app.conf.beat_schedule or {}).values()
    ]
    by_clock = any(isinstance(schedule, crontab) for schedule in schedules)
    if not app.conf.timezone and (by_clock or not app.conf.enable_utc):
        yield Fault("timezone", app.conf.timezone, 'app.conf.timezone = "Europe/Berlin"  # where 08:00 is meant')
