"""What handlers tell of their progress: the last of each delivery, once a second at most."""

from __future__ import annotations

from functools import partial

from ackline.consumers.delivery import Delivery
from ackline.consumers.handling import Report
from ackline.consumers.progress import Progress
from ackline.infra.properties import Properties


class Told:
    """A clock, and what was reported by it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.reported: list[str] = []
        self.progress = Progress(lambda report: self.reported.append(report.event.decode()), lambda: self.now)

    def tell(self, delivery: Delivery, text: str) -> None:
        self.progress.tell(delivery, partial(Report, "progress.billing", text.encode()))

    def at(self, seconds: float) -> list[str]:
        """What is reported at that time."""
        self.now = 100.0 + seconds
        self.reported.clear()
        self.progress.tick()
        return list(self.reported)


def _delivery() -> Delivery:
    return Delivery("ackline.messages", "order.placed", Properties(), b"{}")


def test_the_first_is_reported_at_once_and_then_the_last_of_each_second() -> None:
    told, delivery = Told(), _delivery()
    told.tell(delivery, "first")
    assert told.at(0) == ["first"]
    for text in ("second", "third", "fourth"):
        told.tell(delivery, text)
        assert told.at(0.5) == []
    assert told.at(0.99) == []
    assert told.at(1.0) == ["fourth"]
    assert told.at(2.5) == []
    told.tell(delivery, "fifth")
    assert told.at(2.6) == ["fifth"]


def test_deliveries_do_not_wait_for_each_other() -> None:
    told, one, other = Told(), _delivery(), _delivery()
    told.tell(one, "one")
    assert told.at(0) == ["one"]
    told.tell(other, "other")
    told.tell(one, "one again")
    assert told.at(0.5) == ["other"]
    assert told.at(1.0) == ["one again"]


def test_nothing_is_remembered_of_a_delivery_that_tells_no_more() -> None:
    told = Told()
    told.tell(_delivery(), "only")
    told.at(0)
    told.at(1)
    assert not told.progress._reported
    assert not told.progress._told
