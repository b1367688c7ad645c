"""The publisher against a real broker: what it confirms is there, and for everything else it says what is known."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from pydantic import BaseModel

from ackline.infra.broker import launch
from ackline.infra.names import MESSAGES, UNROUTED
from ackline.infra.properties import PERSISTENT, Properties
from ackline.infra.running_broker import Broker, BrokerUnavailable, credentials
from ackline.infra.settings import Settings
from ackline.infra.topology import ConsumerQueue, declare
from ackline.producer import (
    BrokerRefused,
    BrokerUnreachable,
    ForkedError,
    InvalidMessage,
    MessageTooLarge,
    Nacked,
    NotPermitted,
    PublishBlocked,
    Publisher,
    PublisherClosed,
    PublishError,
    PublishTimeout,
    Receipt,
    Unroutable,
    message,
)
from tests import broker as test_broker
from tests.amqp import connect, counts
from tests.broker import Vhost
from tests.connections import close, connections
from tests.waiting import until

NUMBERS = ConsumerQueue("numbers", ("test.number",))
#: An address at which nothing listens: ports below 1024 are not given to clients, and 1 is nobody's.
NOWHERE = "amqp://guest:guest@127.0.0.1:1/"
#: Seconds that are longer than any test may take.
NEVER = 10_000.0
#: RabbitMQ 4's default `max_message_size`.
LARGEST_BODY = 16 * 1024 * 1024


@message("test.number")
class Number(BaseModel):
    """A number that is published."""

    number: int


@message("test.number.tracked", track=True)
class Tracked(BaseModel):
    """A message whose contract has it tracked, of a type that no queue is bound to."""


@message("test.unconsumed")
class Unconsumed(BaseModel):
    """A message of a type that no queue is bound to."""


class AnyInside(BaseModel):
    """A model that is no message."""


@pytest.fixture
def url(vhost: Vhost) -> str:
    """The address of a vhost with the topology of one consumer."""
    declare(vhost.amqp_url, [NUMBERS])
    return vhost.amqp_url


@pytest.fixture
def publisher(url: str) -> Iterator[Publisher]:
    with contextlib.closing(Publisher(url)) as found:
        found.wait_until_connected(60)
        yield found


@contextlib.contextmanager
def channel(url: str) -> Iterator[Any]:
    """A channel of a foreign client."""
    connection: Any = connect(url)
    try:
        yield connection.channel()
    finally:
        connection.close()


def taken(url: str, queue: str = "numbers") -> list[tuple[Any, bytes]]:
    """Every message of a queue, oldest first, taken out of it."""
    found = []
    with channel(url) as reading:
        reading.basic_qos(prefetch_count=1000)
        # No more than are there: what a subscription that ends gives back has no order on RabbitMQ 3.10.
        while count := counts(reading, queue).message_count:
            for _, (method, properties, body) in zip(range(count), reading.consume(queue), strict=False):
                found.append((properties, body))
                reading.basic_ack(method.delivery_tag)
            reading.cancel()
    return found


def numbers(url: str) -> list[int]:
    """The numbers in the queue, oldest first."""
    return [json.loads(body)["number"] for _, body in taken(url)]


def without_repeats(found: list[int]) -> list[int]:
    """Each number where it was first published."""
    return list(dict.fromkeys(found))


def ready_made(**properties: Any) -> Properties:
    return Properties(delivery_mode=PERSISTENT, type="test.number", **properties)


def outcome(future: Future[Any]) -> str:
    """`confirmed`, or the name of what it failed with."""
    error = future.exception(timeout=200)
    return "confirmed" if error is None else type(error).__name__


# --- confirmed ----------------------------------------------------------------------------------------


def test_what_is_published_is_in_the_queue_with_the_properties_of_the_wire_format(
    publisher: Publisher, url: str
) -> None:
    receipt = publisher.publish(Number(number=7), correlation_id="c-1", headers={"traceparent": "00-1-2-01"})
    assert receipt == Receipt(receipt.message_id, "test.number")
    [(properties, body)] = taken(url)
    assert body == b'{"number":7}'
    assert properties.message_id == receipt.message_id
    assert (properties.type, properties.app_id, properties.correlation_id) == ("test.number", "ackline", "c-1")
    assert (properties.content_type, properties.delivery_mode) == ("application/json", 2)
    assert abs(properties.timestamp - time.time()) < 60
    assert properties.headers == {"traceparent": "00-1-2-01"}


def test_a_message_published_again_keeps_the_id_that_it_is_given(publisher: Publisher, url: str) -> None:
    assert publisher.publish(Number(number=1), message_id="order A-1, second try é").message_id == (
        "order A-1, second try é"
    )
    assert [properties.message_id for properties, _ in taken(url)] == ["order A-1, second try é"]


def test_many_threads_publish_at_once_and_each_message_is_there_exactly_once(publisher: Publisher, url: str) -> None:
    threads, each = 8, 1_500
    futures: list[Future[Receipt]] = []

    def publish(first: int) -> None:
        for number in range(first, first + each):
            if number % 100 == 0:
                publisher.publish(Number(number=number), timeout=NEVER)
            else:
                futures.append(publisher.submit(Number(number=number), timeout=NEVER))

    running = [threading.Thread(target=publish, args=(index * each,)) for index in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert {outcome(future) for future in futures} == {"confirmed"}
    assert sorted(numbers(url)) == list(range(threads * each))


def test_messages_of_one_thread_arrive_in_the_order_of_publishing(publisher: Publisher, url: str) -> None:
    wait([publisher.submit(Number(number=number), timeout=NEVER) for number in range(3_000)])
    assert numbers(url) == list(range(3_000))


def test_a_message_carries_what_the_publisher_and_the_contract_say_of_it(publisher: Publisher, url: str) -> None:
    publisher.publish(Number(number=1), track=True, headers={"x": 1})
    publisher.publish(Tracked())
    publisher.publish(Tracked(), track=False)
    with trace.use_span(NonRecordingSpan(SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1)))):
        publisher.publish(Number(number=2))
        publisher.publish(Number(number=3), headers={"traceparent": "00-1-2-01"})
    assert [properties.headers or {} for properties, _ in taken(url)] == [
        {"x": 1, "ackline-track": True},
        {"traceparent": f"00-{'abc':0>32}-{'def':0>16}-01"},
        {"traceparent": "00-1-2-01"},
    ]
    assert [properties.headers or {} for properties, _ in taken(url, UNROUTED)] == [{"ackline-track": True}, {}]


# --- in asyncio ----------------------------------------------------------------------------------------


def test_in_asyncio_publishing_awaits_the_confirm_and_does_not_hold_up_the_loop(url: str) -> None:
    async def run() -> tuple[list[Receipt], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        async with Publisher(url, max_in_flight=10) as publisher:
            publishing = [publisher.apublish(Number(number=number), timeout=NEVER) for number in range(500)]
            receipts = await asyncio.gather(*publishing)
        ticking.cancel()
        return receipts, ticks

    receipts, ticks = asyncio.run(run())
    assert len({receipt.message_id for receipt in receipts}) == 500
    assert ticks > 10
    assert numbers(url) == list(range(500))


def test_in_asyncio_no_other_thread_takes_part(url: str) -> None:
    async def run() -> set[str]:
        async with Publisher(url) as publisher:
            await publisher.apublish(Number(number=1))
            await publisher.asend(MESSAGES, "test.number", ready_made(message_id="m-2"), b'{"number":2}')
            return {thread.name for thread in threading.enumerate() if thread.name.startswith("ackline-io")}

    assert asyncio.run(run()) == set()
    assert numbers(url) == [1, 2]


def test_in_asyncio_what_is_sent_ready_made_keeps_the_order_of_its_tasks(url: str) -> None:
    async def run() -> None:
        async with Publisher(url, max_in_flight=1) as publisher:
            sending = [publisher.asend(MESSAGES, "test.number", ready_made(), body, timeout=NEVER) for body in bodies]
            await asyncio.gather(*sending)

    bodies = [b'{"number":%d}' % number for number in range(2_000)]
    asyncio.run(run())
    assert numbers(url) == list(range(2_000))


def test_an_asyncio_task_that_is_cancelled_leaves_the_publisher_working(publisher: Publisher, url: str) -> None:
    async def run() -> None:
        for _ in range(300):
            task = asyncio.create_task(publisher.apublish(Number(number=0)))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await publisher.apublish(Number(number=1))
        [pipeline] = [on.pipeline for on in publisher._on_loops.values()]
        assert pipeline.link.losses == 0

    asyncio.run(run())
    assert publisher.publish(Number(number=2)).message_id
    assert publisher._pipeline.link.losses == 0
    assert without_repeats(numbers(url))[-2:] == [1, 2]


def test_asyncio_tasks_that_are_cancelled_while_they_wait_keep_no_place(url: str) -> None:
    async def run() -> None:
        async with Publisher(url, max_in_flight=2) as publisher:
            tasks = [asyncio.create_task(publisher.apublish(Number(number=number))) for number in range(20)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            # Two at a time have a place again, when those that were cancelled under way have their confirms.
            await asyncio.gather(*(publisher.apublish(Number(number=-1), timeout=60) for _ in range(4)))

    asyncio.run(run())
    assert numbers(url)[-4:] == [-1] * 4


def test_in_asyncio_a_publisher_serves_one_loop_after_the_other_and_threads_beside_them(
    publisher: Publisher, url: str
) -> None:
    async def run(first: int) -> None:
        await asyncio.gather(*(publisher.apublish(Number(number=number)) for number in range(first, first + 10)))
        await asyncio.to_thread(publisher.publish, Number(number=first + 10))

    for first in (0, 20, 40):
        asyncio.run(run(first))
    assert numbers(url) == [*range(11), *range(20, 31), *range(40, 51)]


def test_in_asyncio_closing_awaits_every_confirm_and_refuses_what_comes_later(url: str) -> None:
    async def run() -> list[Any]:
        publisher = Publisher(url)
        publishing = [publisher.apublish(Number(number=number), timeout=NEVER) for number in range(500)]
        tasks = [asyncio.create_task(each) for each in publishing]
        future = publisher.submit(Number(number=-1), timeout=NEVER)
        await asyncio.sleep(0)
        await publisher.aclose(NEVER)
        assert outcome(future) == "confirmed"
        with pytest.raises(PublisherClosed):
            await publisher.apublish(Number(number=501))
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert {type(found).__name__ for found in asyncio.run(run())} == {"Receipt"}
    assert sorted(numbers(url)) == list(range(-1, 500))


def test_another_thread_may_close_what_an_asyncio_loop_uses(url: str) -> None:
    async def run() -> list[Any]:
        publisher = Publisher(url)
        publishing = [publisher.apublish(Number(number=number), timeout=NEVER) for number in range(500)]
        tasks = [asyncio.create_task(each) for each in publishing]
        await asyncio.sleep(0)
        await asyncio.to_thread(publisher.close, NEVER)
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert {type(found).__name__ for found in asyncio.run(run())} == {"Receipt"}
    assert numbers(url) == list(range(500))


def test_in_asyncio_without_a_broker_publishing_ends_in_time_and_says_why() -> None:
    async def run() -> None:
        async with Publisher(NOWHERE, max_in_flight=1) as publisher:
            await asyncio.to_thread(until, lambda: "Nothing answers" in (publisher.problem or ""), what="the first try")
            with pytest.raises(PublishTimeout, match=r"Nothing answers at 127\.0\.0\.1:1: .* It was not sent"):
                await publisher.apublish(Number(number=1), timeout=1.0)
            assert publisher.problem == "Nothing answers at 127.0.0.1:1: is RabbitMQ running there?"
            waiting = asyncio.create_task(publisher.apublish(Number(number=1), timeout=60))
            await asyncio.sleep(0)
            with pytest.raises(PublishTimeout, match=r"1 messages have waited for their confirms for 0\.2 s"):
                await publisher.apublish(Number(number=2), timeout=0.2)
            await publisher.aclose(0)
            with pytest.raises(PublisherClosed):
                await waiting

    asyncio.run(run())


def test_in_asyncio_a_connection_that_is_closed_by_an_operator_in_flight_loses_nothing(url: str, vhost: Vhost) -> None:
    async def run() -> int:
        unsent = itertools.count()
        async with Publisher(url) as publisher:
            await publisher.apublish(Number(number=next(unsent)))
            [link] = [on.pipeline.link for on in publisher._on_loops.values()]

            async def publish_until_lost() -> None:
                while not link.losses:
                    await publisher.apublish(Number(number=next(unsent)), timeout=60)

            publishing = asyncio.gather(*(publish_until_lost() for _ in range(50)))
            [name] = await asyncio.to_thread(
                until, lambda: connections(vhost, "publisher "), what="the connection to be listed"
            )
            await asyncio.to_thread(close, vhost, [name])
            await asyncio.wait_for(publishing, 90)
        return next(unsent)

    count = asyncio.run(run())
    assert sorted(set(numbers(url))) == list(range(count))


# --- closing ------------------------------------------------------------------------------------------


def test_closing_waits_for_everything_submitted(url: str) -> None:
    publisher = Publisher(url)
    futures = [publisher.submit(Number(number=number), timeout=NEVER) for number in range(5_000)]
    publisher.close(NEVER)
    assert all(future.done() for future in futures)
    assert {outcome(future) for future in futures} == {"confirmed"}
    assert len(numbers(url)) == 5_000


def test_a_publisher_that_is_closed_refuses_what_comes_later(url: str) -> None:
    with Publisher(url) as publisher:
        publisher.publish(Number(number=1))
    with pytest.raises(PublisherClosed, match="The publisher is closed; the message was not sent"):
        publisher.publish(Number(number=2))
    publisher.close()
    assert numbers(url) == [1]


def test_closing_without_a_broker_fails_what_is_left_and_takes_no_longer_than_it_is_told() -> None:
    publisher = Publisher(NOWHERE)
    future = publisher.submit(Number(number=1), timeout=NEVER)
    publisher.close(timeout=0.5)
    assert outcome(future) == "PublisherClosed"


def test_closing_does_not_wait_for_a_broker_that_accepts_connections_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        publisher = Publisher(f"amqp://guest:guest@127.0.0.1:{silent.getsockname()[1]}/")
        future = publisher.submit(Number(number=1), timeout=NEVER)
        accepted, _ = silent.accept()
        with accepted:
            assert accepted.recv(8) == b"AMQP\x00\x00\x09\x01"
            assert publisher.problem is not None
            assert "has not answered yet" in publisher.problem
            publisher.close(timeout=0.2)
            assert accepted.recv(1) == b"", "our socket is closed"
    assert outcome(future) == "PublisherClosed"


# --- refused -------------------------------------------------------------------------------------------


def test_what_is_no_message_is_refused_at_once(publisher: Publisher) -> None:
    with pytest.raises(InvalidMessage, match="AnyInside is no message"):
        publisher.submit(AnyInside())


@pytest.mark.parametrize(
    "given",
    [
        {"message_id": "x" * 256},
        {"correlation_id": "x" * 256},
        {"headers": {"x": 2**70}},
        {"headers": {"x": {1, 2}}},
        {"headers": {"x": "y" * 200_000}},
    ],
    ids=["id", "correlation id", "number", "kind", "headers"],
)
def test_what_fits_into_no_header_frame_is_refused_and_takes_no_place(url: str, given: dict[str, Any]) -> None:
    with contextlib.closing(Publisher(url, max_in_flight=1)) as publisher:
        for _ in range(3):
            with pytest.raises(MessageTooLarge) as caught:
                publisher.publish(Number(number=1), **given)
            assert caught.value.message_id
        publisher.publish(Number(number=2), timeout=60)
    assert numbers(url) == [2]


def test_a_message_that_nobody_consumes_is_kept_as_unrouted_and_is_no_failure(publisher: Publisher, url: str) -> None:
    receipt = publisher.publish(Unconsumed())
    assert [properties.message_id for properties, _ in taken(url, UNROUTED)] == [receipt.message_id]


def test_a_message_that_is_returned_is_unroutable_and_its_neighbours_are_confirmed(
    publisher: Publisher, url: str
) -> None:
    with channel(url) as foreign:
        foreign.queue_delete(UNROUTED)
    futures: list[Future[Any]] = []
    for number in range(100):
        futures.append(publisher.submit(Number(number=number)))
        futures.append(publisher.submit(Unconsumed(), message_id=f"lost {number}"))
    assert [outcome(future) for future in futures] == ["confirmed", "Unroutable"] * 100
    error = futures[1].exception()
    assert isinstance(error, Unroutable)
    assert error.message_id == "lost 0"
    assert "returned the message (312 NO_ROUTE): exchange 'ackline.messages' routes 'test.unconsumed' nowhere" in (
        str(error)
    )
    assert numbers(url) == list(range(100))


def test_a_message_for_an_exchange_that_is_gone_is_unroutable_and_its_neighbours_are_confirmed(
    publisher: Publisher, url: str
) -> None:
    futures: list[Future[Any]] = [publisher.submit(Number(number=number)) for number in range(50)]
    gone = publisher.send("gone", "key", ready_made(message_id="lost"), b"{}")
    futures += [publisher.submit(Number(number=number)) for number in range(50, 100)]
    with pytest.raises(Unroutable, match="RabbitMQ has no exchange 'gone': `ackline topology apply`") as caught:
        gone.result(200)
    assert caught.value.message_id == "lost"
    assert {outcome(future) for future in futures} == {"confirmed"}
    assert without_repeats(numbers(url)) == list(range(100))
    assert publisher._pipeline.link.losses == 0


def test_every_message_for_an_exchange_that_is_gone_is_unroutable_and_works_again_when_it_is_back(
    publisher: Publisher, url: str
) -> None:
    with channel(url) as foreign:
        foreign.exchange_delete(MESSAGES)
    futures = [publisher.submit(Number(number=number)) for number in range(30)]
    assert {outcome(future) for future in futures} == {"Unroutable"}
    declare(url, [NUMBERS])
    publisher.publish(Number(number=1))
    assert numbers(url) == [1]


def test_a_message_for_a_full_queue_is_nacked_and_accepted_again_when_there_is_room(
    publisher: Publisher, url: str
) -> None:
    full = {"x-queue-type": "quorum", "x-max-length": 5, "x-overflow": "reject-publish"}
    with channel(url) as foreign:
        foreign.queue_delete("numbers")
        foreign.queue_declare("numbers", durable=True, arguments=full)
        foreign.queue_bind("numbers", MESSAGES, "test.number")
    futures: list[Future[Receipt]] = []

    def some_are_refused() -> bool:
        # A quorum queue tells a channel that it is full a little later: a burst may get in before that.
        futures.extend(publisher.submit(Number(number=number)) for number in range(len(futures), len(futures) + 50))
        return any(outcome(future) == "Nacked" for future in futures[-50:])

    until(some_are_refused, what="a message to be refused")
    outcomes = [outcome(future) for future in futures]
    assert set(outcomes) == {"confirmed", "Nacked"}
    nacked = futures[outcomes.index("Nacked")].exception()
    assert isinstance(nacked, Nacked)
    assert nacked.message_id
    assert "refused the message for 'test.number' (nack)" in str(nacked)
    assert numbers(url) == [number for number, found in enumerate(outcomes) if found == "confirmed"]
    until(lambda: _confirms(publisher), what="the queue to take messages again")


def _confirms(publisher: Publisher) -> bool:
    try:
        publisher.publish(Number(number=-1))
    except Nacked:
        return False
    return True


def test_a_body_larger_than_the_broker_takes_is_refused_and_its_neighbours_are_confirmed(
    publisher: Publisher, url: str, vhost: Vhost
) -> None:
    with vhost.api() as api:
        if int(api.get("/api/overview").json()["rabbitmq_version"].split(".")[0]) < 4:
            pytest.skip("brokers before 4.0 take 128 MiB")
    futures: list[Future[Any]] = [publisher.submit(Number(number=number), timeout=NEVER) for number in range(20)]
    large = publisher.send(MESSAGES, "test.number", ready_made(), bytes(LARGEST_BODY + 1), timeout=NEVER)
    futures += [publisher.submit(Number(number=number), timeout=NEVER) for number in range(20, 40)]
    with pytest.raises(MessageTooLarge, match=r"does not take a message of 16,777,217 bytes: .*larger than"):
        large.result(200)
    assert {outcome(future) for future in futures} == {"confirmed"}
    assert without_repeats(numbers(url)) == list(range(40))


def test_a_message_in_the_name_of_another_user_is_refused_and_its_neighbours_are_confirmed(
    publisher: Publisher, url: str
) -> None:
    futures: list[Future[Any]] = [publisher.submit(Number(number=number)) for number in range(20)]
    foreign = publisher.send(MESSAGES, "test.number", ready_made(user_id="somebody"), b"{}")
    futures += [publisher.submit(Number(number=number)) for number in range(20, 40)]
    with pytest.raises(NotPermitted, match="406 PRECONDITION_FAILED - user_id property set to 'somebody'"):
        foreign.result(200)
    assert {outcome(future) for future in futures} == {"confirmed"}
    assert without_repeats(numbers(url)) == list(range(40))


@contextlib.contextmanager
def limited_user(vhost: Vhost, *, write: str) -> Iterator[str]:
    """The address of the vhost for a user that may write to what matches, and read nothing."""
    name = f"limited-{vhost.name}"
    with vhost.api() as api:
        api.put(f"/api/users/{name}", json={"password": "secret", "tags": ""}).raise_for_status()
        permissions = {"configure": "^$", "write": write, "read": "^$"}
        api.put(f"/api/permissions/{vhost.path}/{name}", json=permissions).raise_for_status()
        try:
            parts = urlsplit(vhost.amqp_url)
            yield urlunsplit(parts._replace(netloc=f"{quote(name)}:secret@{parts.hostname}:{parts.port}"))
        finally:
            api.delete(f"/api/users/{name}").raise_for_status()


def test_a_user_without_write_permission_is_told_so(url: str, vhost: Vhost) -> None:
    with limited_user(vhost, write="^$") as limited, contextlib.closing(Publisher(limited)) as publisher:
        futures = [publisher.submit(Number(number=number)) for number in range(10)]
        assert {outcome(future) for future in futures} == {"NotPermitted"}
        assert "RabbitMQ does not permit this user to publish to 'ackline.messages': ACCESS_REFUSED" in (
            str(futures[0].exception())
        )


def test_write_permission_on_ackline_messages_is_all_that_an_upstream_user_needs(url: str, vhost: Vhost) -> None:
    with limited_user(vhost, write="^ackline\\.messages$") as limited, Publisher(limited) as publisher:
        publisher.publish(Number(number=1))
        publisher.publish(Unconsumed())
    assert numbers(url) == [1]


def test_connecting_with_a_wrong_password_is_refused_at_once_in_a_sentence(url: str) -> None:
    parts = urlsplit(url)
    wrong = urlunsplit(parts._replace(netloc=f"{parts.username}:wrong@{parts.hostname}:{parts.port}"))
    with pytest.raises(BrokerRefused, match="wrong user or password in ACKLINE_AMQP_URL"):
        Publisher.connect(Settings(amqp_url=wrong), timeout=NEVER)


def test_connecting_to_a_vhost_that_does_not_exist_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(BrokerRefused, match="refused the vhost 'nope' to user"):
        Publisher.connect(Settings(amqp_url=urlunsplit(urlsplit(url)._replace(path="/nope"))))


# --- no answer in time ---------------------------------------------------------------------------------


def test_without_a_broker_publishing_ends_in_time_and_says_why() -> None:
    with contextlib.closing(Publisher(NOWHERE)) as publisher:
        publisher.start()
        until(lambda: "Nothing answers" in (publisher.problem or ""), what="the first try")
        began = time.monotonic()
        with pytest.raises(PublishTimeout, match=r"Nothing answers at 127\.0\.0\.1:1: .* It was not sent") as caught:
            publisher.publish(Number(number=1), timeout=1.0)
        assert time.monotonic() - began > 0.9
        assert caught.value.message_id
        assert publisher.problem == "Nothing answers at 127.0.0.1:1: is RabbitMQ running there?"
        publisher.close(0)
    with pytest.raises(BrokerUnreachable, match=r"Nothing answers at 127\.0\.0\.1:1"):
        Publisher.connect(Settings(amqp_url=NOWHERE), timeout=2)


def test_submitting_waits_for_room_no_longer_than_it_is_told_and_room_comes_back() -> None:
    with contextlib.closing(Publisher(NOWHERE, max_in_flight=3)) as publisher:
        for number in range(3):
            publisher.submit(Number(number=number), timeout=NEVER)
        with pytest.raises(PublishTimeout, match=r"3 messages have waited for their confirms for 0\.2 s"):
            publisher.submit(Number(number=3), timeout=0.2)
        publisher.close(0)
    with contextlib.closing(Publisher(NOWHERE, max_in_flight=3)) as publisher:
        for number in range(2):
            waiting = [publisher.submit(Number(number=number), timeout=0.2) for _ in range(3)]
            assert {outcome(future) for future in waiting} == {"PublishTimeout"}
        publisher.close(0)


def test_publishing_ends_in_time_even_when_the_io_thread_is_held_up(publisher: Publisher) -> None:
    going_on = threading.Event()
    publisher._pipeline.link.call(lambda: _hold_up(going_on))
    try:
        with pytest.raises(PublishTimeout, match="did not get to look for it") as caught:
            publisher.publish(Number(number=1), message_id="m-1", timeout=0.1)
    finally:
        going_on.set()
    assert caught.value.message_id == "m-1"


@contextlib.contextmanager
def broker_with(tmp_path: Path, *lines: str) -> Iterator[Broker]:
    """A broker of this test's own with *lines* in its `rabbitmq.conf`."""
    chosen = test_broker.choice()
    if chosen is not None and chosen.kind == "url":
        pytest.skip("needs a broker of its own, and ACKLINE_AMQP_URL names one that others run")
    try:
        running = launch(test_broker.environment(), data_dir=tmp_path / "broker", extra_config=lines)
    except BrokerUnavailable as error:
        pytest.fail(str(error), pytrace=False)
    with running:
        yield running


