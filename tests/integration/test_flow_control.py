"""Circuit breakers, rates and pauses in a worker, against a real broker."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ackline.consumers import Batch, Breaker, Context, Reject, fixed, registered
from ackline.infra import wire
from ackline.infra.names import DEAD
from ackline.infra.settings import Settings
from ackline.infra.topology import ConsumerQueue, declare
from ackline.producer import Publisher, message
from tests.amqp import Client
from tests.broker import Vhost
from tests.documented import load, write_files
from tests.gated import Gate, Gated
from tests.roles import role, run
from tests.waiting import until
from tests.working import consumer_of, working


@message("test.flow.order")
class Order(BaseModel):
    number: int = 0


def _publish(publisher: Publisher, *numbers: int) -> None:
    for future in [publisher.submit(Order(number=number), timeout=90) for number in numbers]:
        future.result(90)


def _down() -> ConnectionError:
    return ConnectionError("connection refused")


# --- breaker -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "async", "batch", "async batch"])
def test_while_the_dependency_is_down_no_attempt_is_counted_and_all_is_handled_when_it_is_back(
    vhost: Vhost, publisher: Publisher, client: Client, kind: str
) -> None:
    up = threading.Event()
    tries = Counter[int]()
    handled: dict[int, int] = {}

    def one(order: Order, ctx: Context) -> None:
        tries[order.number] += 1
        if not up.is_set():
            raise _down()
        handled[order.number] = ctx.attempt

    def many(orders: list[Order], contexts: list[Context]) -> None:
        for order, ctx in zip(orders, contexts, strict=True):
            one(order, ctx)

    async def aone(order: Order, ctx: Context) -> None:
        one(order, ctx)

    async def amany(orders: list[Order], contexts: list[Context]) -> None:
        many(orders, contexts)

    handlers: dict[str, Callable[..., Any]] = {"plain": one, "async": aone, "batch": many, "async batch": amany}
    batch = Batch(size=5) if "batch" in kind else None
    breaker = Breaker(on=(ConnectionError,), failures=1, probe="50ms")
    policy = fixed(attempts=1)  # so that one counted attempt would be one dead letter
    billing = consumer_of("billing", handlers[kind], Order, retry=policy, breaker=breaker, batch=batch)
    with working(vhost.amqp_url, billing):
        _publish(publisher, *range(30))
        until(lambda: sum(tries.values()) > 50, what="probes")
        assert client.ready(DEAD) == 0
        up.set()
        until(lambda: len(handled) == 30, what="all of them handled")
    assert set(handled.values()) == {1}
    assert [client.ready(queue) for queue in ("billing", DEAD)] == [0, 0]


def test_while_the_circuit_is_open_the_messages_are_in_their_queue(
    vhost: Vhost, publisher: Publisher, client: Client
) -> None:
    began = Counter[int]()

    def charge(order: Order) -> None:
        began[order.number] += 1
        raise _down()

    breaker = Breaker(on=(ConnectionError,), failures=1, probe="1h")
    with working(vhost.amqp_url, consumer_of("billing", charge, Order, breaker=breaker), concurrency=1, prefetch=10):
        _publish(publisher, *range(50))
        until(lambda: began, what="the failure that opens it")
        until(lambda: client.consumers("billing") == 0, what="the subscription to end")
        until(lambda: client.ready("billing") + sum(began.values()) >= 50, what="the others to be given back")


def test_a_message_that_always_fails_so_ends_in_review_while_others_succeed(
    vhost: Vhost, publisher: Publisher, client: Client
) -> None:
    tries: list[int] = []

    def charge(order: Order, ctx: Context) -> None:
        if order.number < 0:
            tries.append(ctx.attempt)
            raise _down()

    breaker = Breaker(on=(ConnectionError,), failures=5, probe="50ms")
    billing = consumer_of("billing", charge, Order, retry=fixed(attempts=3, delay="1s"), breaker=breaker)
    with working(vhost.amqp_url, billing):
        _publish(publisher, -1)
        for number in range(3):  # one after each try
            until(lambda: len(tries) > number, what="another try")  # noqa: B023
            _publish(publisher, number)
        dead = until(lambda: client.take(DEAD), what="the dead letter")
    assert tries == [1, 2, 3]
    assert dead.headers[wire.REASON].startswith("failed after 3 attempts: ConnectionError")


def test_a_body_that_is_no_message_says_nothing_of_the_dependency(
    vhost: Vhost, publisher: Publisher, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    def charge(order: Order) -> None:
        if order.number == 0:
            raise _down()

    breaker = Breaker(on=(ConnectionError,), failures=1, probe="50ms")
    caplog.set_level(logging.DEBUG, "ackline.consumers.breaker")
    with working(vhost.amqp_url, consumer_of("billing", charge, Order, breaker=breaker), concurrency=1):
        _publish(publisher, 0)
        until(lambda: "the circuit is open" in caplog.text)
        for _ in range(3):
            client.publish("ackline.messages", "test.flow.order", b"no JSON")
        until(lambda: client.ready(DEAD) == 3, what="them in review")
        assert "closed again" not in caplog.text
        _publish(publisher, 1)
        until(lambda: "closed again" in caplog.text)


@pytest.mark.timeout(900)
def test_a_circuit_that_opens_often_dead_letters_nothing_by_giving_back(
    vhost: Vhost, publisher: Publisher, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Brokers before 4.3 count what is given back, and dead-letter at the twentieth time."""
    handled: list[int] = []
    calls: list[int] = []

    def charge(order: Order) -> None:
        calls.append(order.number)
        if len(calls) % 2:
            raise _down()
        handled.append(order.number)

    breaker = Breaker(on=(ConnectionError,), failures=1, probe="10ms")
    billing = consumer_of("billing", charge, Order, retry=fixed(attempts=1), breaker=breaker)
    _declare_and_fill(vhost, publisher, 80)
    with working(vhost.amqp_url, billing, concurrency=40, prefetch=80):  # so much is held from the first moment
        until(lambda: len(handled) == 80, deadline=600, what="all of them handled")
    assert sorted(handled) == list(range(80))
    assert caplog.text.count("the circuit is open") > 20
    assert [client.ready(queue) for queue in ("billing", DEAD)] == [0, 0]


