"""`ackline flower`: Flower, the web page of Celery's, which shows workers of jobs and what they run.

It takes its sign-in from the broker's address, always: who may use it can revoke jobs and stop workers, and without a
sign-in it would answer any web page that a browser on this machine has open. Its API answers nobody without one.
"""

from __future__ import annotations

import logging
import signal
import time
from functools import partial
from importlib.util import find_spec
from typing import Any
from urllib.parse import quote, urlsplit

import click
from celery.events import EventReceiver

from ackline.infra.app import load_app
from ackline.infra.errors import ConfigurationError
from ackline.infra.logs import configure_logging
from ackline.infra.ready import ready
from ackline.infra.running_broker import credentials
from ackline.infra.settings import Settings, settings

log = logging.getLogger(__name__)

#: Seconds between tries to listen to workers.
AGAIN_SECONDS = 2.0


@click.command()
@click.option("--host", help="Address to listen on. [ACKLINE_FLOWER_HOST]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0: a free one. [ACKLINE_FLOWER_PORT]")
def flower(host: str | None, port: int | None) -> None:
    """Show the workers of jobs and what they run, with Flower. Sign in as to RabbitMQ: with its user and password."""
    if find_spec("flower") is None:
        raise ConfigurationError("Flower is a package of its own: pip install 'ackline[flower]'.")
    configured = settings()
    load_app(configured.app)
    run(
        configured,
        configured.flower_host if host is None else host,
        configured.flower_port if port is None else port,
    )


def run(configured: Settings, host: str, port: int) -> None:
    """Serve until told to stop. Raises `ConfigurationError` when it cannot listen there."""
    from flower.app import Flower
    from flower.options import options
    from flower.urls import settings as of_flower

    from ackline.consumers.jobs.app import app

    configure_logging()
    user, password = credentials(configured.broker)
    options.address, options.port = host, port
    options.basic_auth = [f"{user}:{password}"]
    if configured.management_url is not None:
        place = urlsplit(configured.management_url)
        options.broker_api = f"{place.scheme}://{quote(user)}:{quote(password)}@{place.netloc}/api/"
    server = Flower(capp=app, options=options, **of_flower)
    server.events.run = partial(listen, server.events)
    try:
        listening = server.start_http_server()
    except OSError as error:
        raise ConfigurationError(
            f"Flower cannot listen on {host}:{port}: {error.strerror}. Choose another port with ACKLINE_FLOWER_PORT."
        ) from None
    log.info("listening on http://%s:%d; sign in as to RabbitMQ, as %s", host, listening, user)
    for number in (signal.SIGTERM, signal.SIGINT):
        server.io_loop.asyncio_loop.add_signal_handler(number, server.stop)
    ready()
    server.start()


def listen(events: Any) -> None:
    """Hear what workers say, for ever. Stands where Flower has a loop that waits twice as long after each failure.

    After an hour without the broker that one may see nothing for another hour.
    """
    told: str | None = None
    while True:
        try:
            with events.capp.connection() as connection:
                receiver = EventReceiver(connection, handlers={"*": events.on_event}, app=events.capp)
                if told is not None:
                    log.info("events of workers are heard again")
                told = None
                receiver.capture(limit=None, timeout=None, wakeup=True)
        except Exception as error:
            if told != str(error):
                log.warning("events of workers cannot be heard, trying again every %g s: %s", AGAIN_SECONDS, error)
            told = str(error)
        time.sleep(AGAIN_SECONDS)
