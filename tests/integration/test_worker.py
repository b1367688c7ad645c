"""The worker against a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from pydantic import BaseModel

from ackline.consumers import Context, Reject, RetryLater, fixed
from ackline.consumers.context import child_id
from ackline.consumers.delivery import Delivery
from ackline.consumers.subscription import Subscription
from ackline.consumers.worker import Worker
from ackline.infra import wire
from ackline.infra.link import BrokerRefused, Link
from ackline.infra.names import DEAD, MESSAGES, OUTCOMES, RETURN
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings, process_name
from ackline.infra.topology import ConsumerQueue, declare
from ackline.producer import Publisher, message
from tests.amqp import Client, Taken
from tests.broker import Vhost
from tests.connections import close, connections
from tests.gated import Gate
from tests.roles import STOP_SECONDS, RoleProcess, role, run
from tests.waiting import until
from tests.working import consumer_of, working

APP = "tests.gated"
#: Seconds that are longer than any test may take.
NEVER = 10_000.0


@message("test.worker.ordered")
class Ordered(BaseModel):
    number: int = 0


@message("test.worker.paid")
class Paid(BaseModel):
    number: int = 0


TYPE = "test.worker.ordered"


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


def _publish(publisher: Publisher, *numbers: int) -> None:
    for future in [publisher.submit(Ordered(number=number), timeout=90) for number in numbers]:
        future.result(90)


def _dead_letter(client: Client) -> Taken:
    return until(lambda: client.take(DEAD), what="a dead letter")


# --- handling ----------------------------------------------------------------------------------------------


def test_what_is_handled_is_acked(vhost: Vhost, client: Client, publisher: Publisher) -> None:
    seen: list[int] = []

    def charge(order: Ordered) -> None:
        seen.append(order.number)

    with working(vhost.amqp_url, consumer_of("billing", charge, Ordered)):
        _publish(publisher, *range(300))
        until(lambda: len(seen) == 300, what="all of them to be handled")
    # What had not been acked would be there again, now that the worker has closed its channel.
    assert client.ready("billing") == 0
    assert sorted(seen) == list(range(300))


def test_async_handlers_run_at_once_on_one_event_loop(vhost: Vhost, client: Client, publisher: Publisher) -> None:
    here: list[int] = []
    together = asyncio.Event()

    async def charge(order: Ordered) -> None:
        here.append(order.number)
        if len(here) == 3:
            together.set()
        await asyncio.wait_for(together.wait(), 90)

    done: list[int] = []

    async def wrapped(order: Ordered, ctx: Context) -> None:
        await charge(order)
        done.append(ctx.attempt)

    with working(vhost.amqp_url, consumer_of("billing", wrapped, Ordered), concurrency=3):
        _publish(publisher, 1, 2, 3)
        until(lambda: done == [1, 1, 1], what="three handlers that wait for each other")
    assert client.ready("billing") == 0


def test_one_consumer_takes_several_types(vhost: Vhost, publisher: Publisher) -> None:
    seen: list[BaseModel] = []

    def audit(event: Ordered | Paid) -> None:
        seen.append(event)

    with working(vhost.amqp_url, consumer_of("audit", audit, Ordered, Paid), concurrency=1):
        publisher.publish(Ordered(number=1))
        publisher.publish(Paid(number=2))
        until(lambda: seen == [Ordered(number=1), Paid(number=2)])


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_whatever_an_async_handler_raises_the_next_one_runs(
    vhost: Vhost, publisher: Publisher, client: Client, error: type[BaseException]
) -> None:
    seen: list[int] = []

    async def charge(order: Ordered) -> None:
        if order.number == 0:
            raise error
        seen.append(order.number)

    charging = consumer_of("billing", charge, Ordered, retry=fixed(attempts=1))
    with working(vhost.amqp_url, charging, concurrency=1):
        _publish(publisher, 0, 1)
        until(lambda: seen == [1], what="the message after it")
    assert error.__name__ in _dead_letter(client).headers[wire.REASON]


def test_a_handler_that_hides_that_it_is_async_is_not_taken_for_done(
    vhost: Vhost, publisher: Publisher, client: Client
) -> None:
    async def charge(order: Ordered) -> None:
        raise AssertionError("never awaited")

    @functools.wraps(charge)
    def decorated(order: Ordered) -> Any:
        return charge(order)

    hidden = consumer_of("billing", decorated, Ordered, retry=fixed(attempts=1))
    with working(vhost.amqp_url, hidden):
        _publish(publisher, 1)
        reason = _dead_letter(client).headers[wire.REASON]
    assert "returned a coroutine that nobody awaits" in reason


def test_a_slow_message_holds_up_no_acks_of_later_ones(vhost: Vhost, client: Client, publisher: Publisher) -> None:
    seen: list[int] = []
    gate = threading.Event()

    def charge(order: Ordered) -> None:
        if order.number == 0:
            gate.wait(200)
        seen.append(order.number)

    # With their acks held up, a prefetch of 10 would end after nine others.
    with working(vhost.amqp_url, consumer_of("billing", charge, Ordered), concurrency=2, prefetch=10):
        _publish(publisher, *range(40))
        until(lambda: len(seen) == 39, what="all but the slow one")
        assert 0 not in seen
        gate.set()
    assert client.ready("billing") == 0
    assert sorted(seen) == list(range(40))


# --- retries and dead letters ------------------------------------------------------------------------------


def test_a_retry_comes_back_after_its_delay_and_to_the_consumer_that_failed_alone(
    vhost: Vhost, publisher: Publisher, client: Client
) -> None:
    tries: list[tuple[int, float]] = []
    others: list[int] = []

    def charge(order: Ordered, ctx: Context) -> None:
        tries.append((ctx.attempt, time.monotonic()))
        if ctx.attempt == 1:
            raise ValueError("not now")

    def ship(order: Ordered, ctx: Context) -> None:
        others.append(ctx.attempt)

    with working(
        vhost.amqp_url,
        consumer_of("billing", charge, Ordered, retry=fixed(attempts=2, delay="1s")),
        consumer_of("shipping", ship, Ordered),
    ):
        publisher.publish(Ordered())
        until(lambda: len(tries) == 2 and others, what="the second attempt, and the other consumer's")
    (first, begun), (second, again) = tries
    assert (first, second) == (1, 2)
    assert again - begun >= 1.0
    assert others == [1]
    assert [client.ready(queue) for queue in ("billing", "shipping", DEAD)] == [0, 0, 0]


def test_what_fails_as_often_as_it_may_is_a_dead_letter_that_tells_everything(
    vhost: Vhost, publisher: Publisher, client: Client
) -> None:
    tries: list[int] = []

    def charge(order: Ordered, ctx: Context) -> None:
        tries.append(ctx.attempt)
        raise ValueError(f"no such account, try {ctx.attempt}")

    with working(vhost.amqp_url, consumer_of("billing", charge, Ordered, retry=fixed(attempts=2, delay="1s"))):
        receipt = publisher.publish(Ordered(number=7), correlation_id="call-7", headers={"tenant": "acme"})
        dead = _dead_letter(client)
    assert tries == [1, 2]
    assert json.loads(dead.body) == {"number": 7}
    assert (dead.properties.message_id, dead.properties.type, dead.properties.correlation_id) == (
        receipt.message_id,
        TYPE,
        "call-7",
    )
    headers = dead.headers
    assert headers[wire.REASON] == "failed after 2 attempts: ValueError: no such account, try 2"
    assert headers[wire.TRACEBACK].endswith("ValueError: no such account, try 2\n")
    assert (headers[wire.CONSUMER], headers[wire.ATTEMPT], headers["tenant"]) == ("billing", 2, "acme")
    assert headers[wire.ORIGINAL] == {"exchange": MESSAGES, "routing_key": TYPE}
    first, second = json.loads(headers[wire.HISTORY])
    assert (first["attempt"], first["error"], first["message"]) == (1, "ValueError", "no such account, try 1")
    assert (second["attempt"], second["worker"]) == (2, process_name())
    waited = datetime.fromisoformat(second["at"]) - datetime.fromisoformat(first["at"])
    assert waited.total_seconds() >= 1.0
    assert not [name for name in headers if "death" in name]  # brokers before 4.0.1 take them for a cycle
    assert client.ready("billing") == 0


def test_reject_goes_to_review_at_once(vhost: Vhost, publisher: Publisher, client: Client) -> None:
    def charge(order: Ordered) -> None:
        raise Reject("the account is closed")

    with working(vhost.amqp_url, consumer_of("billing", charge, Ordered)):
        publisher.publish(Ordered())
        dead = _dead_letter(client)
    assert (dead.headers[wire.REASON], dead.headers[wire.ATTEMPT]) == ("the account is closed", 1)


def test_retry_later_waits_as_long_as_the_handler_says(vhost: Vhost, publisher: Publisher) -> None:
    tries: list[float] = []

    def charge(order: Ordered) -> None:
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise RetryLater("1s")

    with working(vhost.amqp_url, consumer_of("billing", charge, Ordered, retry=fixed(delay="1h"))):
        publisher.publish(Ordered())
        until(lambda: len(tries) == 2, what="the second attempt")
    assert tries[1] - tries[0] >= 1.0


def test_headers_that_leave_no_room_for_the_failure_reach_review_by_the_broker(
    vhost: Vhost, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []

    def charge(order: Ordered, ctx: Context) -> None:
        tries.append(len(ctx.headers["wide"]))
        raise ValueError("no")

    with working(vhost.amqp_url, consumer_of("billing", charge, Ordered)):
        client.publish(MESSAGES, TYPE, b"{}", message_id="m-1", headers={"wide": "x" * 130_700})
        until(lambda: client.ready(DEAD) == 1, what="the dead letter")
    assert tries == [130_700]
    assert "the headers of m-1 leave no room for ours" in caplog.text
    assert client.ready("billing") == 0


def test_what_no_handler_takes_is_in_review_and_the_worker_goes_on(vhost: Vhost, client: Client) -> None:
    seen: list[int] = []

    def charge(order: Ordered) -> None:
        seen.append(order.number)

    with working(vhost.amqp_url, consumer_of("billing", charge, Ordered)):
        client.publish(MESSAGES, TYPE, b"not JSON")
        client.publish(MESSAGES, TYPE, b"{}", type="another")
        client.publish(MESSAGES, TYPE, b'{"number": 3}')
        reasons = {_dead_letter(client).headers[wire.REASON] for _ in range(2)}
        until(lambda: seen == [3])
    assert reasons == {
        "the body is not JSON: expected ident at line 1 column 2",
        f"its type says 'another', but it was published as '{TYPE}': billing takes {TYPE}",
    }


# --- what handlers publish ---------------------------------------------------------------------------------


def test_what_a_handler_publishes_is_sent_once_it_succeeds_under_an_id_that_a_repetition_shares(
    vhost: Vhost, publisher: Publisher, client: Client
) -> None:
    ids: list[str] = []

    def charge(order: Ordered, ctx: Context) -> None:
        ids.append(ctx.publish(Paid(number=order.number)))
        if len(ids) == 1:
            raise ValueError("after it was enlisted")

    declare(vhost.amqp_url, [ConsumerQueue("accounting", ("test.worker.paid",))])
    with working(vhost.amqp_url, consumer_of("billing", charge, Ordered)):
        publisher.publish(Ordered(number=7), message_id="m-1")
        until(lambda: client.ready("accounting") == 1, what="the message that the second attempt published")
        # The broker may deliver twice what it delivered once: what follows has the same id then.
        publisher.publish(Ordered(number=7), message_id="m-1")
        until(lambda: client.ready("accounting") == 2, what="its repetition")
    assert ids == [child_id("m-1", "billing", 0)] * 3
    found = [client.take("accounting") for _ in range(2)]
    assert [taken and (taken.properties.message_id, json.loads(taken.body)) for taken in found] == [
        (ids[0], {"number": 7})
    ] * 2


def test_a_message_is_not_acked_before_what_its_handler_published_is_confirmed(
    vhost: Vhost, publisher: Publisher, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    def charge(order: Ordered, ctx: Context) -> None:
        client_of_the_handler.delete_exchange(MESSAGES)
        ctx.publish(Paid(number=order.number))

    accounting = ConsumerQueue("accounting", ("test.worker.paid",))
    billing = consumer_of("billing", charge, Ordered)
    declare(vhost.amqp_url, [accounting])
    with Client(vhost.amqp_url) as client_of_the_handler:
        with working(vhost.amqp_url, billing, grace_seconds=0.2):
            publisher.publish(Ordered())
            until(lambda: "is not confirmed, so it stays unacked" in caplog.text)
        until(lambda: client.ready("billing") == 1, what="the message, which the worker gave back unacked")

        assert client.ready("accounting") == 0


def test_a_message_is_not_acked_before_all_that_follows_from_it_is_confirmed(
    vhost: Vhost, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    def charge(order: Ordered, ctx: Context) -> None:
        ctx.publish(Paid(number=order.number))

    declare(vhost.amqp_url, [ConsumerQueue("accounting", ("test.worker.paid",))])
    with working(vhost.amqp_url, consumer_of("billing", charge, Ordered), grace_seconds=0.2):
        client.delete_exchange(OUTCOMES)  # where it reports that a redriven message was handled
        client.publish(RETURN, "billing", b"{}", type=TYPE, headers={wire.REDRIVE: "r-1"})
        until(lambda: client.ready("accounting") >= 1, what="what the handler published")
        until(lambda: "are not confirmed, so their messages stay unacked" in caplog.text)
    until(lambda: client.ready("billing") == 1, what="the message, which the worker gave back unacked")


# --- stopping ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _gated_worker(settings: Settings, gate: Gate, *options: str, **more: str) -> Iterator[RoleProcess]:
    with_app = settings.model_copy(update={"app": (APP,)})
    with role(with_app, "worker", "--consumers", "gated", *options, **gate.environment, **more) as process:
        yield process


def _publish_gated(client: Client, *numbers: int) -> None:
    for number in numbers:
        client.publish(MESSAGES, "test.gated", json.dumps({"number": number}).encode())


def test_sigterm_finishes_what_runs_and_gives_back_the_rest_in_order_without_an_attempt(
    ackline_settings: Settings, client: Client, gate: Gate, broker: Broker
) -> None:
    patient = ackline_settings.model_copy(update={"grace_seconds": NEVER})
    with _gated_worker(patient, gate, "--concurrency", "1", "--prefetch", "4") as worker:
        _publish_gated(client, 1, 2, 3, 4, 5, 6)
        until(lambda: gate.begun == [1] and client.ready("gated") == 4, what="the worker to hold two of six")
        assert worker.process is not None
        worker.process.send_signal(signal.SIGTERM)
        until(lambda: client.ready("gated") == 5, what="what was not begun to be given back while one still runs")
        assert worker.alive
        gate.open()
        assert worker.process.wait(STOP_SECONDS) == 0
    assert gate.begun == gate.done == [1]
    left = [client.take("gated") for _ in range(6)]
    assert [json.loads(taken.body)["number"] for taken in left if taken] == [2, 3, 4, 5, 6]
    if not broker.description.startswith("RabbitMQ 3."):  # before 4.0 a nack counts as a delivery
        assert [taken.headers.get("x-delivery-count", 0) for taken in left if taken] == [0] * 5


@pytest.mark.parametrize("consumer", ["gated", "gated-async"])
def test_a_handler_that_runs_longer_than_the_grace_is_left_and_its_message_delivered_again(
    ackline_settings: Settings, client: Client, gate: Gate, consumer: str
) -> None:
    impatient = ackline_settings.model_copy(update={"app": (APP,), "grace_seconds": 0.5})
    with role(impatient, "worker", "--consumers", consumer, **gate.environment) as worker:
        client.publish(MESSAGES, f"test.{consumer.replace('-', '.')}", b'{"number": 1}')
        until(lambda: gate.begun == [1])
        assert worker.stop() == 0
        assert "1 deliveries did not finish in 0.5 s; they go back to their queues" in worker.log.read_text()
        assert "Traceback" not in worker.log.read_text()
    assert gate.done == []
    again = until(lambda: client.take(consumer), what="the message")
    assert again.redelivered


def test_a_second_sigterm_ends_the_worker_at_once(ackline_settings: Settings, client: Client, gate: Gate) -> None:
    patient = ackline_settings.model_copy(update={"grace_seconds": NEVER})
    with _gated_worker(patient, gate, "--concurrency", "1") as worker:
        _publish_gated(client, 1, 2)
        until(lambda: gate.begun == [1] and client.ready("gated") == 0)
        assert worker.process is not None
        worker.process.send_signal(signal.SIGTERM)
        until(lambda: client.ready("gated") == 1, what="the worker to give back what was not begun")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(STOP_SECONDS) == -signal.SIGTERM
    until(lambda: client.ready("gated") == 2, what="the other message, which the broker takes back")


def test_a_worker_that_finds_no_broker_waits_for_one_and_stops_when_told(
    ackline_settings: Settings, gate: Gate
) -> None:
    nowhere = ackline_settings.model_copy(update={"app": (APP,), "amqp_url": "amqp://guest:guest@127.0.0.1:1/"})
    worker = RoleProcess(nowhere, "worker", **gate.environment)
    waiting = threading.Thread(target=_start_in_vain, args=(worker,))
    waiting.start()
    try:
        until(lambda: worker.log.exists() and "Connecting again until it answers" in worker.log.read_text())
        assert worker.stop() == 0
    finally:
        worker.kill()
        waiting.join(90)
    assert "Traceback" not in worker.log.read_text()


def _start_in_vain(worker: RoleProcess) -> None:
    with contextlib.suppress(AssertionError):  # it never gets ready
        worker.start()


# --- losing the connection, the broker, a queue, a tier ----------------------------------------------------


@pytest.mark.parametrize("which", ["worker consumes", "worker publishes", "worker"])
def test_connections_closed_in_the_middle_lose_nothing(
    vhost: Vhost, client: Client, publisher: Publisher, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    seen: Counter[int] = Counter()
    count = 400
    closed = threading.Event()

    def charge(order: Ordered, ctx: Context) -> None:
        if order.number > count // 2:
            closed.wait(200)
        seen[order.number] += 1
        ctx.publish(Paid(number=order.number))
        time.sleep(0.005)

    declare(vhost.amqp_url, [ConsumerQueue("accounting", ("test.worker.paid",))])
    with working(vhost.amqp_url, consumer_of("billing", charge, Ordered), concurrency=4, prefetch=50):
        _publish(publisher, 0)  # the worker opens its publishing connection when it first needs it
        named = 2 if which == "worker" else 1
        until(lambda: len(connections(vhost, which)) == named, what="the connections to be listed")
        _publish(publisher, *range(1, count))
        until(lambda: len(seen) >= 20)
        close(vhost, connections(vhost, which))
        closed.set()
        until(lambda: len(seen) == count, what="every message to be handled")
    assert client.ready("billing") == 0
    assert client.ready(DEAD) == 0
    children = [json.loads(taken.body)["number"] for taken in iter(lambda: client.take("accounting"), None)]
    assert set(children) == set(range(count))
    assert caplog.text.count("CONNECTION_FORCED - Closed via management plugin") == named
    assert "the channel of" not in caplog.text, "the broker found fault with an ack"
    assert sum(seen.values()) - count <= 50


def test_a_handler_that_outlives_its_connection_does_not_ack_what_came_after_it(
    vhost: Vhost, client: Client, publisher: Publisher
) -> None:
    gates = [threading.Event(), threading.Event()]
    begun: list[threading.Event] = []
    ended: list[threading.Event] = []

    def charge(order: Ordered) -> None:
        gate = gates[len(begun)]
        begun.append(gate)
        gate.wait(200)
        ended.append(gate)

    with working(vhost.amqp_url, consumer_of("billing", charge, Ordered), concurrency=2, prefetch=1, grace_seconds=0.1):
        publisher.publish(Ordered())
        until(lambda: begun)
        until(lambda: connections(vhost, "worker consumes"), what="the connection to be listed")
        close(vhost, connections(vhost, "worker consumes"))
        until(lambda: len(begun) == 2, what="the message to be delivered again")
        gates[0].set()  # its delivery had the tag 1 as well, on a channel that is no more
        until(lambda: ended)
        publisher.publish(Ordered())
        # With the first one acked by mistake, the prefetch of 1 would let the second one through.
        assert client.ready("billing") == 1
    until(lambda: client.ready("billing") == 2, what="the message whose second handling did not end")
    gates[1].set()


def test_a_subscription_that_is_opened_while_it_opens_consumes_once(vhost: Vhost, client: Client) -> None:
    billing = consumer_of("billing", print, Ordered)
    declare(vhost.amqp_url, [billing.queue])
    delivered: list[Delivery] = []
    began: list[bool] = []

    def open_twice(connection: Any) -> None:
        subscription.open(connection)
        subscription.open(connection)

    link = Link(vhost.amqp_url, "test", on_up=open_twice)
    subscription = Subscription(
        billing.name,
        link,
        prefetch=10,
        deliver=delivered.extend,
        consuming=lambda: began.append(True),
    )
    link.start()
    try:
        until(lambda: began)
        for _ in range(20):
            client.publish(MESSAGES, TYPE, b"{}")
        until(lambda: client.ready("billing") <= 10)
        # Tags are counted by each channel: with a second one the same tag would name two messages.
        until(lambda: len(delivered) >= 10)
        assert [delivery.tag for delivery in delivered] == list(range(1, 11))
        assert client.consumers("billing") == 1
    finally:
        link.stop()


def test_a_restarted_broker_finds_the_worker_again(own_broker: Broker) -> None:
    seen: list[int] = []

    def charge(order: Ordered) -> None:
        seen.append(order.number)

    billing = consumer_of("billing", charge, Ordered)
    with Publisher(own_broker.amqp_url) as publisher, working(own_broker.amqp_url, billing):
        began, sent = time.monotonic(), 0
        # RabbitMQ 3.10 may not serve a queue that was restarted in the first seconds of its life.
        while time.monotonic() - began < 3:
            sent += 1
            publisher.publish(Ordered(number=sent), timeout=60)
        until(lambda: len(seen) >= sent)
        own_broker.restart()
        publisher.publish(Ordered(number=0), timeout=120)
        until(lambda: 0 in seen, what="the worker to consume again")


def test_a_queue_that_is_deleted_by_hand_holds_up_no_other_and_is_consumed_when_it_is_there_again(
    vhost: Vhost,
    client: Client,
    publisher: Publisher,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ackline.consumers.subscription.REOPEN_SECONDS", 0.05)
    caplog.set_level(logging.INFO)
    charged: list[int] = []
    shipped: list[int] = []
    billing = consumer_of("billing", lambda order: charged.append(order.number), Ordered)
    shipping = consumer_of("shipping", lambda order: shipped.append(order.number), Ordered)
    with working(vhost.amqp_url, billing, shipping):
        _publish(publisher, 0)
        until(lambda: charged == shipped == [0])
        client.delete_queue("billing")
        until(lambda: "the queue 'billing' is gone" in caplog.text)
        for number in range(1, 200):  # long enough for it to look for the queue several times
            _publish(publisher, number)
        until(lambda: len(shipped) == 200, what="the other consumer to go on")
        assert caplog.text.count("the queue 'billing' is gone") == 1
        assert charged == [0]
        declare(vhost.amqp_url, [billing.queue])
        _publish(publisher, 200)
        until(lambda: charged == [0, 200], what="the queue to be consumed again")
    assert "the queue 'billing' is there again; consuming" in caplog.text
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


@pytest.mark.parametrize("missing", ["queue", "exchange"])
def test_without_its_retry_tier_a_message_stays_unacked_until_the_tier_is_there_again(
    vhost: Vhost, client: Client, publisher: Publisher, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    tries: Counter[int] = Counter()

    def charge(order: Ordered, ctx: Context) -> None:
        tries[order.number] = ctx.attempt
        if order.number == 0 and ctx.attempt == 1:
            raise ValueError("not now")

    billing = consumer_of("billing", charge, Ordered, retry=fixed(attempts=2, delay="1s"))
    with working(vhost.amqp_url, billing):
        client.delete_queue("ackline.retry.1s")
        if missing == "exchange":
            client.delete_exchange("ackline.retry.1s")
        _publish(publisher, 0, 1, 2)
        until(lambda: set(tries) == {0, 1, 2}, what="the others to be handled")
        until(lambda: "is not confirmed, so it stays unacked" in caplog.text)
        assert [client.ready(queue) for queue in ("billing", DEAD)] == [0, 0]
        declare(vhost.amqp_url, [billing.queue])
        until(lambda: tries[0] == 2, what="the second attempt")
    assert [client.ready(queue) for queue in ("billing", DEAD, "ackline.retry.1s")] == [0, 0, 0]


def test_a_message_that_waits_for_its_tier_goes_back_to_its_queue_when_the_worker_stops(
    vhost: Vhost, client: Client, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    def charge(order: Ordered) -> None:
        raise ValueError("not now")

    with working(vhost.amqp_url, consumer_of("billing", charge, Ordered), grace_seconds=0.1):
        client.delete_queue("ackline.retry.1s")
        _publish(publisher, 0)
        until(lambda: "is not confirmed, so it stays unacked" in caplog.text)
    until(lambda: client.ready("billing") == 1, what="the message")


# --- starting ----------------------------------------------------------------------------------------------


def _with_password(url: str, password: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.username}:{password}@{parts.hostname}:{parts.port}"))


def test_a_wrong_password_is_one_sentence_and_an_exit_code(ackline_settings: Settings, gate: Gate) -> None:
    wrong = ackline_settings.model_copy(
        update={"app": (APP,), "amqp_url": _with_password(ackline_settings.broker, "wrong")}
    )
    done = run(wrong, "worker")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ackline: RabbitMQ at 127.0.0.1:")
    assert done.stderr.splitlines()[-1].endswith("wrong user or password in ACKLINE_AMQP_URL.")
    assert "Traceback" not in done.stderr
    assert "wrong@" not in done.stderr


def test_a_refusal_at_the_start_is_what_run_raises(vhost: Vhost) -> None:
    worker = Worker([], url=_with_password(vhost.amqp_url, "wrong"))
    with pytest.raises(BrokerRefused, match="wrong user or password"):
        worker.run()


def test_a_queue_with_other_properties_is_one_sentence_and_an_exit_code(
    ackline_settings: Settings, client: Client, gate: Gate
) -> None:
    client.declare_queue("gated", **{"x-queue-type": "classic"})
    done = run(ackline_settings.model_copy(update={"app": (APP,)}), "worker")
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("ackline: The queue 'gated' exists with other properties than Ackline's")
    assert "`ackline topology diff` names them" in said
    assert "Traceback" not in done.stderr


def test_a_consumer_that_does_not_exist_is_one_sentence_and_an_exit_code(
    ackline_settings: Settings, gate: Gate
) -> None:
    done = run(ackline_settings.model_copy(update={"app": (APP,)}), "worker", "--consumers", "gated,typo")
    assert (done.returncode, done.stderr) == (
        2,
        "ackline: There is no consumer typo; the application has gated, gated-async.\n",
    )


def test_a_worker_of_some_consumers_leaves_the_others_alone(
    ackline_settings: Settings, client: Client, gate: Gate
) -> None:
    with _gated_worker(ackline_settings, gate):
        assert client.consumers("gated") == 1
        assert not client.exists("gated-async")