@pytest.mark.broker
def test_an_alarm_on_the_broker_is_named_when_no_confirm_comes_in_time(tmp_path: Path) -> None:
    with broker_with(tmp_path, f"disk_free_limit.absolute = {10**15}") as full:
        declare(full.amqp_url, [NUMBERS])
        until(lambda: _has_disk_alarm(full), what="the alarm")
        with contextlib.closing(Publisher(full.amqp_url)) as publisher:
            # RabbitMQ tells a connection of its alarm when it has published.
            publisher.submit(Number(number=0), timeout=NEVER)
            until(lambda: publisher.problem == "RabbitMQ blocks publishing: low on disk.", what="the alarm to be told")
            futures = [publisher.submit(Number(number=number), timeout=2) for number in range(500)]
            assert {outcome(future) for future in futures} == {"PublishBlocked"}
            error = futures[0].exception()
            assert isinstance(error, PublishBlocked)
            assert "RabbitMQ blocks publishing: low on disk" in str(error)
            publisher.close(0)


def _has_disk_alarm(broker: Broker) -> bool:
    with httpx.Client(auth=credentials(broker.amqp_url), timeout=60, trust_env=False) as client:
        [node] = client.get(f"{broker.management_url}/api/nodes").json()
    return bool(node.get("disk_free_alarm"))


