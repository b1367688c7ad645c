"""What a handler needs is down for a while (issue: no attempt is burnt, nothing in review, back within 2 s)."""

from __future__ import annotations

import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import pytest
from pydantic import BaseModel

from ackline.consumers import Breaker, Context, exponential
from ackline.infra.names import DEAD, UNROUTED
from ackline.infra.ports import LOOPBACK, free_port
from ackline.producer import Publisher, Receipt, message
from tests.amqp import Client
from tests.broker import Vhost
from tests.waiting import until
from tests.working import consumer_of, working

#: Seconds that it is down at least, and probes that fail meanwhile at least.
OUTAGE, PROBES = (30.0, 20) if os.environ.get("ACKLINE_TEST_LONG") else (6.0, 3)
#: Messages published before, during and after the outage.
SLICE = 300
FAILURES = 5

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@message("test.breaker.order")
class Order(BaseModel):
    number: int


class _Session(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"ok")


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


class Dependency:
    """A server on one port of this machine, which can go down and come back."""

    def __init__(self) -> None:
        #: Not one of those that the kernel gives out: while it is down, nobody else gets it.
        self.address: tuple[str, int] = (LOOPBACK, free_port())
        self._server: _Server | None = None

    def start(self) -> None:
        self._server = _Server(self.address, _Session)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def ask(self) -> None:
        """Raises `ConnectionError` or `TimeoutError` when it is down."""
        with socket.create_connection(self.address, timeout=30) as connection:
            if connection.recv(2) != b"ok":
                raise ConnectionError("it hung up")


def test_an_outage_of_what_handlers_need_burns_no_attempts_and_ends_when_it_does(
    vhost: Vhost, say: Callable[[str], None]
) -> None:
    dependency = Dependency()
    dependency.start()
    handled: dict[int, int] = {}  # number of the message: attempt that succeeded
    failed: list[float] = []
    succeeded: list[float] = []

    def charge(order: Order, ctx: Context) -> None:
        try:
            dependency.ask()
        except (ConnectionError, TimeoutError):
            failed.append(time.monotonic())
            raise
        handled[order.number] = ctx.attempt
        succeeded.append(time.monotonic())

    breaker = Breaker(on=(ConnectionError, TimeoutError), failures=FAILURES, probe="1s")
    billing = consumer_of("billing", charge, Order, retry=exponential(attempts=5, first="1s"), breaker=breaker)
    confirms: list[Future[Receipt]] = []
    with (
        working(vhost.amqp_url, billing),
        Publisher(vhost.amqp_url) as publisher,
        Client(vhost.amqp_url) as client,
    ):

        def publish() -> None:
            for number in range(len(confirms), len(confirms) + SLICE):
                confirms.append(publisher.submit(Order(number=number), timeout=120))

        publish()
        until(lambda: len(handled) == SLICE, what="what came before the outage to be handled")
        dependency.stop()
        down = time.monotonic()
        publish()
        until(lambda: len(failed) >= FAILURES, what="the failures that open the circuit")
        at_opening = len(failed)
        until(
            lambda: time.monotonic() - down >= OUTAGE and len(failed) >= at_opening + PROBES,
            deadline=OUTAGE + 300,
            what="the outage, with probes",
        )
        publish()
        assert client.ready(DEAD) == 0
        before = len(succeeded)
        back = time.monotonic()
        dependency.start()
        until(lambda: len(succeeded) > before, what="the first message after the outage")
        recovery = succeeded[before] - back
        until(lambda: len(handled) == 3 * SLICE, what="every message handled")
        everything = time.monotonic() - back
        assert all(confirm.exception() is None for confirm in confirms)
        left = {queue: client.ready(queue) for queue in ("billing", DEAD, UNROUTED)}
    burnt = sum(attempt - 1 for attempt in handled.values())
    say(
        f"down for {back - down:.1f} s: {len(failed)} tries failed, {burnt} attempts burnt before the circuit opened; "
        f"first message {recovery:.2f} s after it was back, all {2 * SLICE} that waited after {everything:.2f} s"
    )
    assert left == {"billing": 0, DEAD: 0, UNROUTED: 0}
    assert burnt <= FAILURES - 1, "attempts count until it opens, and not while it is open"
    assert recovery < 20.0  # 1 s to the next probe; what is above that is this machine's
