"""A memory alarm while a service publishes: it is told at once, deadlines hold, and all goes on when the alarm ends."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest

from ackline.infra.running_broker import Broker
from ackline.infra.topology import declare
from ackline.producer import PublishBlocked, Publisher, PublishTimeout
from tests.integration.test_publisher import NUMBERS, Number, numbers
from tests.rabbitmqctl import rabbitmqctl
from tests.waiting import until

#: Seconds that a message may wait for its confirm here.
TIMEOUT = 2.0
BLOCKED = "RabbitMQ blocks publishing: low on memory."

pytestmark = pytest.mark.faults


class Service:
    """Publishes one message after the other until it is told to stop."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._stopped = threading.Event()
        self.confirmed: list[int] = []
        #: Of each message that was blocked: the seconds after which its error came, and what that says.
        self.blocked: list[tuple[float, str]] = []

    def run(self) -> None:
        """Any other error than that of a deadline ends it."""
        number = 0
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                self._publisher.publish(Number(number=number), timeout=TIMEOUT)
                self.confirmed.append(number)
            except PublishBlocked as error:
                self.blocked.append((time.monotonic() - began, str(error)))
            except PublishTimeout:
                pass  # its deadline passed just before the alarm was heard of, or just after its end; or all was slow
            number += 1

    def stop(self) -> None:
        """Finish the message at hand."""
        self._stopped.set()


def test_an_alarm_is_reported_while_publishing_and_all_goes_on_when_it_ends(
    own_broker: Broker, say: Callable[[str], None]
) -> None:
    declare(own_broker.amqp_url, [NUMBERS])
    with Publisher(own_broker.amqp_url) as publisher, ThreadPoolExecutor() as pool:
        service = Service(publisher)
        running = pool.submit(service.run)
        try:
            until(lambda: len(service.confirmed) > 100, what="messages to be confirmed before the alarm")
            alarm = pool.submit(rabbitmqctl, own_broker, "set_vm_memory_high_watermark", "0")
            until(lambda: publisher.problem == BLOCKED, deadline=90, what="the alarm to be reported")
            reported = time.time()
            alarm.result()
            until(lambda: len(service.blocked) > 2, what="messages whose deadline passes")
            before = len(service.confirmed)
            rabbitmqctl(own_broker, "set_vm_memory_high_watermark", "0.6")
            until(lambda: publisher.problem is None, what="the end of the alarm to be noticed")
            until(lambda: len(service.confirmed) > before + 100, what="messages to be confirmed after the alarm")
        finally:
            service.stop()
        running.result()
    assert set(service.confirmed) <= set(numbers(own_broker.amqp_url))
    assert min(seconds for seconds, _ in service.blocked) >= TIMEOUT
    assert any(BLOCKED in said for _, said in service.blocked)
    say(
        f"an alarm was reported {_seconds_since_alarm(own_broker, reported)} after the broker raised it; "
        f"a deadline of {TIMEOUT:g} s was held in {max(service.blocked)[0]:.2f} s at most"
    )


def _seconds_since_alarm(broker: Broker, reported: float) -> str:
    """How long after the broker's own note of its alarm *reported* was."""
    if broker.logs is None:
        return "(no log)"
    raised, *_ = re.findall(r"^(\S+ \S+) \[warning\].*memory resource limit alarm set", broker.logs.read_text(), re.M)
    return f"{reported - datetime.fromisoformat(raised).timestamp():.3f} s"
