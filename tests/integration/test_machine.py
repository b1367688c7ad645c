"""What other tests take for granted: servers that can be had on this machine, installed first if need be.

`.ci/run` runs these alone before it runs the others beside each other, so that no two of them install at once.
"""

from __future__ import annotations

import psycopg
from redis import Redis

from ackline.infra.running_broker import Broker, takes_credentials


def test_a_broker_can_be_had(broker: Broker) -> None:
    assert takes_credentials(broker.amqp_url)


def test_postgresql_can_be_had(postgresql_url: str) -> None:
    with psycopg.connect(postgresql_url.replace("+psycopg", "")) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_redis_can_be_had(redis_url: str) -> None:
    with Redis.from_url(redis_url) as connected:
        assert connected.ping()
