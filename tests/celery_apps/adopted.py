"""A plain Celery app with the two lines that adopt it."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

from celery import Celery, Task
from celery.exceptions import Reject, Retry

from ackline.consumers import RetryLater
from ackline.consumers.jobs import adopt
from tests import notes

app = Celery("shop", broker=os.environ["SHOP_BROKER"])
app.conf.task_routes = {"shop.render": {"queue": "video"}}
adopt(app)


class Audited(Task):  # type: ignore[misc]
    """A base class of the app's own, as many apps have one."""


@app.task(name="shop.charge")
def charge(order: str) -> None:
    raise ValueError(f"no card for {order}")


@app.task(name="shop.audit", base=Audited)
def audit(order: str) -> None:
    raise KeyError(order)


@app.task(name="shop.refuse")
def refuse() -> None:
    raise Reject("closed", requeue=False)


@app.task(name="shop.wait", max_retries=1)
def wait(note: str) -> None:
    notes.add(Path(note), "wait")
    raise Retry("not yet", when=0.1)


class Pack(Task):  # type: ignore[misc]
    """A task of the old style."""

    name = "shop.pack"
    max_retries = 1

    def run(self, note: str) -> None:
        notes.add(Path(note), "pack")
        raise RetryLater("100ms", "nobody is there")


app.register_task(Pack())


@app.task(name="shop.hang", time_limit=1)
def hang() -> None:
    threading.Event().wait()


@app.task(name="shop.crash")
def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="shop.render", bind=True, max_retries=1, default_retry_delay=1)
def render(self: Any, note: str) -> None:
    if self.request.retries == 0:
        raise self.retry()
    notes.add(Path(note), "rendered")
