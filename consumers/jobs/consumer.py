"""Celery's `Consumer`, whose deliveries come from Ackline: its own connection is for remote control and events."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Container
from typing import Any

from celery import bootsteps
from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.consumer.connection import Connection
from celery.worker.consumer.consumer import Evloop
from celery.worker.consumer.control import Control
from celery.worker.consumer.events import Events
from celery.worker.consumer.heart import Heart
from kombu.common import QoS, ignore_errors

from ackline.consumers.control import reader
from ackline.consumers.decision import InvalidBody
from ackline.consumers.handling import HANDLED
from ackline.consumers.jobs import ending
from ackline.consumers.jobs.claims import NOTED_SECONDS, Claims, Standing
from ackline.consumers.jobs.message import JobMessage
from ackline.consumers.jobs.queues import topology
from ackline.consumers.jobs.request import active
from ackline.consumers.jobs.taking import Taking
from ackline.consumers.runner import HELD_SECONDS, enough
from ackline.infra import wire
from ackline.infra.ready import ready
from ackline.infra.settings import settings
from ackline.infra.topology import declare

log = logging.getLogger(__name__)

#: Seconds between two looks at how long jobs take.
_ADAPT_SECONDS = 0.5
#: Seconds beyond the grace that settlements get.
_SETTLE_SECONDS = 5.0


class Deliveries(bootsteps.StartStopStep):  # type: ignore[misc]
    """Takes the deliveries. Stands where Celery has its `Tasks`; a lost control connection does not concern it."""

    # What runs a job is told only once, in `start`, by what it announces events; Celery orders steps by this alone.
    requires = (Events,)

    def __init__(self, c: JobConsumer, **_: Any) -> None:
        super().__init__(c)
        c.task_consumer = c.qos = None

    def start(self, c: JobConsumer) -> None:
        """Begin, at the first start."""
        c.update_strategies()
        c.task_consumer = _TaskConsumer(c.app)
        c.qos = QoS(lambda prefetch_count: None, 0)  # ours is `Taking.hold`
        c.begin()

    def register_with_event_loop(self, c: JobConsumer, hub: Any) -> None:
        """Have the hub look for deliveries."""
        hub.add_reader(c.taking.fileno(), c.receive_all)

    def shutdown(self, c: JobConsumer) -> None:
        """Settle what is over, and disconnect."""
        c.taking.close(_SETTLE_SECONDS)
        if c.claims is not None:
            c.claims.stop(_SETTLE_SECONDS)


class JobControl(Control):  # type: ignore[misc]
    """Remote control, once deliveries are taken."""

    requires = (Deliveries,)


class _TaskConsumer:
    """What the rest of Celery asks its consumer of tasks."""

    def __init__(self, app: Any) -> None:
        self.queues = list(app.amqp.queues.consume_from.values())
        self.on_message: Any = None

    def consume(self) -> None:
        """Deliveries begin by themselves."""


class JobConsumer(Consumer):  # type: ignore[misc]
    """Receives jobs, and sends what is none, or is not to be run now, where it belongs."""

    class Blueprint(bootsteps.Blueprint):  # type: ignore[misc]
        """Without those of Celery's steps that talk to other workers, or hold jobs back."""

        name = "Consumer"
        default_steps = [Connection, Events, Heart, Deliveries, JobControl, Evloop]  # noqa: RUF012

        def shutdown(self, parent: Any) -> None:
            """See `Consumer`."""
            self.send_all(parent, "shutdown")

    taking: Taking
    claims: Claims | None
    connection: Any

    def begin(self) -> None:
        """Take deliveries, if that has not begun."""
        if hasattr(self, "taking"):
            return
        configured = settings()
        url = self.app.conf.broker_read_url
        queues = list(self.app.amqp.queues.consume_from)
        self._most = configured.prefetch
        self._prefetch = self.pool.num_processes * 2
        self.claims = Claims(configured.database, self._long) if configured.has_database else None
        if self.claims is not None:
            self.claims.start()
        self.taking = Taking(
            url,
            queues,
            prefetch=self._prefetch,
            consumer_timeout=configured.job_consumer_timeout,
            claims=self.claims,
            read_pauses=reader(configured),
            declare=lambda: declare(url, topology(self.app)),
            ready=lambda: self._consuming(queues),
        )
        self.taking.start()
        self.hub.call_repeatedly(_ADAPT_SECONDS, self._adapt)

    def _consuming(self, queues: list[str]) -> None:
        log.info("consuming %s", ", ".join(queues))
        ready()

    # --- deliveries ------------------------------------------------------------------------------------

    def create_task_handler(self, *_: Any, **__: Any) -> Callable[..., None]:
        """What Celery would have handle each message of its own connection, which gets none."""
        return lambda message: None

    def receive_all(self, *_: Any) -> None:
        """Receive what has been delivered."""
        for message in self.taking.take():
            try:
                self._receive(message)
            except InvalidBody as error:
                message.settle(message, ending.dead(message, error, error.reason))
            except Exception as error:
                log.exception("a job cannot be received")
                message.settle(message, ending.dead(message, error, f"it cannot be received: {error!r}"))
        if self.taking.paused:
            self._give_back(self.taking.paused)

    def _receive(self, message: JobMessage) -> None:
        message.check()
        name = message.headers["task"]
        strategy = self.strategies.get(name)
        if strategy is None:
            raise InvalidBody(
                f"no job is named {name!r} in this application ({', '.join(settings().app)}): deploy it, or correct "
                "the name, and send this again"
            )
        if message.came_before and self._is_known(message):
            return
        expires = message.time("expires", self.app.timezone)
        if expires is not None and expires < wire.now():
            raise InvalidBody(f"it expired at {expires.isoformat()}, before it could run")
        due = message.time("eta", self.app.timezone)
        left = 0.0 if due is None else (due - wire.now()).total_seconds()
        if left > 0:
            message.settle(message, ending.parked(message, left))
            return
        message.headers["eta"] = None
        strategy(message, None, _never, _never, self.on_task_message)

    def _limit_task(self, request: Any, bucket: Any, tokens: int) -> Any:
        """Have it wait for its turn; known meanwhile, so that what comes once more is not run for that."""
        state.requests[request.id] = request
        return super()._limit_task(request, bucket, tokens)

    def _is_known(self, message: JobMessage) -> bool:
        """Whether a job that comes once more is not to be run for that; it is then seen to."""
        running = state.requests.get(message.task_id)
        if running is not None and running.adopt(message):
            return True
        settlement = self.taking.kept(message)
        if settlement is None and self.claims is not None:
            standing = self.claims.standing(message)
            if standing is Standing.RUNS:
                settlement = ending.awaiting_another(message)
            elif standing is Standing.OVER:
                settlement = HANDLED
        if settlement is not None:
            message.settle(message, settlement)
        return settlement is not None

    def _long(self) -> list[JobMessage]:
        """What has run for long enough to be claimed."""
        latest = time.time() - NOTED_SECONDS
        return [request.message for request in active() if request.time_start and request.time_start < latest]

    # --- how much is held ------------------------------------------------------------------------------

    def _adapt(self) -> None:
        """Hold what keeps the processes busy for a second, and leave the rest to other workers."""
        latest = time.time() - HELD_SECONDS
        long = sum((request.time_start or latest) < latest for request in active())
        seconds = self.taking.seconds
        if seconds is None and not long:
            return
        concurrency = self.pool.num_processes
        wanted = min(enough(seconds or HELD_SECONDS, concurrency=concurrency, long=long), self._most)
        if wanted >= self._prefetch * 2 or wanted * 2 <= self._prefetch:
            self._prefetch = wanted
            self.taking.hold(wanted)

    # --- the end, and what is not the end --------------------------------------------------------------

    def _give_back(self, queues: Container[str]) -> None:
        """Return to these queues what waits: for a process, and for its turn under a `rate_limit`."""
        waiting = self.controller.semaphore._waiting
        withdrawn = _taken_out(waiting, queues, lambda entry: entry[1][0])
        for bucket in filter(None, self.task_buckets.values()):
            withdrawn += _taken_out(bucket.contents, queues, lambda entry: entry[0])
        for request in withdrawn:
            request.give_back()
            state.task_ready(request)

    def close(self) -> None:
        """Take nothing more, and give back what has not begun; what runs has the grace to end.

        The worker calls it first of all when it stops: its pool then forgets what waits.
        """
        self.taking.stop()
        self._give_back(self.taking.subscriptions)
        overdue = threading.Timer(settings().grace_seconds, self._end)
        overdue.daemon = True
        overdue.start()

    def _end(self) -> None:
        """Give back what still runs, and kill it."""
        running = active()
        if running:
            log.warning(
                "%d jobs did not end in %g s; they go back to their queues", len(running), settings().grace_seconds
            )
        for request in running:
            request.give_back()
            self.pool.terminate_job(request.worker_pid, signal.SIGKILL)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """The connection for control and events is lost: what runs is not concerned."""
        log.warning("the connection for remote control is lost; connecting again: %s", exc)
        connection, self.connection = self.connection, None
        if connection:
            ignore_errors(connection, connection.close)

    def on_close(self) -> None:
        """Nothing of what was delivered belongs to that connection."""


def _taken_out(line: deque[Any], queues: Container[str], request_of: Callable[[Any], Any]) -> list[Any]:
    """The requests of these queues, out of a *line* in which others stay in their order."""
    entries = list(line)
    line.clear()
    line.extend(entry for entry in entries if request_of(entry).message.queue not in queues)
    return [request_of(entry) for entry in entries if request_of(entry).message.queue in queues]


def _never(*_: Any) -> None:
    """A `JobRequest` answers by its message, and not by what Celery hands it for that."""
