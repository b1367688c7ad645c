"""Programs that publish and print their speed, one per process: what `publish` compares.

python -m tests.benchmarks.publish_contenders NAME AMQP_URL COUNT
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ackline.producer import Publisher, Receipt, message

TYPE = "bench.sent"
#: Bytes of a body.
SIZE = 1024
#: Messages that are published before the clock starts: connections, caches and code are warm then.
WARM_UP = 500


@message(TYPE)
class Sent(BaseModel):
    """A message whose JSON has SIZE bytes."""

    number: int
    text: str


def sent(number: int) -> Sent:
    """A message made for publishing, as a service makes one for each event."""
    return Sent(number=number, text="x" * (SIZE - 24 - len(str(number))))


@contextmanager
def measured(count: int) -> Iterator[None]:
    """Print what the block's *count* messages took."""
    began, cpu = time.perf_counter(), time.process_time()
    yield
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(json.dumps({"messages per second": count / took, "CPU µs per message": 1e6 * cpu / count}))


def ackline_submit(url: str, count: int, threads: int) -> None:
    """`Publisher.submit` from *threads* threads; each waits for the last of its confirms."""
    with Publisher(url) as publisher:
        publisher.wait_until_connected()
        for future in [publisher.submit(sent(number)) for number in range(WARM_UP)]:
            future.result()

        def submit() -> None:
            futures = [publisher.submit(sent(number), timeout=60) for number in range(count // threads)]
            for future in futures:
                future.result()

        running = [threading.Thread(target=submit) for _ in range(threads)]
        with measured(count):
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()


def ackline_memory(url: str, count: int) -> None:
    """`Publisher.submit` from one thread, and ten looks at the memory of this process."""
    began = time.perf_counter()
    futures: deque[Future[Receipt]] = deque()
    with Publisher(url) as publisher:
        for number in range(count + 1):
            if number % (count // 10) == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                look = {
                    "submitted": number,
                    "seconds": time.perf_counter() - began,
                    "rss": pages * resource.getpagesize(),
                }
                print(json.dumps(look))
            futures.append(publisher.submit(sent(number), timeout=60))
            if len(futures) > WARM_UP:
                futures.popleft().result()


def ackline_gather(url: str, count: int) -> None:
    """`await Publisher.apublish` in 500 tasks."""

    async def run() -> None:
        async with Publisher(url) as publisher:
            await _in_tasks(WARM_UP, lambda number: publisher.apublish(sent(number)))
            with measured(count):
                await _in_tasks(count, lambda number: publisher.apublish(sent(number), timeout=60))

    asyncio.run(run())


def faststream(url: str, count: int) -> None:
    """FastStream's `publish` in 500 tasks, persistent, mandatory, with confirms."""
    from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange

    async def run() -> None:
        async with RabbitBroker(url, logger=None) as broker:
            exchange = RabbitExchange("ackline.messages", type=ExchangeType.TOPIC, declare=False)

            async def publish(number: int) -> None:
                await broker.publish(sent(number), exchange=exchange, routing_key=TYPE, persist=True)

            await _in_tasks(WARM_UP, publish)
            with measured(count):
                await _in_tasks(count, publish)

    asyncio.run(run())


async def _in_tasks(count: int, publish: Callable[[int], Awaitable[object]], tasks: int = 500) -> None:
    """*publish* numbers up to *count*, *tasks* at a time."""
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await publish(number)

    await asyncio.gather(*(work() for _ in range(tasks)))


def celery(url: str, count: int) -> None:
    """Celery's `delay` with confirms, to a quorum queue."""
    from celery import Celery

    app: Any = Celery(broker=url)
    app.conf.update(
        broker_transport_options={"confirm_publish": True},
        task_default_queue="bench.celery",
        task_default_queue_type="quorum",
        task_ignore_result=True,
    )

    def publish(number: int, text: str) -> None:
        """Never run: the queue is only filled."""

    task = app.task(publish, name=TYPE)
    for number in range(WARM_UP):
        task.delay(**sent(number).model_dump())
    with measured(count):
        for number in range(count):
            task.delay(**sent(number).model_dump())


CONTENDERS: dict[str, Callable[[str, int], None]] = {
    "submit-1": lambda url, count: ackline_submit(url, count, 1),
    "submit-8": lambda url, count: ackline_submit(url, count, 8),
    "apublish": ackline_gather,
    "memory": ackline_memory,
    "faststream": faststream,
    "celery": celery,
}

if __name__ == "__main__":
    CONTENDERS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
