"""Batch handlers: many messages in one call, for bulk writes, and a result for each of them.

What is delivered is collected up to a size, or until the first of it has waited for the linger time; a body that
cannot be read goes to review by itself and spoils nobody's batch. The handler returns None when all are handled, or a
list with None or an exception for each, which counts for that message alone. When it raises, nobody knows for whom:
the messages are handled again at once, each in a batch of its own, and what happens then counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ackline.consumers.batch import Batch
from ackline.consumers.context import Context
from ackline.consumers.delivery import Delivery
from ackline.consumers.handling import Settlement, Way, park_until_due, read, settle, trail_of
from ackline.infra import wire


class Collector:
    """Makes batches of what is delivered. The I/O thread's own."""

    def __init__(
        self,
        batch: Batch,
        submit: Callable[[list[list[Delivery]]], None],
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        """submit: takes batches that are to be handled. later: runs a function in so many seconds, on this thread."""
        self._batch = batch
        self._submit = submit
        self._later = later
        self._collected: list[Delivery] = []
        self._number = 0  # of the batch that is collected now

    def add(self, deliveries: Sequence[Delivery]) -> None:
        """These were delivered."""
        size = self._batch.size
        was_empty = not self._collected
        self._collected += deliveries
        full = [self._collected[at : at + size] for at in range(0, len(self._collected) - size + 1, size)]
        if full:
            del self._collected[: len(full) * size]
            self._number += 1
            self._submit(full)
        if self._collected and (was_empty or full):
            number = self._number
            self._later(self._batch.linger, lambda: self._linger_over(number))

    def withdraw(self, wanted: Callable[[Delivery], bool] = lambda delivery: True) -> list[Delivery]:
        """Take back what is in no batch yet and that *wanted* says."""
        found = [delivery for delivery in self._collected if wanted(delivery)]
        taken = set(found)
        self._collected = [delivery for delivery in self._collected if delivery not in taken]
        if not self._collected:
            self._number += 1  # what is collected next has its own time
        return found

    def _linger_over(self, number: int) -> None:
        if number == self._number and self._collected:
            batch, self._collected = self._collected, []
            self._number += 1
            self._submit([batch])


class Opened(NamedTuple):
    """A delivery whose body could be read, and its place among all."""

    place: int
    delivery: Delivery
    trail: wire.Trail | None
    message: Any
    context: Context | None


Results = list[BaseException | None]


def handle_batch(way: Way, deliveries: Sequence[Delivery]) -> list[Settlement]:
    """Run the batch handler on these, and return what follows from each. Never raises."""
    settlements, opened = _open(way, deliveries)
    if opened:
        _close(way, opened, results_of(way, opened), settlements)
    return settlements


async def ahandle_batch(way: Way, deliveries: Sequence[Delivery]) -> list[Settlement]:
    """`handle_batch` for a handler that is a coroutine function."""
    settlements, opened = _open(way, deliveries)
    if opened:
        _close(way, opened, await aresults_of(way, opened), settlements)
    return settlements


def results_of(way: Way, opened: list[Opened]) -> Results:
    """Run the batch handler on these: None, or an exception, for each."""
    results = _call(way, opened)
    return [_call_alone(way, one) for one in opened] if results is None else results


async def aresults_of(way: Way, opened: list[Opened]) -> Results:
    """`results_of` for a handler that is a coroutine function."""
    results = await _acall(way, opened)
    return [await _acall_alone(way, one) for one in opened] if results is None else results


def _open(way: Way, deliveries: Sequence[Delivery]) -> tuple[list[Settlement], list[Opened]]:
    """Settlements of those that the handler is not to see, at their places, and the others."""
    settlements = [Settlement()] * len(deliveries)
    opened: list[Opened] = []
    for index, delivery in enumerate(deliveries):
        trail = trail_of(way, delivery)
        early = park_until_due(way, delivery, trail, trail.due) if trail is not None and trail.due is not None else None
        if early is not None:
            settlements[index] = early
            continue
        try:
            opened.append(Opened(index, delivery, trail, *read(way, delivery, trail)))
        except BaseException as error:
            settlements[index] = settle(way, delivery, trail, None, error)
    return settlements, opened


def _close(way: Way, opened: list[Opened], results: Results, settlements: list[Settlement]) -> None:
    for one, error in zip(opened, results, strict=True):
        settlements[one.place] = settle(way, one.delivery, one.trail, one.context, error)


def _call(way: Way, opened: list[Opened]) -> Results | None:
    """A result for each; None when the handler raised for several."""
    try:
        return _results(way.call(*_arguments(opened)), len(opened))
    except BaseException as error:
        return [error] if len(opened) == 1 else None


async def _acall(way: Way, opened: list[Opened]) -> Results | None:
    try:
        return _results(await way.call(*_arguments(opened)), len(opened))
    except BaseException as error:
        return [error] if len(opened) == 1 else None


def _call_alone(way: Way, one: Opened) -> BaseException | None:
    (result,) = _call(way, [_fresh(one)]) or [None]
    return result


async def _acall_alone(way: Way, one: Opened) -> BaseException | None:
    (result,) = await _acall(way, [_fresh(one)]) or [None]
    return result


def _fresh(one: Opened) -> Opened:
    """For a second call: without what the first one enlisted."""
    if one.context is not None:
        one.context.forget_enlisted()
    return one


def _arguments(opened: list[Opened]) -> tuple[list[Any], list[Context | None]]:
    return [one.message for one in opened], [one.context for one in opened]


def _results(returned: Any, size: int) -> Results:
    """What a handler returned. When that is not what one may return, all have failed."""
    if returned is None:
        return [None] * size
    if (
        not isinstance(returned, list)
        or len(returned) != size
        or not all(result is None or isinstance(result, BaseException) for result in returned)
    ):
        said = f"a batch handler returns None, or a list of {size} that holds None or an exception for each"
        return [TypeError(said)] * size
    return returned
