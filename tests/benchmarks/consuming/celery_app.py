"""The Celery worker under test, on a quorum queue, set so that no message is lost.

python -m tests.benchmarks.consuming.celery_app COUNT      fills its queue
"""

from __future__ import annotations

import os
import sys
from typing import Any

from celery import Celery
from kombu import Queue

from tests.benchmarks.consuming.meter import Meter, Placed, placed

app: Any = Celery(broker=os.environ["BENCH_URL"])
app.conf.update(
    task_queues=[Queue("bench.celery", durable=True, queue_arguments={"x-queue-type": "quorum"})],
    task_default_queue="bench.celery",
    task_create_missing_queues=False,
    task_acks_late=True,
    task_acks_on_failure=False,
    task_acks_on_timeout=False,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=int(os.environ.get("BENCH_PREFETCH", "4")),
)
meter = Meter(shared=os.environ.get("BENCH_POOL") == "prefork")


def handle(**order: Any) -> None:
    """A no-op on a message that is checked."""
    Placed.model_validate(order)
    meter.handled()


task = app.task(handle, name="bench.placed")


def fill(count: int) -> None:
    """Send *count* messages."""
    with app.producer_or_acquire() as producer:
        for number in range(count):
            task.apply_async(kwargs=placed(number).model_dump(), producer=producer)


if __name__ == "__main__":
    fill(int(sys.argv[1]))
