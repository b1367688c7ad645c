"""How much a worker holds unacked, and what it does with more than one message at a time."""

from __future__ import annotations

import json
import threading

import pytest
from pydantic import BaseModel

from ackline.consumers import Batch, Context
from ackline.consumers.runner import FIRST_HELD
from ackline.consumers.worker import Worker
from ackline.infra.names import MESSAGES
from ackline.infra.topology import declare
from ackline.producer import message
from tests.amqp import Client
from tests.broker import Vhost
from tests.waiting import until
from tests.working import consumer_of, working

TYPE = "test.holding.counted"


@message(TYPE)
class Counted(BaseModel):
    number: int


def _publish(client: Client, *numbers: int) -> None:
    for number in numbers:
        client.publish(MESSAGES, TYPE, json.dumps({"number": number}).encode())


def _held(worker: Worker, consumer: str) -> int:
    return worker._runners[consumer].subscription.unsettled


def test_a_worker_begins_with_little_and_holds_more_while_handlers_are_quick(vhost: Vhost, client: Client) -> None:
    gate, seen = threading.Event(), [0]

    def count(counted: Counted) -> None:
        if not seen[0]:
            assert gate.wait(90)
        seen[0] += 1

    quick = consumer_of("quick", count, Counted)
    declare(vhost.amqp_url, [quick.queue])
    _publish(client, *range(100))
    with working(vhost.amqp_url, quick, concurrency=2, prefetch=300) as worker:
        until(lambda: _held(worker, "quick") == 2 * FIRST_HELD, what="it to hold a few")
        assert client.ready("quick") == 100 - 2 * FIRST_HELD
        gate.set()

        def held_at_most() -> int:
            _publish(client, 1)
            return worker._runners["quick"].subscription.prefetch

        until(lambda: held_at_most() == 300, what="it to hold as many as it may")


def test_a_worker_with_slow_handlers_leaves_the_queue_to_others(vhost: Vhost, client: Client) -> None:
    gate = threading.Event()
    seen: list[int] = []

    def quick_at_first(counted: Counted) -> None:
        seen.append(counted.number)
        if counted.number >= 1000:
            assert gate.wait(90)

    slow = consumer_of("slow", quick_at_first, Counted)
    with working(vhost.amqp_url, slow, concurrency=2, prefetch=300) as worker:

        def prefetch() -> int:
            _publish(client, len(seen))
            return worker._runners["slow"].subscription.prefetch

        until(lambda: prefetch() == 300, what="it to hold many")
        _publish(client, *range(1000, 1200))
        # The handlers that run now show that they are slow: what is held falls to what two of them need.
        until(lambda: worker._runners["slow"].subscription.prefetch < 10, what="it to hold few")
        gate.set()
    begun = sum(number >= 1000 for number in seen)
    until(lambda: client.ready("slow") + begun == 200, what="the rest to be back in the queue")


def test_what_is_limited_to_nothing_goes_back_and_comes_again_when_that_is_lifted(vhost: Vhost, client: Client) -> None:
    gate, begun = threading.Event(), threading.Event()
    seen: list[int] = []

    def wait(counted: Counted) -> None:
        begun.set()
        assert gate.wait(90)
        seen.append(counted.number)

    with working(vhost.amqp_url, consumer_of("limited", wait, Counted), concurrency=1) as worker:
        _publish(client, 1, 2, 3)
        assert begun.wait(90)
        worker.limit("limited", "a test", 0)
        worker.limit("limited", "another", 5)
        until(lambda: client.ready("limited") == 2, what="what had not begun to be back")
        _publish(client, 4)
        until(lambda: client.ready("limited") == 3, what="another, which nobody takes")
        gate.set()
        until(lambda: seen == [1], what="what had begun")
        worker.limit("limited", "another", None)
        assert client.ready("limited") == 3, "the other reason still holds"
        worker.limit("limited", "a test", None)
        until(lambda: sorted(seen) == [1, 2, 3, 4], what="the others")


def test_what_has_waited_here_for_long_is_given_back(vhost: Vhost, client: Client) -> None:
    gate, begun = threading.Event(), threading.Event()

    def wait(counted: Counted) -> None:
        begun.set()
        assert gate.wait(90)

    consumer = consumer_of("late", wait, Counted)
    with working(vhost.amqp_url, consumer, concurrency=1, consumer_timeout=0.4) as worker:
        _publish(client, 1, 2)
        assert begun.wait(90)
        again = until(lambda: _redelivered(worker), what="the second to be given back and delivered again")
        assert again
        gate.set()


def _redelivered(worker: Worker) -> bool:
    return any(delivery.redelivered for delivery in list(worker.pool._items) if not isinstance(delivery, list))


# --- batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_batch_handler_gets_many_at_once_and_what_lingers(vhost: Vhost, client: Client, kind: str) -> None:
    sizes: list[int] = []
    seen: list[int] = []

    def load(many: list[Counted], contexts: list[Context]) -> None:
        assert all(context.consumer == "load" for context in contexts)
        sizes.append(len(many))
        seen.extend(counted.number for counted in many)

    async def aload(many: list[Counted], contexts: list[Context]) -> None:
        load(many, contexts)

    handler = load if kind == "plain" else aload
    consumer = consumer_of("load", handler, Counted, batch=Batch(50, "1s"))
    declare(vhost.amqp_url, [consumer.queue])
    _publish(client, *range(120))
    with working(vhost.amqp_url, consumer, concurrency=1):
        until(lambda: len(seen) == 120, what="all of them")
    assert sorted(seen) == list(range(120))
    assert max(sizes) == 50
    assert len(sizes) <= 10
    assert client.ready("load") == 0


def test_a_stopped_worker_gives_back_what_waits_for_its_batch(vhost: Vhost, client: Client) -> None:
    def load(many: list[Counted]) -> None:
        raise AssertionError("the batch is not full, and has not waited for long enough")

    with working(vhost.amqp_url, consumer_of("load", load, Counted, batch=Batch(50, "1h"))) as worker:
        _publish(client, 1, 2, 3)
        until(lambda: _held(worker, "load") == 3, what="them to arrive")
    until(lambda: client.ready("load") == 3, what="them to be back in the queue")


# --- bytes -------------------------------------------------------------------------------------------------


def test_a_handler_of_bytes_gets_every_body_as_it_came(vhost: Vhost, client: Client) -> None:
    seen: list[tuple[str, bytes]] = []

    def keep(body: bytes, ctx: Context) -> None:
        seen.append((ctx.type, body))

    archive = consumer_of("archive", keep, types={"test.holding.*": None}, takes_bytes=True)
    with working(vhost.amqp_url, archive):
        client.publish(MESSAGES, TYPE, b"\xff not JSON")
        client.publish(MESSAGES, "test.holding.unknown", b"")
        until(lambda: len(seen) == 2, what="both")
    assert sorted(seen) == [(TYPE, b"\xff not JSON"), ("test.holding.unknown", b"")]
