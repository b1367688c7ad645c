"""A million submits to a broker that is slow: the publisher's memory stays what its window makes it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import pika

from ackline.infra.names import MESSAGES
from ackline.infra.topology import declare
from tests import broker as test_broker
from tests.benchmarks.comparing import ROOT, Bench, table
from tests.benchmarks.publish_contenders import TYPE

#: Bytes per second that reach the broker: some 6,000 messages, whatever it could take.
SLOW = 8 * 1024 * 1024


def run(bench: Bench) -> str:
    """One run; the rows are looks at the same process."""
    count = bench.scaled(1_000_000)
    with test_broker.fresh_vhost(bench.broker) as vhost, _slowed(vhost.amqp_url) as url:
        declare(vhost.amqp_url, [])
        _declare_short_queue(vhost.amqp_url)
        command = [sys.executable, "-m", "tests.benchmarks.publish_contenders", "memory", url, str(count)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    return table(
        f"Memory while {count:,} messages of 1 KB are submitted to a slow broker",
        ["submitted", "seconds", "RSS"],
        [[f"{look['submitted']:,}", f"{look['seconds']:.0f}", f"{look['rss'] / 1e6:.1f} MB"] for look in looks],
    )


def _declare_short_queue(url: str) -> None:
    """A quorum queue that forgets its oldest: a gigabyte on disk would measure the disk."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.queue_declare("bench", durable=True, arguments={"x-queue-type": "quorum", "x-max-length": 10_000})
    channel.queue_bind("bench", MESSAGES, TYPE)
    connection.close()


@contextmanager
def _slowed(url: str) -> Iterator[str]:
    """The address of a proxy that passes at most SLOW bytes per second to the broker at *url*."""
    parts = urlsplit(url)

    async def serve(client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        broker, onward = await asyncio.open_connection(parts.hostname, parts.port)

        async def back() -> None:
            while data := await broker.read(65536):
                answers.write(data)
                await answers.drain()
            answers.close()

        returning = asyncio.create_task(back())
        while data := await client.read(65536):
            onward.write(data)
            await onward.drain()
            await asyncio.sleep(len(data) / SLOW)
        onward.close()
        await returning

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}"))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()
