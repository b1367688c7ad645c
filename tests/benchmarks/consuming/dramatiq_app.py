"""The Dramatiq worker under test. Dramatiq declares its queues itself, and they are classic.

python -m tests.benchmarks.consuming.dramatiq_app COUNT      fills its queue
"""

from __future__ import annotations

import os
import sys
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from tests.benchmarks.consuming.meter import Meter, Placed, placed

dramatiq.set_broker(RabbitmqBroker(url=os.environ["BENCH_URL"]))
meter = Meter()


@dramatiq.actor(queue_name="bench")
def handle(order: dict[str, Any]) -> None:
    """A no-op on a message that is checked."""
    Placed.model_validate(order)
    meter.handled()


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        handle.send(placed(number).model_dump())
    dramatiq.get_broker().close()
