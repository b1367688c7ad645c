"""A memory alarm while the gateway is used: it goes on accepting, and all of it is delivered in order of acceptance."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from ackline.infra import database
from ackline.infra.names import UNROUTED
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from ackline.producer import outbox
from tests.doors import MAIL, hurried_gateway, is_connected
from tests.integration.test_publisher import taken
from tests.rabbitmqctl import rabbitmqctl
from tests.roles import role
from tests.waiting import until

pytestmark = pytest.mark.faults


class Client:
    """Posts one message after the other, each when the one before was accepted."""

    def __init__(self, door: httpx.Client) -> None:
        self._door = door
        self._stopped = threading.Event()
        self.accepted: list[dict[str, Any]] = []

    def run(self) -> None:
        while not self._stopped.is_set():
            answer = self._door.post("/v1/messages/email.send", json=MAIL)
            assert answer.status_code == 202, answer.text
            self.accepted.append(answer.json())

    def stop(self) -> None:
        """Finish the message at hand."""
        self._stopped.set()

    def count(self, state: str) -> int:
        return sum(message["state"] == state for message in self.accepted)


def test_during_an_alarm_the_gateway_accepts_and_afterwards_all_is_delivered_in_order(
    own_broker: Broker, own_broker_settings: Settings, say: Callable[[str], None]
) -> None:
    with (
        hurried_gateway(own_broker_settings) as door,
        role(own_broker_settings, "relay"),
        ThreadPoolExecutor() as pool,
    ):
        client = Client(door)
        running = pool.submit(client.run)
        try:
            until(lambda: client.count("waiting") > 50, what="messages that go straight to the broker")
            rabbitmqctl(own_broker, "set_vm_memory_high_watermark", "0")
            until(lambda: not is_connected(door), what="the alarm to be reported")
            before = client.count("accepted")
            until(lambda: client.count("accepted") > before + 50, what="messages that are accepted during the alarm")
            assert "blocks publishing" in door.get("/readyz").json()["broker"]
            rabbitmqctl(own_broker, "set_vm_memory_high_watermark", "0.6")
            straight = client.count("waiting")
            until(lambda: client.count("waiting") > straight + 50, what="the straight way to open again")
        finally:
            client.stop()
        running.result()
        # The last ones, too, where the broker was too slow for the straight way.
        until(lambda: not _waiting(own_broker_settings), what="the relay to publish what waits")
        ids = [message["id"] for message in client.accepted]
        arrived = [str(properties.message_id) for properties, _ in taken(own_broker_settings.broker, UNROUTED)]
    say(
        f"{len(ids)} accepted, {client.count('accepted')} of them during the alarm and its backlog; "
        f"{len(arrived) - len(set(arrived))} repeats"
    )
    assert list(dict.fromkeys(arrived)) == ids, "in the order of acceptance; repeats aside"


def _waiting(settings: Settings) -> bool:
    with database.opened(settings.database) as engine, database.reading(engine) as connection:
        return outbox.is_backlogged(connection)
