"""The process in which suspects are handled, one after the other: `python -m ackline.consumers.suspects PIPE PARENT`.

It gets a consumer's name and a delivery, says that it begins, runs the handler as a worker would, and sends back what
follows from it; the worker publishes and acks. Its death convicts the one message that it was handling.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection

from ackline.consumers import child
from ackline.consumers.batching import ahandle_batch, handle_batch
from ackline.consumers.calling import way_of
from ackline.consumers.consumer import load_consumers
from ackline.consumers.delivery import Delivery
from ackline.consumers.handling import Report, Settlement, Way, ahandle, handle
from ackline.consumers.isolation import BEGUN
from ackline.consumers.stopping import Stopping
from ackline.infra.errors import AcklineError
from ackline.infra.logs import configure_logging
from ackline.infra.settings import process_name, settings

log = logging.getLogger("ackline.consumers.suspects")  # its name when it is imported, and not run

#: Seconds without a suspect after which the process ends; the next one has another started.
IDLE_SECONDS = 60.0


def serve(pipe: Connection, stopping: Stopping) -> None:
    """Handle what comes out of *pipe*, until nothing does for a while or the worker has ended."""

    def tell(_delivery: Delivery, report: Callable[[], Report]) -> None:
        pipe.send(report())

    name = process_name()
    consumers = load_consumers(settings()).values()
    ways = {found.name: way_of(found, name, stopping=stopping, tell=tell) for found in consumers}
    log.info("handling suspects apart")
    with asyncio.Runner() as runner:
        while pipe.poll(IDLE_SECONDS):
            try:
                consumer, delivery, arrived, in_place = pipe.recv()
            except EOFError:
                return
            delivery.arrived = arrived  # the clock is one for all processes
            way = ways[consumer]._replace(in_place=in_place)
            pipe.send(BEGUN)
            settlement = _handle(way, delivery, runner)
            # The fallback knows the handler, which cannot be sent: the worker makes its own.
            pipe.send((replace(settlement, fallback=None), settlement.fallback is not None))


def _handle(way: Way, delivery: Delivery, runner: asyncio.Runner) -> Settlement:
    if way.consumer.batch is not None:
        batch = runner.run(ahandle_batch(way, [delivery])) if way.consumer.is_async else handle_batch(way, [delivery])
        return batch[0]
    return runner.run(ahandle(way, delivery)) if way.consumer.is_async else handle(way, delivery)


def main() -> None:
    """The process."""
    child.belong_to(int(sys.argv[2]))
    configure_logging()
    stopping = Stopping()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    try:
        serve(Connection(int(sys.argv[1])), stopping)
    except AcklineError as error:
        sys.exit(f"ackline: {error}")


if __name__ == "__main__":
    main()