@pytest.mark.broker
def test_headers_that_a_broker_with_small_frames_cannot_take_are_refused_and_others_are_confirmed(
    tmp_path: Path,
) -> None:
    with broker_with(tmp_path, "frame_max = 8192") as small:
        declare(small.amqp_url, [NUMBERS])
        with Publisher(small.amqp_url) as publisher:
            publisher.publish(Number(number=1))
            with pytest.raises(MessageTooLarge, match="do not fit into an AMQP frame"):
                publisher.publish(Number(number=2), headers={"x": "y" * 10_000}, timeout=60)
            publisher.publish(Number(number=3), headers={"x": "y" * 7_000})
            assert publisher._pipeline.link.losses == 0
        assert numbers(small.amqp_url) == [1, 3]


# --- connections that are lost --------------------------------------------------------------------------


def test_a_connection_that_is_closed_by_an_operator_in_flight_loses_nothing(
    publisher: Publisher, url: str, vhost: Vhost
) -> None:
    futures: list[Future[Receipt]] = []

    def publish() -> None:
        futures.extend(publisher.submit(Number(number=number), timeout=NEVER) for number in range(10_000))

    publishing = threading.Thread(target=publish)
    [name] = until(lambda: connections(vhost, "publisher "), what="the connection to be listed")
    publishing.start()
    until(lambda: len(futures) > 2_000, what="messages in flight")
    close(vhost, [name])
    publishing.join()
    assert {outcome(future) for future in futures} == {"confirmed"}
    until(lambda: publisher._pipeline.link.losses == 1, what="the loss, which may come after the last confirm")
    assert without_repeats(numbers(url)) == list(range(10_000))


