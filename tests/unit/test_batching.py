"""Batch handlers: which messages come together, and a result for each of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from ackline.consumers import Batch, Context, Reject, fixed
from ackline.consumers.batching import Collector, ahandle_batch, handle_batch
from ackline.consumers.consumer import Consumer
from ackline.consumers.delivery import Delivery
from ackline.consumers.handling import HANDLED, Settlement, Way
from ackline.infra import wire
from ackline.infra.errors import ConfigurationError
from ackline.infra.names import DEAD, MESSAGES
from ackline.infra.properties import Properties
from ackline.producer import message

TYPE = "test.batching.placed"


@message(TYPE)
class Placed(BaseModel):
    number: int


def _delivery(number: object) -> Delivery:
    properties = Properties(message_id=f"m-{number}", type=TYPE)
    return Delivery(MESSAGES, TYPE, Properties.from_wire(properties.wire), json.dumps({"number": number}).encode())


def _settled(handler: Callable[..., Any], *numbers: object) -> list[Settlement]:
    """What follows when a batch handler gets these; as plain function and as coroutine function, which are alike."""
    load = Consumer("load", handler, {TYPE: Placed}, fixed(attempts=3, delay="5s"), True, False, batch=Batch())
    given = [_delivery(number) for number in numbers]
    found = handle_batch(Way(load, "worker-1:1", handler, wants_context=True), given)

    async def again(orders: list[Placed], contexts: list[Context]) -> Any:
        return handler(orders, contexts)

    alike = asyncio.run(ahandle_batch(Way(load, "worker-1:1", again, wants_context=True), given))
    assert [_where(one) for one in alike] == [_where(one) for one in found]
    return found


def _where(settlement: Settlement) -> str:
    """The exchange to which a delivery goes, empty when it is acked."""
    return ",".join(outgoing.exchange for outgoing in settlement.outgoing)


def _reason(settlement: Settlement) -> str:
    return settlement.outgoing[0].properties.headers.text(wire.REASON) or ""


# --- the results -------------------------------------------------------------------------------------------


def test_a_batch_is_one_call_and_all_are_handled() -> None:
    calls: list[tuple[list[int], list[str | None]]] = []

    def load(orders: list[Placed], contexts: list[Context]) -> None:
        calls.append(([order.number for order in orders], [context.id for context in contexts]))

    assert _settled(load, 1, 2, 3) == [HANDLED] * 3
    assert calls[0] == ([1, 2, 3], ["m-1", "m-2", "m-3"])


def test_each_message_has_its_own_result() -> None:
    def load(orders: list[Placed], contexts: list[Context]) -> list[BaseException | None]:
        return [None, ValueError("not now"), Reject("never")]

    handled, retried, dead = _settled(load, 1, 2, 3)
    assert handled == HANDLED
    assert _where(retried) == "ackline.retry.5s"
    assert (_where(dead), _reason(dead)) == (DEAD, "never")


def test_a_body_that_cannot_be_read_spoils_nobodys_batch() -> None:
    seen: list[int] = []

    def load(orders: list[Placed], contexts: list[Context]) -> None:
        seen.extend(order.number for order in orders)

    first, bad, last = _settled(load, 1, "two", 3)
    assert (first, last) == (HANDLED, HANDLED)
    assert "number: Input should be a valid integer" in _reason(bad)
    assert seen[:2] == [1, 3]


def test_a_batch_of_nothing_readable_calls_no_handler() -> None:
    def load(orders: list[Placed], contexts: list[Context]) -> None:
        raise AssertionError("called")

    assert [_where(one) for one in _settled(load, "one", "two")] == [DEAD, DEAD]


def test_when_the_handler_raises_each_message_is_handled_alone_and_that_counts() -> None:
    def load(orders: list[Placed], contexts: list[Context]) -> None:
        contexts[0].publish(Placed(number=0))  # what a call that failed enlisted is not sent
        if any(order.number == 2 for order in orders):
            raise ValueError("no such customer")

    first, failed, last = _settled(load, 1, 2, 3)
    assert _where(failed) == "ackline.retry.5s"
    assert [len(one.outgoing) for one in (first, last)] == [1, 1]


def test_a_result_that_is_none_fails_for_all() -> None:
    cases: list[Any] = [[None], [None, 5], "no", True, {}]
    for wrong in cases:
        settlements = _settled(lambda orders, contexts, wrong=wrong: wrong, 1, 2)
        assert [_where(one) for one in settlements] == ["ackline.retry.5s"] * 2, wrong
    history = settlements[0].outgoing[0].properties.headers.text(wire.HISTORY) or ""
    assert "a batch handler returns None, or a list of 2 that holds None or an exception for each" in history


# --- which come together -----------------------------------------------------------------------------------


class _Clock:
    """What is to run later, by when."""

    def __init__(self) -> None:
        self.later: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, seconds: float, function: Callable[[], None]) -> None:
        self.later.append((seconds, function))

    def pass_(self) -> None:
        """The time of all of them comes."""
        due, self.later = self.later, []
        for _, function in due:
            function()


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


def _collector(clock: _Clock, size: int) -> tuple[Collector, list[list[int]]]:
    submitted: list[list[int]] = []
    collector = Collector(
        Batch(size, "200ms"),
        lambda batches: submitted.extend([json.loads(one.body)["number"] for one in batch] for batch in batches),
        clock,
    )
    return collector, submitted


def _add(collector: Collector, *numbers: int) -> None:
    collector.add([_delivery(number) for number in numbers])


def test_a_full_batch_goes_at_once_and_the_rest_when_its_first_has_waited(clock: _Clock) -> None:
    collector, submitted = _collector(clock, 3)
    _add(collector, *range(8))
    assert submitted == [[0, 1, 2], [3, 4, 5]]
    assert [seconds for seconds, _ in clock.later] == [0.2]
    clock.pass_()
    assert submitted[2:] == [[6, 7]]


def test_the_time_of_one_batch_does_not_cut_the_next_one_short(clock: _Clock) -> None:
    collector, submitted = _collector(clock, 3)
    _add(collector, 0)
    old = clock.later.pop()
    _add(collector, 1, 2, 3)
    assert submitted == [[0, 1, 2]]
    old[1]()
    assert submitted == [[0, 1, 2]], "the fourth has waited for no time yet"
    clock.pass_()
    assert submitted == [[0, 1, 2], [3]]


def test_what_is_withdrawn_is_in_no_batch(clock: _Clock) -> None:
    collector, submitted = _collector(clock, 3)
    _add(collector, 0, 1)
    first, second = collector.withdraw()
    assert collector.withdraw() == []
    clock.pass_()
    assert submitted == []
    collector.add([first, second])
    assert collector.withdraw(lambda delivery: delivery is first) == [first]
    clock.pass_()
    assert submitted == [[1]]


@pytest.mark.parametrize("size", [0, -1, 10_001])
def test_a_size_that_none_can_be_is_refused(size: int) -> None:
    with pytest.raises(ConfigurationError, match=r"it can have 1 to 10,000 messages\."):
        Batch(size)
