"""Which acks are sent, when deliveries finish in any order."""

from __future__ import annotations

import random

import pytest

from ackline.consumers.acks import MOST_WAITING, AckWindow


def _window(delivered: int) -> AckWindow:
    window = AckWindow()
    for tag in range(1, delivered + 1):
        window.delivered(tag)
    return window


def test_nothing_is_acked_before_something_finished() -> None:
    window = _window(3)
    assert window.run() is None
    assert window.stragglers() == []
    assert window.unsettled == 3


def test_a_contiguous_run_is_one_ack() -> None:
    window = _window(4)
    for tag in (2, 1, 3):
        window.finish(tag)
    assert window.run() == 3
    assert window.run() is None
    assert window.unsettled == 1


def test_what_finished_above_an_unfinished_one_waits_for_it_once_and_is_then_acked_singly() -> None:
    window = _window(3)
    window.finish(2)
    window.finish(3)
    assert window.run() is None
    assert window.stragglers() == []
    assert window.waiting
    assert window.stragglers() == [2, 3]
    assert not window.waiting
    window.finish(1)
    assert window.run() == 1


def test_a_run_goes_over_what_was_acked_singly_but_names_a_tag_that_the_broker_still_knows() -> None:
    window = _window(3)
    window.finish(3)
    window.stragglers()
    assert window.stragglers() == [3]
    window.finish(1)
    window.finish(2)
    assert window.run() == 2  # an ack of 3 would close the channel
    assert window.unsettled == 0


def test_a_run_goes_over_what_was_rejected_or_given_back() -> None:
    window = _window(4)
    window.settle(2)
    window.settle(4)
    window.finish(1)
    window.finish(3)
    assert window.run() == 3
    assert window.unsettled == 0


def test_a_run_of_nothing_but_rejected_ones_is_no_ack() -> None:
    window = _window(2)
    window.settle(1)
    window.settle(2)
    assert window.run() is None
    assert window.unsettled == 0


class _Channel:
    """What RabbitMQ knows of a channel: an ack that names a tag which is not outstanding closes it."""

    def __init__(self) -> None:
        self.outstanding: set[int] = set()
        self.acked: list[int] = []

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        assert tag in self.outstanding, f"406 PRECONDITION_FAILED - unknown delivery tag {tag}"
        answered = {known for known in self.outstanding if known <= tag} if multiple else {tag}
        self.outstanding -= answered
        self.acked += sorted(answered)


@pytest.mark.parametrize("seed", range(200))
def test_in_whatever_order_deliveries_end_each_finished_one_is_acked_exactly_once(seed: int) -> None:
    chance = random.Random(seed)
    window, channel = AckWindow(), _Channel()
    running: list[int] = []
    finished: set[int] = set()
    delivered = 0
    weights = [chance.random() for _ in range(5)]

    def send_acks(*, singly: bool) -> None:
        if singly:
            for tag in window.stragglers():
                channel.ack(tag)
        elif (run := window.run()) is not None:
            channel.ack(run, multiple=True)
        assert set(channel.acked) <= finished, "an unfinished delivery was acked"
        assert window.unsettled == len(channel.outstanding)

    def end(*, well: bool) -> None:
        tag = running.pop(chance.randrange(len(running)))
        if well:
            finished.add(tag)
            window.finish(tag)
        else:
            channel.outstanding.discard(tag)  # the reject, or the nack that gives back
            window.settle(tag)

    for _ in range(300):
        (step,) = chance.choices(("deliver", "finish", "give back", "run", "stragglers"), weights)
        if step == "deliver":
            delivered += 1
            channel.outstanding.add(delivered)
            window.delivered(delivered)
            running.append(delivered)
        elif step in ("run", "stragglers"):
            send_acks(singly=step == "stragglers")
        elif running:
            end(well=step == "finish")
    while running:
        end(well=True)
    send_acks(singly=False)
    assert not window.waiting, "what is finished with nothing unfinished below it needs no second look"
    assert channel.outstanding == set()
    assert sorted(channel.acked) == sorted(finished)


def test_a_crowd_above_an_unfinished_one_is_acked_at_once() -> None:
    window = _window(MOST_WAITING + 2)
    for tag in range(2, MOST_WAITING + 2):
        window.finish(tag)
        assert window.run() is None
        assert window.crowd() == []
    window.finish(MOST_WAITING + 2)
    assert window.crowd() == list(range(2, MOST_WAITING + 3))
    assert window.unsettled == 1
    window.finish(1)
    assert window.run() == 1
    assert window.unsettled == 0
