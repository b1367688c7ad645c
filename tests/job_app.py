"""An application with jobs, for tests: what they do is noted in the file that `ACKLINE_TEST_NOTES` names."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Task, shared_task
from celery import exceptions as celery_exceptions

from ackline.consumers import Reject, RetryLater, fixed
from ackline.consumers.jobs import Job, app, job
from tests import notes


def note(line: str) -> None:
    """One line in the file, whole whoever else writes."""
    notes.add(_file(), line)


def _file() -> Path:
    return Path(os.environ["ACKLINE_TEST_NOTES"])


def is_mended() -> bool:
    """Whether there is a file `mended` beside the notes."""
    return _file().with_name("mended").exists()


@job(name="add")
def add(a: int, b: int) -> int:
    note(f"add {a} {b}")
    return a + b


@job(name="aadd")
async def aadd(a: int, b: int) -> int:
    await asyncio.sleep(0)
    note(f"aadd {a} {b}")
    return a + b


@shared_task(name="shared")  # type: ignore[untyped-decorator]  # Celery has no types
def shared(text: str) -> None:
    note(f"shared {text}")


@job(name="encode", queue="video")
def encode(text: str) -> None:
    note(f"encode {text}")


@job(name="pass-on")
def pass_on(text: str) -> None:
    """Another job, published in the process of this one."""
    add.delay(1, len(text))
    note(f"pass-on {text}")


@job(name="at")
def at() -> None:
    note(f"at {time.time()}")


@job(name="rarely", rate_limit="1/h")
def rarely(text: str) -> None:
    note(f"rarely {text}")


@job(name="nap")
def nap(seconds: float) -> None:
    note("nap")
    time.sleep(seconds)
    note("awake")


# --- what raises ------------------------------------------------------------------------------------------------------


@job(name="fail")
def fail(text: str) -> None:
    note(f"fail {text}")
    raise ValueError(text)


@job(name="fail-often", retry=fixed(attempts=3, delay="1s", reject_on=KeyError), bind=True)
def fail_often(self: Job, text: str) -> None:
    note(f"fail-often {text} {self.request.retries}")
    if text == "never again":
        raise KeyError(text)
    if (text == "twice" and self.request.retries == 2) or is_mended():
        return
    raise ValueError(text)


@job(name="later", bind=True, max_retries=1)
def later(self: Job, delay: float) -> None:
    note(f"later {self.request.retries}")
    raise RetryLater(delay, "the other side is busy")


@job(name="retry-by-hand", max_retries=1)
def retry_by_hand() -> None:
    note("retry-by-hand")
    raise celery_exceptions.Retry("not yet", when=1)


class RetryByHandOfAClass(Task):  # type: ignore[misc]
    """As tasks were before Celery 4, and still are in many apps."""

    name = "retry-by-hand-of-a-class"
    max_retries = 1

    def run(self) -> None:
        note(self.name)
        raise celery_exceptions.Retry("not yet", when=1)


app.register_task(RetryByHandOfAClass())


@job(name="retry-itself", bind=True, max_retries=2)
def retry_itself(self: Job) -> None:
    note(f"retry-itself {self.request.retries}")
    try:
        raise ValueError("not yet")
    except ValueError as error:
        raise self.retry(countdown=1, exc=error) from error


@job(name="auto", autoretry_for=(ValueError,), max_retries=1, default_retry_delay=0)
def auto() -> None:
    note("auto")
    raise ValueError("by itself")


@job(name="requeue")
def requeue() -> None:
    note("requeue")
    raise celery_exceptions.Reject("not now", requeue=True)


@job(name="limited", rate_limit="30/m")
def limited(text: str) -> None:
    note(f"limited {text}")


@job(name="reject")
def reject(whose: str) -> None:
    note(f"reject {whose}")
    if whose == "ours":
        raise Reject("the customer is gone")
    raise celery_exceptions.Reject("the customer is gone", requeue=False)


@job(name="soft", soft_time_limit=1)
def soft() -> None:
    note("soft")
    time.sleep(600)


@job(name="hard", time_limit=1)
def hard() -> None:
    note("hard")
    time.sleep(600)


@job(name="die")
def die() -> None:
    note("die")
    os.kill(os.getpid(), signal.SIGKILL)


@job(name="unserialisable")
def unserialisable() -> Any:
    note("unserialisable")
    return object()


@job(name="wait")
def wait(text: str) -> None:
    """Wait until there is a file `gate` beside the notes, or one for those who wait with that *text*."""
    note(f"wait {text}")
    deadline = time.monotonic() + 300
    while not (_file().with_name("gate").exists() or _file().with_name(f"gate {text}").exists()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    note(f"done {text}")
