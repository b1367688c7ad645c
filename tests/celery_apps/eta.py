"""Reminders by ETA, on RabbitMQ with a classic queue: late acks and confirms are on, as the documentation has it."""

from celery import Celery

app = Celery("reminders", broker="amqp://guest:guest@localhost:5672//", backend="db+sqlite:///results.sqlite")
app.conf.update(
    broker_transport_options={"confirm_publish": True},
    task_acks_late=True,
    task_acks_on_failure=False,
    task_acks_on_timeout=False,
    task_annotations={"*": {"mandatory": True}},
    task_create_missing_queues=False,
    task_time_limit=7200,
    worker_prefetch_multiplier=1,
)


@app.task
def remind(person: str) -> str:
    return f"reminded {person}"


def remind_tomorrow(person: str) -> None:
    remind.apply_async((person,), countdown=24 * 3600)
