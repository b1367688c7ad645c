"""The broker as a client that knows nothing of Ackline sees it: bare pika."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import pika
from pika.exceptions import ChannelClosedByBroker

from tests.waiting import until

#: Seconds that RabbitMQ gives a quorum queue to tell its counts; of one that is slower it says that there is nothing.
COUNTED_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Taken:
    """A message that was taken from a queue."""

    exchange: str
    routing_key: str
    redelivered: bool
    properties: pika.BasicProperties
    body: bytes

    @property
    def headers(self) -> dict[str, Any]:
        """Its headers, decoded."""
        return self.properties.headers or {}


def connect(url: str) -> pika.BlockingConnection:
    """A connection, however slow the broker is."""
    parameters = pika.URLParameters(url)
    parameters.socket_timeout = parameters.stack_timeout = 60
    return pika.BlockingConnection(parameters)


def counts(channel: Any, queue: str) -> Any:
    """How many messages wait in *queue*, and how many consume it: `message_count` and `consumer_count`.

    None of either, told so late, may be no answer (see `COUNTED_SECONDS`): the broker is asked until it was quick.
    """

    def told() -> Any:
        began = time.monotonic()
        found = channel.queue_declare(queue, passive=True).method
        was_quick = time.monotonic() - began < COUNTED_SECONDS
        return found if was_quick or found.message_count or found.consumer_count else None

    return until(told, what=f"the counts of {queue}")


class Client:
    """One connection, used by one thread; a context manager."""

    def __init__(self, url: str) -> None:
        self._connection = connect(url)
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()

    def publish(self, exchange: str, routing_key: str, body: bytes, **properties: Any) -> None:
        """Publish mandatory, and wait for the confirm."""
        make: Any = pika.BasicProperties  # it has no types
        self._channel.basic_publish(exchange, routing_key, body, make(delivery_mode=2, **properties), mandatory=True)

    def ready(self, queue: str) -> int:
        """Messages that wait in *queue*: without those that somebody holds unacked."""
        return int(self._passive(queue).message_count)

    def consumers(self, queue: str) -> int:
        """How many consume *queue*."""
        return int(self._passive(queue).consumer_count)

    def exists(self, queue: str) -> bool:
        """Whether there is a queue of that name."""
        try:
            self._passive(queue)
        except ChannelClosedByBroker:
            return False
        return True

    def take(self, queue: str) -> Taken | None:
        """Take the next message from *queue*, acked; None when none waits."""
        method, properties, body = self._channel.basic_get(queue, auto_ack=True)
        if method is None or properties is None or body is None:
            return None
        return Taken(method.exchange, method.routing_key, method.redelivered, properties, body)

    def hold(self, queue: str) -> None:
        """Take a message of *queue* and never answer it, until the broker ends that."""
        ended: list[bool] = []
        channel = self._connection.channel()
        channel.add_on_cancel_callback(lambda _: ended.append(True))
        channel.basic_consume(queue, lambda *_: None)
        while not ended and channel.is_open:
            self._connection.process_data_events(time_limit=0.5)

    def delete_queue(self, queue: str) -> None:
        """Delete *queue* with what is in it."""
        self._channel.queue_delete(queue)

    def delete_exchange(self, exchange: str) -> None:
        """Delete *exchange*."""
        self._channel.exchange_delete(exchange)

    def declare_queue(self, queue: str, **arguments: Any) -> None:
        """Create *queue*, durable."""
        self._channel.queue_declare(queue, durable=True, arguments=arguments)

    def _passive(self, queue: str) -> Any:
        with self._connection.channel() as channel:  # its own: a queue that is missing closes it
            return counts(channel, queue)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._connection.is_open:
            self._connection.close()
