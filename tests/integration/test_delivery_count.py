"""What RabbitMQ counts in `x-delivery-count`, on which the isolation of poison messages relies where no journal can."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pika
import pytest
from pika.exceptions import AMQPConnectionError

from ackline.infra.topology import ConsumerQueue, declare
from tests.amqp import Client, connect
from tests.broker import Vhost


def _hold(url: str) -> tuple[pika.BlockingConnection, int | None]:
    """Consume "billing" until the message is there, and keep it unacked: the connection, and the message's count."""
    connection = connect(url)
    channel = connection.channel()
    found: list[pika.BasicProperties] = []
    channel.basic_consume("billing", lambda _channel, _method, properties, _body: found.append(properties))
    while not found:
        connection.process_data_events(time_limit=None)
    return connection, (found[0].headers or {}).get("x-delivery-count")


def _die(connection: Any) -> None:
    """End as a killed process does: the kernel closes the socket."""
    connection._impl._transport._sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(AMQPConnectionError):
        connection.sleep(60)


@pytest.mark.parametrize("end", [_die, pika.BlockingConnection.close], ids=["killed", "closed"])
def test_each_connection_that_ends_with_it_unacked_counts_once(
    vhost: Vhost, end: Callable[[pika.BlockingConnection], None]
) -> None:
    declare(vhost.amqp_url, [ConsumerQueue("billing", ())])
    with Client(vhost.amqp_url) as client:
        client.publish("", "billing", b"{}")
        counts = []
        for _ in range(4):
            connection, count = _hold(vhost.amqp_url)
            counts.append(count)
            end(connection)
    assert counts == [None, 1, 2, 3]