def test_a_broker_that_stops_in_the_middle_loses_nothing_that_was_confirmed(own_broker: Broker) -> None:
    url = own_broker.amqp_url
    declare(url, [NUMBERS])
    futures: list[Future[Receipt]] = []
    with Publisher(url) as publisher:
        publishing = threading.Thread(target=_submit, args=(publisher, futures, 2_000))
        publishing.start()
        until(lambda: sum(future.done() for future in list(futures)) > 300, what="the first confirms")
        own_broker.stop()
        own_broker.start()
        publishing.join()
        publisher.publish(Number(number=2_000), timeout=120)
        outcomes = [outcome(future) for future in futures]
        assert publisher._pipeline.link.losses == 1
    assert len(outcomes) == 2_000
    assert set(outcomes) <= {"confirmed", "Nacked"}
    assert outcomes.count("confirmed") > 300
    found = without_repeats(numbers(url))
    assert found == sorted(found), "what is sent again goes before what was not sent yet"
    assert {number for number, said in enumerate(outcomes) if said == "confirmed"} <= set(found)


def _submit(publisher: Publisher, futures: list[Future[Receipt]], count: int) -> None:
    for number in range(count):
        futures.append(publisher.submit(Number(number=number), timeout=NEVER))
        time.sleep(0.0005)  # so that the broker stops in the middle


