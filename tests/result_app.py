"""An application with jobs, for tests of what is known of them; files in the test's folder let them go on."""

from __future__ import annotations

import os
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from celery import exceptions as celery_exceptions
from pydantic import BaseModel

from ackline.consumers import RetryLater, fixed
from ackline.consumers.jobs import Job, job
from ackline.producer import message
from tests.asking import FOLDER


@message("noted", track=True)
class Noted(BaseModel):
    """No job, and nobody takes it."""


class Size(BaseModel):
    """Of a picture."""

    width: int
    height: int


def is_there(file: str) -> bool:
    """Whether the test has made that file."""
    return (Path(os.environ[FOLDER]) / file).exists()


def wait_for(file: str) -> None:
    """Wait until the test has made that file."""
    deadline = time.monotonic() + 300
    while not is_there(file):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@job(name="double")
def double(number: int, times: int = 1) -> int:
    for _ in range(times):
        number *= 2
    return number


@job(name="price")
def price() -> dict[str, Any]:
    return {"amount": Decimal("9.50"), "text": "a\x00b ü"}


@job(name="area")
async def area(size: Size) -> int:
    return Size.model_validate(size).width * Size.model_validate(size).height


@job(name="tell", bind=True)
def tell(self: Job, file: str) -> str:
    """Tell how far it is, and wait."""
    self.progress(0.4, "4 of 10 rows")
    self.progress(0.5, "nobody need see this")
    wait_for(file)
    return "told"


@job(name="wait")
def wait(file: str) -> None:
    wait_for(file)


@job(name="retry later", max_retries=3)
def retry_later() -> None:
    raise RetryLater("1h", "the shop is closed")


@job(name="retry once", retry=fixed(attempts=2, delay="1s"), bind=True)
def retry_once(self: Job, file: str) -> str:
    if self.request.retries == 0:
        raise ValueError("not at the first time")
    wait_for(file)
    return "at the second"


@job(name="break")
def break_(file: str) -> str:
    if not is_there(file):
        raise ValueError("it is broken")
    return "mended"


@job(name="refuse")
def refuse() -> None:
    raise celery_exceptions.Reject("not today", requeue=False)


@job(name="slow", time_limit=1)
def slow() -> None:
    time.sleep(600)


@job(name="once", unique_for="1h")
def once(text: str = "a", more: int = 1) -> str:
    return text * more


@job(name="forgotten", ignore_result=True)
def forgotten() -> str:
    return "nobody keeps this"


@job(name="odd")
def odd() -> object:
    """What it returns cannot be stored."""
    return object()
