"""The FastStream worker under test; it takes the messages, and the queue, that Ackline's takes.

python -m tests.benchmarks.consuming.faststream_app
"""

from __future__ import annotations

import asyncio
import logging
import os

from faststream import FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

from tests.benchmarks.consuming.meter import Meter, Placed

broker = RabbitBroker(
    os.environ["BENCH_URL"],
    default_channel=Channel(prefetch_count=int(os.environ["BENCH_PREFETCH"])),
    log_level=logging.DEBUG,
)
meter = Meter()


@broker.subscriber(RabbitQueue("bench", declare=False))
async def handle(order: Placed) -> None:
    """A no-op; acked when it returns."""
    meter.handled()


if __name__ == "__main__":
    logging.disable(logging.INFO)
    asyncio.run(FastStream(broker).run())