def test_a_broker_that_is_killed_and_stays_away_fails_what_it_did_not_confirm_in_time(own_broker: Broker) -> None:
    declare(own_broker.amqp_url, [NUMBERS])
    own_broker.restart()  # RabbitMQ 3.10 forgets a quorum queue when it is killed soon after the declaration
    with contextlib.closing(Publisher(own_broker.amqp_url)) as publisher:
        futures = [publisher.submit(Number(number=number), timeout=3) for number in range(1_000)]
        own_broker.kill()
        outcomes = [outcome(future) for future in futures]
        assert set(outcomes) <= {"confirmed", "PublishTimeout"}
        until(lambda: "Nothing answers at" in (publisher.problem or ""), what="the loss to be noticed")
        with pytest.raises(PublishError, match="Nothing answers at") as caught:
            publisher.publish(Number(number=-1), timeout=0.5)
        assert isinstance(caught.value, PublishTimeout)
        own_broker.start()
        publisher.publish(Number(number=1_000), timeout=120)
    found = set(numbers(own_broker.amqp_url))
    assert {number for number, said in enumerate(outcomes) if said == "confirmed"} | {1_000} <= found


# --- forks --------------------------------------------------------------------------------------------


def test_a_forked_child_publishes_on_its_own_connection_and_the_parent_goes_on_with_its_own(
    publisher: Publisher, url: str
) -> None:
    publisher.publish(Number(number=0))
    going_on = threading.Event()
    publisher._pipeline.link.call(lambda: _hold_up(going_on))
    pending = publisher.submit(Number(number=1), timeout=NEVER)
    said = _in_forked_child(lambda: _what_a_child_sees(publisher, pending))
    going_on.set()
    assert said == ["own message confirmed", "the parent's: ForkedError", "in flight at most: 1000"]
    assert outcome(pending) == "confirmed"
    publisher.publish(Number(number=3))
    assert sorted(numbers(url)) == [0, 1, 2, 3]
    assert publisher._pipeline.link.losses == 0


