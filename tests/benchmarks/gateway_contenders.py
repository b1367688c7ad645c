"""Web services to put load on, one per process: what `gateway` compares the gateway with.

python -m tests.benchmarks.gateway_contenders NAME AMQP_URL PORT
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI

from tests.benchmarks.publish_contenders import TYPE, Sent


def at_once(url: str) -> FastAPI:
    """A route that returns at once: FastAPI's own price."""
    app = FastAPI()

    @app.post("/v1/messages/{type}", status_code=202)
    async def publish(type: str) -> dict[str, str]:  # noqa: A002
        return {"id": "01a1fd3c-2ec5-7ee1-9d36-7d4bdab9d2c2", "type": type, "state": "waiting"}

    return app


def celery(url: str) -> FastAPI:
    """The usual way: the route checks the body and calls `delay`, with confirms, to a quorum queue."""
    from celery import Celery

    app = FastAPI()
    jobs: Any = Celery(broker=url)
    jobs.conf.update(
        broker_transport_options={"confirm_publish": True},
        task_default_queue="bench.celery",
        task_default_queue_type="quorum",
        task_ignore_result=True,
    )

    def run(number: int, text: str) -> None:
        """Never run: the queue is only filled."""

    task = jobs.task(run, name=TYPE)

    @app.post("/v1/messages/{type}", status_code=202)
    def publish(type: str, sent: Sent) -> dict[str, str]:  # noqa: A002 - not async: `delay` blocks
        return {"id": task.delay(**sent.model_dump()).id, "type": type, "state": "waiting"}

    return app


CONTENDERS: dict[str, Callable[[str], FastAPI]] = {"at-once": at_once, "celery": celery}

if __name__ == "__main__":
    uvicorn.run(CONTENDERS[sys.argv[1]](sys.argv[2]), port=int(sys.argv[3]), log_level="error", access_log=False)
