"""What a handler may know and do besides its message."""

from __future__ import annotations

import asyncio
import logging
import math
from uuid import UUID

import pytest
from pydantic import BaseModel

from ackline.consumers import Context
from ackline.consumers.context import child_id
from ackline.consumers.stopping import Stopping
from ackline.infra.names import MESSAGES
from ackline.infra.properties import PERSISTENT, Properties
from ackline.producer import message
from ackline.producer.errors import InvalidMessage
from tests.waiting import DEADLINE


@message("test.context.invoiced")
class Invoiced(BaseModel):
    number: int


class NoMessage(BaseModel):
    number: int


def _context(*, message_id: str | None = "m-1", consumer: str = "billing", **properties: object) -> Context:
    return Context(
        consumer=consumer,
        message_id=message_id,
        message_type="order.placed",
        attempt=2,
        properties=Properties(**properties),
    )


def test_a_context_says_whose_try_of_what_it_is() -> None:
    context = _context(correlation_id="call-7", headers={"tenant": "acme"})
    assert (context.consumer, context.id, context.type, context.attempt) == ("billing", "m-1", "order.placed", 2)
    assert (context.correlation_id, context.headers) == ("call-7", {"tenant": "acme"})


def test_a_message_without_a_correlation_id_has_none() -> None:
    assert _context().correlation_id is None


def test_what_is_published_is_enlisted_as_a_message_like_any_other() -> None:
    context = _context(correlation_id="call-7", timestamp=1_700_000_000)
    id_ = context.publish(Invoiced(number=1))
    ((exchange, routing_key, properties, body),) = context.enlisted()
    assert (exchange, routing_key, body) == (MESSAGES, "test.context.invoiced", b'{"number":1}')
    assert properties.decoded() == {
        "content_type": "application/json",
        "delivery_mode": PERSISTENT,
        "correlation_id": "call-7",
        "message_id": id_,
        "timestamp": 1_700_000_000,
        "type": "test.context.invoiced",
        "app_id": "billing",
    }


def test_a_repeated_delivery_enlists_the_same_ids_and_no_two_of_one_delivery_are_the_same() -> None:
    first, again = _context(), _context()
    ids = [first.publish(Invoiced(number=number)) for number in range(3)]
    assert [again.publish(Invoiced(number=number)) for number in range(3)] == ids
    assert len(set(ids)) == 3


def test_another_message_or_another_consumer_enlists_other_ids() -> None:
    ids = {
        context.publish(Invoiced(number=1))
        for context in (_context(), _context(message_id="m-2"), _context(consumer="shipping"))
    }
    assert len(ids) == 3


def test_two_messages_without_an_id_enlist_different_ids() -> None:
    # With the same ids the second one's would be taken for a repetition downstream, and be lost.
    assert _context(message_id=None).publish(Invoiced(number=1)) != _context(message_id=None).publish(
        Invoiced(number=1)
    )


def test_a_child_id_is_a_uuid_of_version_8_that_never_changes() -> None:
    id_ = UUID(child_id("m-1", "billing", 0))
    assert (id_.version, id_.variant) == (8, "specified in RFC 4122")
    # Were it to change with a release, deliveries in flight during an upgrade would multiply downstream.
    assert str(id_) == "21a8376f-8b0b-8b2c-90b4-9cc46cdade15"


def test_a_consumer_with_a_long_name_can_publish() -> None:
    context = _context(consumer="ü" * 100)
    context.publish(Invoiced(number=1))
    ((_, _, properties, _),) = context.enlisted()
    assert properties.app_id == ("ü" * 100).encode()


def test_what_is_no_message_is_refused_and_not_enlisted() -> None:
    context = _context()
    with pytest.raises(InvalidMessage):
        context.publish(NoMessage(number=1))
    assert context.enlisted() == []


def test_what_was_enlisted_can_be_forgotten_and_the_ids_begin_anew() -> None:
    context = _context()
    assert not context.has_enlisted
    id_ = context.publish(Invoiced(number=1))
    assert context.has_enlisted
    context.forget_enlisted()
    assert (context.has_enlisted, context.enlisted()) == (False, [])
    assert context.publish(Invoiced(number=1)) == id_


def test_a_handler_is_told_that_the_worker_stops() -> None:
    stopping = Stopping()
    context = Context(
        consumer="billing",
        message_id="m-1",
        message_type="order.placed",
        attempt=1,
        properties=Properties(),
        stopping=stopping,
    )
    assert not context.stopping
    assert not context.wait(0)
    assert not asyncio.run(context.sleep(0))
    stopping.set()
    assert context.stopping
    assert context.wait(DEADLINE)
    assert asyncio.run(context.sleep(DEADLINE))


def test_a_context_without_a_worker_never_stops_and_tells_nobody_of_progress() -> None:
    context = _context()
    context.progress(0.5, "half")
    assert not context.stopping


def test_progress_is_between_nothing_and_all() -> None:
    told: list[tuple[float, str]] = []
    context = Context(
        consumer="billing",
        message_id="m-1",
        message_type="order.placed",
        attempt=1,
        properties=Properties(),
        tell=lambda done, text: told.append((done, text)),
    )
    for done in (0.4, -1, 7, math.nan):
        context.progress(done, "rows")
    context.progress(1)
    assert told == [(0.4, "rows"), (0.0, "rows"), (1.0, "rows"), (0.0, "rows"), (1.0, "")]


def test_lines_of_the_log_name_the_message(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ackline.handler"):
        _context().log.info("charged %d", 9)
    assert caplog.messages == ["[order.placed m-1 for billing, attempt 2] charged 9"]