def _declare_and_fill(vhost: Vhost, publisher: Publisher, count: int) -> None:
    declare(vhost.amqp_url, [ConsumerQueue("billing", ("test.flow.order",))])
    _publish(publisher, *range(count))


# --- rate --------------------------------------------------------------------------------------------------


def test_no_more_messages_begin_than_the_rate_allows(vhost: Vhost, publisher: Publisher, client: Client) -> None:
    handled: list[int] = []

    def charge(order: Order) -> None:
        handled.append(order.number)

    before = time.monotonic()
    with working(vhost.amqp_url, consumer_of("billing", charge, Order, rate=20.0)):
        _publish(publisher, *range(60))
        until(lambda: len(handled) == 60)
        took = time.monotonic() - before
    assert took >= (60 - 20) / 20
    assert client.ready("billing") == 0


def test_processes_share_a_rate(vhost: Vhost, publisher: Publisher) -> None:
    handled: list[int] = []

    def charge(order: Order) -> None:
        handled.append(order.number)

    before = time.monotonic()
    with working(vhost.amqp_url, consumer_of("billing", charge, Order, rate=20.0), processes=4):
        _publish(publisher, *range(15))
        until(lambda: len(handled) == 15)
        took = time.monotonic() - before
    assert took >= (15 - 5) / 5


def test_what_waits_for_its_turn_goes_back_when_the_worker_stops(
    vhost: Vhost, publisher: Publisher, client: Client
) -> None:
    handled: list[int] = []

    def charge(order: Order) -> None:
        handled.append(order.number)
        raise Reject("enough")

    with working(vhost.amqp_url, consumer_of("billing", charge, Order, rate=1 / 300)):
        _publish(publisher, *range(5))
        until(lambda: client.ready(DEAD) == 1)
    assert handled == [0]
    until(lambda: client.ready("billing") == 4, what="the others to be back in their queue")


# --- pauses ------------------------------------------------------------------------------------------------


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


def test_a_paused_consumer_finishes_what_runs_gives_back_the_rest_and_stays_paused_over_restarts(
    ackline_settings: Settings, gate: Gate, client: Client, publisher: Publisher
) -> None:
    settings = ackline_settings.model_copy(update={"app": ("tests.gated",)})
    arguments = ("worker", "--consumers", "gated", "--concurrency", "3", "--prefetch", "20")
    with role(settings, *arguments, **gate.environment) as worker:
        for number in range(20):
            publisher.publish(Gated(number=number), timeout=90)
        until(lambda: len(gate.begun) == 3, what="three that run")
        assert run(settings, "consumers", "pause", "gated").stdout == "gated: paused\n"
        until(lambda: client.ready("gated") == 17, what="what had not begun in its queue")
        gate.open()
        until(lambda: len(gate.done) == 3, what="what ran to be finished")
        assert worker.stop() == 0
        worker.start()  # it is ready, though it takes nothing
        assert client.consumers("gated") == 0
        assert client.ready("gated") == 17
        assert len(gate.begun) == 3
        assert run(settings, "consumers", "resume", "gated").stdout == "gated: resumed\n"
        until(lambda: len(gate.done) == 20, what="the rest to be handled")
        assert worker.stop() == 0
    assert (len(set(gate.done)), client.ready("gated"), client.ready(DEAD)) == (20, 0, 0)


# --- the page for handler authors --------------------------------------------------------------------------


def _example(section: str, name: str, folder: Path) -> Any:
    """A file of a section, imported."""
    write_files("handlers.md", section, folder)
    return load(folder / f"{name}.py")


@pytest.mark.usefixtures("own_registry")
def test_the_documented_circuit_breaker(
    vhost: Vhost, publisher: Publisher, client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shipping: Any = _example("Circuit breaker", "shipping", tmp_path)
    barcodes: set[bytes] = set()
    with socket.socket() as carrier:
        carrier.bind(("127.0.0.1", 0))
        shipping.CARRIER = carrier.getsockname()  # nobody listens there yet
        with working(vhost.amqp_url, registered()["shipping"]):
            for number in range(8):
                publisher.publish(shipping.ParcelPacked(barcode=str(number)), timeout=90)
            until(lambda: "shipping: the circuit is open (failures in a row: 5" in caplog.text)
            carrier.settimeout(90)
            carrier.listen(64)
            while len(barcodes) < 8:
                session, _ = carrier.accept()
                with session:
                    barcodes.add(session.recv(10))
    assert barcodes == {b"%d" % number for number in range(8)}
    assert [client.ready(queue) for queue in ("shipping", DEAD)] == [0, 0]


@pytest.mark.usefixtures("own_registry")
def test_the_documented_rate(
    vhost: Vhost, publisher: Publisher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newsletters: Any = _example("Rate limit", "newsletters", tmp_path)
    before = time.monotonic()
    with working(vhost.amqp_url, registered()["newsletters"]):
        due = [newsletters.NewsletterDue(address=f"<{n}>") for n in range(150)]
        for future in [publisher.submit(each, timeout=90) for each in due]:
            future.result(90)
        printed = ""
        while printed.count("<") < 150:
            printed += until(lambda: capsys.readouterr().out, what="more newsletters")
        assert time.monotonic() - before >= (150 - 100) / 100
