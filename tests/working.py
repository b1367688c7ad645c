"""A worker inside the test's own process, and consumers made of any function."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pydantic import BaseModel

from ackline.consumers import RetryPolicy, fixed
from ackline.consumers.consumer import Consumer
from ackline.consumers.worker import Worker
from ackline.infra.topology import declare
from ackline.producer.message import type_of
from tests.amqp import Client
from tests.waiting import until

#: Seconds that a worker gets to stop.
STOP_SECONDS = 90.0


def consumer_of(
    name: str, handler: Callable[..., Any], *models: type[BaseModel], retry: RetryPolicy | None = None, **options: Any
) -> Consumer:
    """What `@consumer` makes of *handler*, without a place in the registry. options: further fields of `Consumer`."""
    return Consumer(
        name,
        handler,
        options.pop("types", {type_of(model): model for model in models}),
        retry or fixed(attempts=3, delay="1s"),
        len(inspect.signature(handler).parameters) == 2,
        inspect.iscoroutinefunction(handler),
        **options,
    )


@contextmanager
def working(url: str, *consumers: Consumer, **options: Any) -> Iterator[Worker]:
    """A worker that runs while the block does, and consumes when it begins.

    What `Worker.run` raises is raised at the end of the block, unless the block itself raises.
    """
    declare(url, [found.queue for found in consumers])
    worker = Worker(consumers, url=url, **options)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="worker")
    thread.start()
    try:
        with Client(url) as client:
            for queue in [queue for found in consumers for queue in found.queue.queues]:
                until(partial(client.consumers, queue), what=f"the worker to consume {queue}")
        yield worker
    finally:
        worker.stop()
        thread.join(STOP_SECONDS)
        assert not thread.is_alive(), "the worker did not stop"
    if raised:
        raise raised[0]
