"""RabbitMQ with quorum queues, which somebody set up with care, and left the acks as they are."""

from celery import Celery
from kombu import Exchange, Queue

app = Celery("billing", broker="amqp://billing:secret@localhost:5672/billing")
app.conf.update(
    broker_transport_options={"confirm_publish": True},
    task_annotations={"*": {"mandatory": True}},
    task_create_missing_queues=False,
    task_default_queue="billing",
    task_queues=[
        Queue(
            "billing",
            Exchange("billing", "topic"),
            routing_key="billing",
            queue_arguments={
                "x-queue-type": "quorum",
                "x-delivery-limit": 20,
                "x-dead-letter-exchange": "billing.dead",
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            },
        )
    ],
    task_time_limit=300,
    worker_prefetch_multiplier=1,
)


@app.task
def invoice(order: str) -> str:
    return f"invoice of {order}"


@app.task(acks_late=True, reject_on_worker_lost=True)
def remind(order: str) -> str:
    return f"reminder of {order}"
