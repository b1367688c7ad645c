"""How long a broker waits for the answer to a delivery."""

from __future__ import annotations

from ackline.infra.running_broker import Broker
from tests.rabbitmqctl import rabbitmqctl


def limit_deliveries(broker: Broker, seconds: int) -> None:
    """Set the broker's `consumer_timeout`, and have it look often."""
    values = {"consumer_timeout": seconds * 1000, "channel_tick_interval": 500, "quorum_tick_interval": 500}
    rabbitmqctl(
        broker, "eval", ", ".join(f"application:set_env(rabbit, {key}, {value})" for key, value in values.items()) + "."
    )
