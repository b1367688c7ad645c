"""The broker is killed and started again, over and over, while eight threads publish."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from ackline.infra.running_broker import Broker
from ackline.infra.topology import declare
from ackline.producer import Publisher, PublishError, PublishTimeout, Receipt
from tests.integration.test_publisher import NUMBERS, Number, numbers
from tests.waiting import until

LONG = bool(os.environ.get("ACKLINE_TEST_LONG"))
THREADS = 8
MESSAGES = 200_000 if LONG else 20_000
#: Kills at least. The last messages are held back until there were so many.
KILLS = 2
HELD_BACK = MESSAGES // 10
#: Seconds between a broker that is back and its next end. In the short form there are KILLS, and no waiting.
PERIOD = 5.0 if LONG else 0.0
#: Confirms between a broker that is back and its next end, at least: it dies in the middle of work.
WORK = 500
#: Seconds that a message may wait for its confirm: some outages are shorter, some longer.
TIMEOUT = 20.0

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


class Service:
    """Eight threads that submit all messages, each number once."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._rest_is_free = threading.Event()
        self.futures: dict[int, Future[Receipt]] = {}
        #: Numbers that were not sent, since too many waited for their confirms for too long.
        self.not_sent: list[int] = []
        self._threads = [threading.Thread(target=self._submit, args=(index,)) for index in range(THREADS)]

    def start(self) -> None:
        """Begin to submit."""
        for thread in self._threads:
            thread.start()

    def free_the_rest(self) -> None:
        """Let the last messages be submitted too."""
        self._rest_is_free.set()

    @property
    def is_submitting(self) -> bool:
        """Whether messages are left to submit."""
        return any(thread.is_alive() for thread in self._threads)

    @property
    def confirmed(self) -> int:
        """How many are confirmed."""
        return sum(future.done() and future.exception() is None for future in list(self.futures.values()))

    def join(self) -> None:
        """Wait until all are submitted."""
        for thread in self._threads:
            thread.join()

    def _submit(self, first: int) -> None:
        for number in range(first, MESSAGES, THREADS):
            if number >= MESSAGES - HELD_BACK:
                self._rest_is_free.wait()
            try:
                self.futures[number] = self._publisher.submit(Number(number=number), timeout=TIMEOUT)
            except PublishTimeout:
                self.not_sent.append(number)


def test_what_was_confirmed_is_in_the_queue_and_every_future_has_its_answer(
    own_broker: Broker, say: Callable[[str], None]
) -> None:
    declare(own_broker.amqp_url, [NUMBERS])
    own_broker.restart()  # RabbitMQ forgets what it confirmed when it is killed soon after a queue was declared
    with Publisher(own_broker.amqp_url) as publisher:
        service = Service(publisher)
        service.start()
        try:
            kills = _kill_repeatedly(own_broker, service)
        finally:
            service.free_the_rest()
            service.join()
        outcomes = {number: future.exception(TIMEOUT + 60) for number, future in service.futures.items()}
        assert publisher._pipeline.link.losses >= kills
    assert outcomes.keys() | set(service.not_sent) == set(range(MESSAGES))
    assert all(error is None or isinstance(error, PublishError) for error in outcomes.values())
    confirmed = {number for number, error in outcomes.items() if error is None}
    found = Counter(numbers(own_broker.amqp_url))
    assert confirmed <= found.keys()
    assert len(confirmed) > KILLS * WORK
    raised = Counter(type(error).__name__ for error in outcomes.values() if error is not None)
    raised["not sent"] = len(service.not_sent)
    say(
        f"{kills} kills: {len(confirmed):,} of {MESSAGES:,} confirmed and all of them there, "
        f"{found.total() - len(found):,} of them repeated; raised: {dict(raised)}"
    )


def _kill_repeatedly(broker: Broker, service: Service) -> int:
    """Kill the broker and start it again, while messages are submitted; returns how often."""
    kills = 0
    while kills < KILLS or (LONG and service.is_submitting):
        _wait_for_work(service, may_end=kills >= KILLS)
        broker.kill()
        broker.start()
        kills += 1
        if kills == KILLS:
            service.free_the_rest()
    return kills


def _wait_for_work(service: Service, *, may_end: bool) -> None:
    """Wait until the broker has been back for a while and has worked, or, if it *may_end*, all is submitted."""
    back, confirmed = time.monotonic(), service.confirmed

    def is_under_way() -> bool:
        worked = time.monotonic() - back >= PERIOD and service.confirmed > confirmed + WORK
        return worked or (may_end and not service.is_submitting)

    until(is_under_way, deadline=180, what="work to be under way")
