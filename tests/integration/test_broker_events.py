"""What the broker can do to a worker that consumes: each has one line in the log, and the consumer goes on.

Connections that are closed, queues and tiers that are deleted, and brokers that are restarted: see `test_worker` too.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import pytest
from pydantic import BaseModel

from ackline.consumers import Context
from ackline.infra.names import DEAD
from ackline.infra.running_broker import Broker
from ackline.infra.topology import ConsumerQueue, declare
from ackline.producer import Publisher, message
from tests.amqp import Client
from tests.broker import Vhost, fresh_vhost, own
from tests.connections import close, connections
from tests.patience import limit_deliveries
from tests.proxy import Proxy
from tests.rabbitmqctl import rabbitmqctl
from tests.waiting import until
from tests.working import consumer_of, working

pytestmark = pytest.mark.broker


@message("test.events.ordered")
class Ordered(BaseModel):
    number: int = 0


@message("test.events.paid")
class Paid(BaseModel):
    number: int = 0


@pytest.fixture
def publisher(vhost: Vhost) -> Iterator[Publisher]:
    with Publisher(vhost.amqp_url, name="test publishes") as connected:
        yield connected


@pytest.fixture(scope="module")
def rough_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker for the tests of this module: to start one takes longer than they do."""
    with own(tmp_path_factory.mktemp("rough") / "broker") as running:
        yield running


@pytest.fixture
def rough_url(rough_broker: Broker) -> Iterator[str]:
    """A fresh vhost of it."""
    with fresh_vhost(rough_broker) as fresh:
        yield fresh.amqp_url


def _publish(publisher: Publisher, *numbers: int) -> None:
    for future in [publisher.submit(Ordered(number=number), timeout=90) for number in numbers]:
        future.result(90)


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the worker has warned of. The test's own publisher warns of the same broker."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and not record.getMessage().startswith("test publishes")
    ]


