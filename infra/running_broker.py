"""What every broker that `launch` hands out can do, wherever it runs, and when it counts as ready."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import httpx
from kombu import connection as kombu_connection

from ackline.infra.errors import AcklineError
from ackline.infra.log_tail import first_errors

#: Seconds from the start of a broker until it must answer. Four are usual; a slow disk and a full queue need more.
READY_SECONDS = 90.0

#: Seconds that a broker gets to stop gracefully. RabbitMQ 4 takes one, 3.10 six; then it is killed, which loses nothing
#: that it confirmed.
STOP_SECONDS = 7.5

#: Seconds for one attempt to reach a broker.
_ATTEMPT_SECONDS = 5.0


class BrokerUnavailable(AcklineError):
    """No broker can be had, or one did not get ready: says what was tried and what to do."""


class Broker(ABC):
    """A broker that runs, or ran: a context manager that stops what it started. Not thread-safe."""

    #: Where clients connect, credentials included.
    amqp_url: str
    #: Where the management API answers (same credentials); None when nobody said.
    management_url: str | None
    #: One sentence: which broker this is, its version, and why this one.
    description: str
    #: Whether `stop`, `kill` and `start` do anything: False for a broker that somebody else runs.
    can_stop: bool = True
    #: What the broker writes about itself; None for a broker that somebody else runs.
    logs: Path | None = None

    @abstractmethod
    def start(self) -> None:
        """Start it, on the same ports and with the data it had; returns when it is ready.

        Raises `BrokerUnavailable`, and then nothing of it is left running.
        """

    @abstractmethod
    def stop(self) -> None:
        """Stop it gracefully, within 10 seconds, and wait until nothing of it is left. May be repeated."""

    @abstractmethod
    def kill(self) -> None:
        """Kill it as a crash would. `start` brings it back with everything that it had confirmed."""

    @abstractmethod
    def alive(self) -> bool:
        """Whether its process runs. Says nothing about whether it answers."""

    def restart(self) -> None:
        """Stop it and start it again, on the same ports and with the same data."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def wait_until_ready(
    broker: Broker,
    *,
    exit_code: Callable[[], int | None],
    log: Path | None,
    seconds: float = READY_SECONDS,
) -> str:
    """Wait until *broker* takes a client's credentials and its management API answers; returns RabbitMQ's version.

    Raises `BrokerUnavailable`, with what its *log* says, when it ends (*exit_code* says so) or *seconds* pass.
    """
    deadline = time.monotonic() + seconds
    while True:
        version = _management_version(broker.amqp_url, broker.management_url)
        if version is not None and takes_credentials(broker.amqp_url):
            return version
        code = exit_code()
        if code is not None:
            raise BrokerUnavailable(
                f"The broker ended while starting (exit code {code}).{first_errors(log) if log else ''}"
            )
        if time.monotonic() > deadline:
            raise BrokerUnavailable(
                f"The broker was not ready after {seconds:.0f} s.{first_errors(log) if log else ''}"
            )
        time.sleep(0.1)


def takes_credentials(amqp_url: str) -> bool:
    """Whether an AMQP broker answers at *amqp_url* and accepts its credentials and vhost."""
    connect: Any = kombu_connection.Connection  # kombu has no types
    connection = connect(amqp_url, connect_timeout=_ATTEMPT_SECONDS)
    try:
        connection.connect()
    except (*connection.connection_errors, *connection.channel_errors):
        return False
    else:
        return True
    finally:
        with contextlib.suppress(OSError):
            connection.release()


def credentials(amqp_url: str) -> tuple[str, str]:
    """User and password of an AMQP URL; RabbitMQ's own defaults where it names none."""
    parts = urlsplit(amqp_url)
    return unquote(parts.username or "guest"), unquote(parts.password or "guest")


def _management_version(amqp_url: str, management_url: str | None) -> str | None:
    """RabbitMQ's version by its management API; None while that does not answer."""
    try:
        # No proxy from the environment: it would be asked for a loopback address.
        with httpx.Client(auth=credentials(amqp_url), timeout=_ATTEMPT_SECONDS, trust_env=False) as client:
            answer = client.get(f"{management_url}/api/overview")
        return str(answer.raise_for_status().json()["rabbitmq_version"])
    except (httpx.HTTPError, ValueError, KeyError):
        return None
