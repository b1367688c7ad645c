"""The app of most tutorials: Redis, and Celery's defaults."""

from typing import Any

from celery import Celery

app = Celery("shop", broker="redis://:secret@localhost:6379/0", backend="redis://:secret@localhost:6379/1")


@app.task
def send_welcome_mail(address: str) -> str:
    return f"sent to {address}"


@app.task(bind=True, max_retries=3)
def charge(self: Any, order: str) -> None:
    try:
        raise ConnectionError(f"the bank does not answer about {order}")
    except ConnectionError as error:
        raise self.retry(exc=error, countdown=60) from None
