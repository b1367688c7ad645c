"""Time limits, the signal to stop, and progress: handlers in a worker against a real broker."""

from __future__ import annotations

import asyncio
import itertools
import threading

import pytest
from pydantic import BaseModel

from ackline.consumers import Batch, Context, fixed
from ackline.consumers.worker import Worker
from ackline.infra import wire
from ackline.infra.errors import ConfigurationError
from ackline.infra.names import DEAD
from ackline.producer import Publisher, message
from tests.amqp import Client
from tests.broker import Vhost
from tests.waiting import DEADLINE, until
from tests.working import consumer_of, working

#: A limit that is soon over, and long enough for a busy machine to come to the beginning of a handler.
SHORT = 3.0


@message("test.limits.task")
class Task(BaseModel):
    number: int = 0


def _spin() -> None:
    while True:
        pass


def _publish(vhost: Vhost, count: int = 1) -> None:
    with Publisher(vhost.amqp_url) as publisher:
        for number in range(count):
            publisher.publish(Task(number=number))


def test_a_thread_that_takes_too_long_is_interrupted_and_its_message_retried(vhost: Vhost) -> None:
    tries: list[int] = []

    def handler(task: Task, context: Context) -> None:
        tries.append(context.attempt)
        if context.attempt == 1:
            _spin()

    with working(vhost.amqp_url, consumer_of("limited", handler, Task, time_limit=SHORT)):
        _publish(vhost)
        until(lambda: tries == [1, 2], what="the second try")


def test_a_coroutine_that_takes_too_long_is_cancelled_and_its_message_retried(vhost: Vhost) -> None:
    tries: list[int] = []
    cancelled = threading.Event()

    async def handler(task: Task, context: Context) -> None:
        tries.append(context.attempt)
        if context.attempt == 1:
            try:
                await asyncio.sleep(10 * DEADLINE)
            except asyncio.CancelledError:
                cancelled.set()
                raise

    with working(vhost.amqp_url, consumer_of("limited", handler, Task, time_limit=SHORT)):
        _publish(vhost)
        until(lambda: tries == [1, 2], what="the second try")
    assert cancelled.is_set()


def test_what_takes_too_long_every_time_goes_to_review_with_the_limit_as_the_reason(vhost: Vhost) -> None:
    def handler(task: Task) -> None:
        _spin()

    consumer = consumer_of("limited", handler, Task, time_limit=SHORT, retry=fixed(attempts=1))
    with working(vhost.amqp_url, consumer), Client(vhost.amqp_url) as client:
        _publish(vhost)
        dead = until(lambda: client.take(DEAD), what="the dead letter")
    assert dead.headers[wire.REASON] == (
        "failed after 1 attempt: TimeLimitExceeded: the handler ran for longer than its time limit of 3s"
    )
    assert "_spin" in dead.headers[wire.TRACEBACK]


def test_the_limit_of_a_batch_handler_is_for_one_call(vhost: Vhost) -> None:
    calls: list[list[int]] = []

    def handler(tasks: list[Task]) -> None:
        calls.append([task.number for task in tasks])
        if len(tasks) > 1:
            _spin()

    with working(vhost.amqp_url, consumer_of("limited", handler, Task, time_limit=SHORT, batch=Batch(3, "60s"))):
        _publish(vhost, 3)
        until(lambda: len(calls) >= 4, what="the calls")
    assert sorted(calls[0]) == [0, 1, 2]
    assert sorted(itertools.chain(*calls[1:4])) == [0, 1, 2], "interrupted together, and handled one by one"


def test_a_limit_that_does_not_fit_under_the_brokers_is_refused_at_the_start(vhost: Vhost) -> None:
    def handler(task: Task) -> None: ...

    limited = consumer_of("limited", handler, Task, time_limit=1400.0)
    with pytest.raises(ConfigurationError, match="The time limit of 'limited'"):
        Worker([limited], url=vhost.amqp_url, consumer_timeout=1800.0)


def test_a_handler_that_waits_is_told_when_the_worker_stops(vhost: Vhost) -> None:
    waiting = threading.Event()
    told: list[bool] = []

    def handler(task: Task, context: Context) -> None:
        waiting.set()
        told.append(context.wait(10 * DEADLINE))

    with working(vhost.amqp_url, consumer_of("patient", handler, Task), grace_seconds=DEADLINE):
        _publish(vhost)
        assert waiting.wait(DEADLINE)
    assert told == [True]


def test_a_coroutine_that_sleeps_is_told_when_the_worker_stops(vhost: Vhost) -> None:
    waiting = threading.Event()
    told: list[bool] = []

    async def handler(task: Task, context: Context) -> None:
        waiting.set()
        told.append(await context.sleep(10 * DEADLINE))

    with working(vhost.amqp_url, consumer_of("patient", handler, Task), grace_seconds=DEADLINE):
        _publish(vhost)
        assert waiting.wait(DEADLINE)
    assert told == [True]
