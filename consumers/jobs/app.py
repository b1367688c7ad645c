"""The Celery app: settings that neither lose nor double a job, and Ackline's way of publishing and running them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP
from celery.app.backends import by_url
from kombu.utils.objects import cached_property

from ackline.consumers.jobs.chords import with_chords
from ackline.consumers.jobs.job import Job, make_job
from ackline.consumers.jobs.publishing import NOWHERE, Sender
from ackline.consumers.jobs.queues import JobQueues
from ackline.infra import wire
from ackline.infra.names import JOBS
from ackline.infra.settings import Settings, settings

#: What Celery must be told so that nothing is acked away, and nothing runs that nobody asked for. Why each one is
#: needed was tried out on RabbitMQ 4.3 and 3.10.
SETTINGS: dict[str, Any] = {
    # A job is acked when it is over, and then only if it succeeded: a failure is a dead letter.
    "task_acks_late": True,
    "task_acks_on_failure": False,
    "task_acks_on_timeout": False,
    # One death of its process ends a job; with it RabbitMQ would deliver it over and over, and no hook would hear of
    # it.
    "task_reject_on_worker_lost": False,
    # A lost connection loses no job that runs: see `taking`.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_enable_prefetch_count_reduction": False,
    # Nothing that comes from the broker is ever unpickled.
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "result_accept_content": ["json"],
    "task_protocol": 2,
    "enable_utc": True,
    "timezone": "UTC",
    # A queue comes of a job that names it, and never of a mistyped name.
    "task_default_queue": JOBS,
    "task_create_missing_queues": False,
    "task_default_delivery_mode": 2,
    "task_publish_retry": False,  # the publisher does, within its deadline
    "broker_transport_options": {"confirm_publish": True},
    "broker_connection_retry_on_startup": True,
    # Names that say in the management UI what they are for; exclusive, for RabbitMQ drops the others.
    "control_exchange": "ackline.jobs.control",
    "control_queue_exclusive": True,
    "event_exchange": "ackline.jobs.events",
    "event_queue_prefix": "ackline.jobs.events",
    "event_queue_exclusive": True,
    "worker_consumer": "ackline.consumers.jobs.consumer:JobConsumer",
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
}


class JobAMQP(AMQP):  # type: ignore[misc]
    """Celery's place for queues and messages: those are Ackline's."""

    @cached_property  # type: ignore[untyped-decorator]
    def queues(self) -> JobQueues:
        """The queues of jobs."""
        return JobQueues(self.app)

    @cached_property  # type: ignore[untyped-decorator]
    def send_task_message(self) -> Sender:
        """What `apply_async`, a retry, a chain and a chord publish with."""
        return Sender(self.app)

    def as_task_v2(
        self, task_id: str, name: str, args: Any = None, kwargs: Any = None, *more: Any, **options: Any
    ) -> Any:
        """Celery's, where describing the arguments takes no tenth of the time of a publish."""
        for key, told, most in (
            ("argsrepr", args or (), self.argsrepr_maxsize),
            ("kwargsrepr", kwargs or {}, self.kwargsrepr_maxsize),
        ):
            if options.get(key) is None:
                options[key] = wire.cut(repr(told), most)
        return super().as_task_v2(task_id, name, args, kwargs, *more, **options)


class Jobs(Celery):  # type: ignore[misc]
    """A Celery app whose tasks are jobs: coroutine functions run too, and `retry=` takes a policy."""

    task_cls = Job
    amqp_cls = JobAMQP

    def _get_backend(self) -> Any:
        # What `backend` makes, once for each thread.
        backend, url = by_url(self.backend_cls or self.conf.result_backend, self.loader)
        return with_chords(backend)(app=self, url=url)

    def _task_from_fun(
        self,
        fun: Callable[..., Any],
        name: str | None = None,
        base: type | None = None,
        bind: bool = False,
        **more: Any,
    ) -> Any:
        # What `task` and `shared_task` come down to.
        if inspect.iscoroutinefunction(fun):
            fun = _synchronous(fun)
        if "retry" in more:
            more["retry_policy"] = more.pop("retry")
        if "queue" in more:  # Celery has done away with that attribute
            more["job_queue"] = more.pop("queue")
        task = super()._task_from_fun(fun, name=name, base=base, bind=bind, **more)
        make_job(task)
        return task

    def register_task(self, task: Any, **options: Any) -> Any:
        """Celery's, for a task that is an instance of a class."""
        task = super().register_task(task, **options)
        make_job(task)
        return task


@cache  # declared for several apps, it is one function
def _synchronous(function: Callable[..., Any]) -> Callable[..., Any]:
    """*function*, a coroutine function, as one that runs it on a loop of its own."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(function(*args, **kwargs))

    return run


def route(
    name: str, args: Any, kwargs: Any, options: Mapping[str, Any], task: Any = None, **_: Any
) -> dict[str, Any] | None:
    """To the queue that the job names, for Celery's router."""
    queue = getattr(task, "job_queue", None)
    return None if queue is None else {"queue": queue}


def configuration(configured: Settings) -> dict[str, Any]:
    """The settings of a `Jobs` app."""
    return SETTINGS | {
        "broker_url": configured.amqp_url or NOWHERE,
        "result_backend": configured.results_url or "ackline.consumers.jobs.results:Results",
        "result_expires": configured.results_keep_hours * 3600,
        # Ours tells as much, and is told in other ways who runs what (`results`).
        "result_extended": configured.results_url is not None,
        "task_track_started": configured.results_url is not None,
        "task_routes": (route,),
    }


app = Jobs("ackline")
app.steps["consumer"].add("ackline.consumers.jobs.results:Keeping")
app.add_defaults(lambda: configuration(settings()))
