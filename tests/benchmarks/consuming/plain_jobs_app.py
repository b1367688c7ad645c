"""The same in plain Celery, with the guarantees that it has settings for. See `job_work`."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from kombu import Exchange, Queue

from tests.benchmarks.consuming import job_work

QUEUE = Queue("bench.jobs", Exchange("bench", "topic"), "bench.jobs", queue_arguments={"x-queue-type": "quorum"})

app: Any = Celery(broker=os.environ["BENCH_URL"])
app.conf.update(
    task_queues=[QUEUE],
    task_default_queue=QUEUE.name,
    task_create_missing_queues=False,
    task_acks_late=True,
    task_acks_on_failure=False,
    task_acks_on_timeout=False,
    task_ignore_result=True,
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=int(os.environ.get("BENCH_PREFETCH", "4")),
)
JOBS = {
    "bench.place": app.task(job_work.place, name="bench.place", mandatory=True),
    "bench.ping": app.task(job_work.ping, name="bench.ping", mandatory=True),
}

if __name__ == "__main__":
    job_work.main(lambda name, arguments: JOBS[name].apply_async(kwargs=arguments, confirm_timeout=10))
