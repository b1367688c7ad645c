"""How deep a queue is, as a broker tells it that has not always the time to look."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ackline.dlq import queues
from ackline.dlq.queues import Queues


class Broker:
    """Gives one answer after the other, each after some seconds: (seconds, messages, consumers)."""

    def __init__(self, *answers: tuple[float, int, int]) -> None:
        self._answers = list(answers)
        self.now = 0.0

    def queue_declare(self, queue: str, *, passive: bool) -> Any:
        seconds, messages, consumers = self._answers.pop(0)
        self.now += seconds
        return SimpleNamespace(message_count=messages, consumer_count=consumers)

    def channel(self) -> Any:
        return SimpleNamespace(queue_declare=self.queue_declare, close=lambda: None)


@pytest.mark.parametrize(
    ("answers", "depth"),
    [
        ([(0.01, 0, 0)], 0),
        ([(0.01, 7, 1)], 7),
        ([(3.0, 7, 0)], 7),
        ([(3.0, 0, 1)], 0),  # it has been counted: somebody consumes it
        ([(0.25, 0, 0), (0.01, 7, 1)], 7),
        ([(0.25, 0, 0), (0.25, 0, 0), (0.01, 0, 0)], 0),
        ([(0.25, 0, 0)] * 4, 0),
    ],
)
def test_a_queue_that_may_have_been_too_slow_to_be_counted_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, answers: list[tuple[float, int, int]], depth: int
) -> None:
    broker = Broker(*answers)
    monkeypatch.setattr(queues, "time", SimpleNamespace(monotonic=lambda: broker.now))
    assert Queues._waiting(broker, "billing") == depth
    assert broker._answers == []
