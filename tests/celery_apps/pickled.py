"""A tutorial that sends objects, so it turns pickle on; results come back by rpc, and mails go out at eight."""

from typing import Any

from celery import Celery
from celery.schedules import crontab

app = Celery("reports", broker="amqp://guest:guest@localhost:5672//", backend="rpc://")
app.conf.update(
    task_serializer="pickle",
    result_serializer="pickle",
    accept_content=["pickle", "json"],
    beat_schedule={"daily": {"task": "reports.daily_mail", "schedule": crontab(hour=8, minute=0)}},
)


@app.task
def render(report: Any) -> Any:
    return report


@app.task(name="reports.daily_mail", ignore_result=True, autoretry_for=(Exception,), max_retries=None)
def daily_mail() -> None:
    raise ConnectionError("no mail server")