def _hold_up(going_on: threading.Event) -> None:
    going_on.wait(200)


def _what_a_child_sees(publisher: Publisher, pending: Future[Receipt]) -> list[str]:
    publisher.publish(Number(number=2), timeout=60)
    error = pending.exception(timeout=60)
    seen = ["own message confirmed", f"the parent's: {type(error).__name__}"]
    assert isinstance(error, ForkedError)
    seen.append(f"in flight at most: {publisher._window.free}")
    publisher.close()
    return seen


def test_a_forked_child_that_waits_for_the_parents_message_only_is_not_held_up(publisher: Publisher) -> None:
    publisher.publish(Number(number=0))
    going_on = threading.Event()
    publisher._pipeline.link.call(lambda: _hold_up(going_on))
    pending = publisher.submit(Number(number=1), timeout=60)
    # A thread of the parent waits for it too, and its lock and its name on the list are inherited.
    waiting = threading.Thread(target=pending.exception, args=(90,))
    waiting.start()
    said = _in_forked_child(lambda: type(pending.exception(timeout=20)).__name__)
    going_on.set()
    waiting.join()
    assert (said, outcome(pending)) == ("ForkedError", "confirmed")


def _in_forked_child(run: Any) -> Any:
    """What *run* returns in a forked child, or its traceback."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads: the point here
        child = os.fork()
    if child == 0:
        try:
            said = run()
        except BaseException:
            said = traceback.format_exc()
        os.write(write, json.dumps(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        found = json.loads(pipe.read())
    os.waitpid(child, 0)
    return found