def test_a_channel_that_the_broker_closes_is_opened_again(
    vhost: Vhost, client: Client, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    gate = threading.Event()

    def charge(order: Ordered) -> None:
        assert gate.wait(90)
        seen.append(order.number)

    with working(vhost.amqp_url, consumer_of("billing", charge, Ordered), concurrency=1) as worker:
        _publish(publisher, 1, 2)
        subscription = worker._runners["billing"].subscription
        until(lambda: subscription.unsettled == 2)
        channel = subscription._channel
        assert channel is not None
        worker.link.call(lambda: channel.basic_ack(1_000))  # a tag that never was
        until(lambda: subscription.generation == 1 and subscription.unsettled == 2, what="a new channel, with both")
        gate.set()
        until(lambda: set(seen) == {1, 2})
        _publish(publisher, 3)
        until(lambda: 3 in seen)
    assert seen.count(2) == 1, "it had not begun when its channel was closed"
    assert _said(caplog) == ["the channel of 'billing' was closed: PRECONDITION_FAILED - unknown delivery tag 1000"]
    assert client.ready("billing") == client.ready(DEAD) == 0


@pytest.mark.parametrize("subscribed_anew", [False, True])
def test_a_delivery_that_times_out_is_delivered_again_and_the_consumer_goes_on(
    rough_broker: Broker, rough_url: str, caplog: pytest.LogCaptureFixture, subscribed_anew: bool
) -> None:
    seen: list[int] = []
    hung, gate = threading.Event(), threading.Event()

    def charge(order: Ordered) -> None:
        if order.number == 0 and not hung.is_set():
            hung.set()
            assert gate.wait(200)
        seen.append(order.number)

    limit_deliveries(rough_broker, 3)
    with (
        working(rough_url, consumer_of("billing", charge, Ordered), concurrency=2) as worker,
        Publisher(rough_url) as publisher,
        Client(rough_url) as client,
    ):
        _publish(publisher, 0)
        until(hung.is_set)
        if subscribed_anew:  # so the delivery is of a subscription that we have ended
            worker.limit("billing", "test", 3)
        said = until(lambda: _said(caplog), what="the broker to lose patience")
        limit_deliveries(rough_broker, 1800)
        until(lambda: seen == [0], what="the message to be delivered again")
        _publish(publisher, *range(1, 50))
        until(lambda: sorted(seen) == list(range(50)), what="the consumer to go on")
        gate.set()
        until(lambda: sorted(seen) == [0, *range(50)], what="the end of the handler that hung")
        _publish(publisher, 50)
        until(lambda: 50 in seen, what="the consumer to go on, after an ack that came too late")
        generation = worker._runners["billing"].subscription.generation
    assert _said(caplog) == said
    if subscribed_anew or rough_broker.description.startswith("RabbitMQ 3."):
        assert len(said) == 1
        assert "the channel of 'billing' was closed: PRECONDITION_FAILED - delivery acknowledgement" in said[0]
    else:
        (line,) = said
        assert line.startswith("RabbitMQ ended the subscription of 'billing', as it does when a delivery has no answer")
        assert generation == 0, "what else was delivered on this channel would be delivered again, too"
    with Client(rough_url) as client:
        assert client.ready("billing") == client.ready(DEAD) == 0


def test_during_an_alarm_messages_are_handled_and_what_follows_from_them_waits(
    rough_broker: Broker, rough_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ackline.consumers.worker._CONFIRM_SECONDS", 0.5)
    caplog.set_level(logging.INFO)
    seen: list[int] = []
    gate = threading.Event()

    def charge(order: Ordered, ctx: Context) -> None:
        assert order.number == 0 or gate.wait(200)
        if order.number % 2 == 0:
            ctx.publish(Paid(number=order.number))
        seen.append(order.number)

    count = 100
    declare(rough_url, [ConsumerQueue("accounting", ("test.events.paid",))])
    with Client(rough_url) as client:
        with working(rough_url, consumer_of("billing", charge, Ordered), concurrency=2, prefetch=count) as worker:
            with Publisher(rough_url, name="test publishes") as publisher:
                _publish(publisher, *range(count))
            until(lambda: client.ready("accounting") == 1, what="the worker's publishing connection to be of use")
            rabbitmqctl(rough_broker, "set_vm_memory_high_watermark", "0")
            gate.set()
            until(lambda: len(seen) == count, what="every message to be handled during the alarm")
            unsettled = worker._runners["billing"].subscription
            until(lambda: unsettled.unsettled == count // 2 - 1, what="acks, but of those that enlisted something")
            assert client.ready("accounting") == 1
            rabbitmqctl(rough_broker, "set_vm_memory_high_watermark", "0.6")
            until(lambda: client.ready("accounting") >= count // 2, what="what follows from them")
            until(lambda: unsettled.unsettled == 0, what="their acks")
        assert client.ready("billing") == client.ready(DEAD) == 0
    assert len(seen) == count
    # What is sent just when it begins, or just before it ends, may have no confirm within half a second, as without it.
    (said,) = [line for line in _said(caplog) if "is connected but has not answered" not in line]
    assert said.startswith("worker publishes")
    assert said.endswith("RabbitMQ blocks publishing: low on memory")
    assert caplog.text.count("RabbitMQ takes messages again") == 1


def test_a_broker_that_dies_is_said_once_and_found_again(
    rough_broker: Broker, rough_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    billing = consumer_of("billing", lambda order: seen.append(order.number), Ordered)
    with working(rough_url, billing), Publisher(rough_url, name="test publishes") as publisher:
        began = time.monotonic()
        # RabbitMQ may not serve a queue that was killed in the first seconds of its life.
        while time.monotonic() - began < 4:
            _publish(publisher, 1)
        rough_broker.kill()
        until(lambda: _said(caplog), what="the worker to notice")
        rough_broker.start()
        _publish(publisher, 2)
        until(lambda: 2 in seen, what="the worker to consume again")
    lines = [line for line in _said(caplog) if "Connecting again until it answers." in line]
    assert len(lines) == 1
    assert lines[0].startswith("worker consumes")


def test_a_password_that_is_no_longer_right_is_said_once_and_tried_until_it_is(
    vhost: Vhost, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    user = f"worker-{uuid.uuid4().hex[:8]}"
    parts = urlsplit(vhost.amqp_url)
    url = urlunsplit(parts._replace(netloc=f"{user}:first@{parts.hostname}:{parts.port}"))
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    with vhost.api() as api:

        def password(value: str) -> None:
            api.put(f"/api/users/{user}", json={"password": value, "tags": ""}).raise_for_status()

        password("first")
        api.put(f"/api/permissions/{vhost.path}/{user}", json=everything).raise_for_status()
        try:
            with working(url, consumer_of("billing", lambda order: seen.append(order.number), Ordered)):
                password("second")
                _publish(publisher, 1)
                until(lambda: seen == [1], what="a message: nobody is asked for a password again while connected")
                # That one alone: those that declared the queue, and looked at it, are over, though they may be listed.
                close(vhost, until(lambda: connections(vhost, "worker consumes"), what="the connection to be listed"))
                until(lambda: len(_said(caplog)) == 2, what="the worker to be refused")
                _publish(publisher, 2)
                password("first")
                until(lambda: seen == [1, 2], what="the worker to be let in again")
        finally:
            api.delete(f"/api/users/{user}")
    lost, refused = _said(caplog)
    assert "CONNECTION_FORCED" in lost
    assert f"refused the user '{user}': wrong user or password in ACKLINE_AMQP_URL." in refused
    assert refused.endswith("Connecting again until it lets us in.")
    assert "first" not in caplog.text


def test_a_connection_on_which_nothing_arrives_is_given_up(
    vhost: Vhost,
    client: Client,
    publisher: Publisher,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ackline.infra.link.HEARTBEAT", 5)
    seen: list[int] = []
    billing = consumer_of("billing", lambda order: seen.append(order.number), Ordered)
    with Proxy(vhost.amqp_url) as network, working(network.url, billing):
        _publish(publisher, 1)
        until(lambda: seen == [1])
        network.cut()
        _publish(publisher, 2)
        said = until(lambda: _said(caplog), what="the worker to notice")
        until(lambda: client.consumers("billing") == 0, what="the broker to notice")
        network.mend()
        # The first one again, if its ack did not get through any more.
        until(lambda: set(seen) == {1, 2}, what="the worker to consume again")
    assert said[0].startswith("worker consumes")
    assert "missed heartbeats" in said[0]
    assert said[0].endswith("Connecting again until it answers.")
    assert len([line for line in _said(caplog) if "missed heartbeats" in line]) == 1
