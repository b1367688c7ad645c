"""The frames of publishing are those that pika would write, and what arrives is read as pika would read it."""

from __future__ import annotations

from typing import Any

import pytest
from pika import frame
from pika import spec as pika_spec

from ackline.infra.frames import (
    OVERHEAD,
    ack_head,
    add_message,
    delivery_names,
    publish_method,
    read_acks,
    read_deliveries,
)
from ackline.infra.properties import Properties

FRAME_MAX = 4096
ROOM = FRAME_MAX - OVERHEAD
#: pika's methods have no types.
spec: Any = pika_spec
PROPERTIES = Properties(message_id="m-1", type="order.placed", headers={"x": 1}, delivery_mode=2)


def by_pika(channel: int, exchange: str, routing_key: str, body: bytes) -> bytes:
    properties: Any = PROPERTIES
    publish = spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True)
    frames = [frame.Method(channel, publish), frame.Header(channel, len(body), properties)]
    frames += [frame.Body(channel, body[at : at + ROOM]) for at in range(0, len(body), ROOM)]
    return b"".join(one.marshal() for one in frames)


@pytest.mark.parametrize("size", [0, 1, ROOM - 1, ROOM, ROOM + 1, 2 * ROOM, 3 * ROOM + 7])
def test_a_message_of_any_size_is_framed_as_pika_frames_it(size: int) -> None:
    body = bytes(index % 251 for index in range(size))
    pieces: list[bytes] = []
    count = add_message(pieces, 7, FRAME_MAX, publish_method("ackline.messages", "a.é"), PROPERTIES.wire, body)
    assert b"".join(pieces) == by_pika(7, "ackline.messages", "a.é", body)
    assert count == 2 + -(-size // ROOM)


def test_names_that_amqp_cannot_hold_are_refused() -> None:
    assert publish_method("e" * 255, "é" * 127)
    for exchange, routing_key in (("e" * 256, "k"), ("e", "é" * 128)):
        with pytest.raises(ValueError, match="256"):
            publish_method(exchange, routing_key)


def ack(channel: int, tag: int, multiple: bool) -> bytes:
    return bytes(frame.Method(channel, spec.Basic.Ack(tag, multiple)).marshal())


def test_a_run_of_acks_is_read_up_to_the_first_frame_that_is_none() -> None:
    run = ack(3, 1, False) + ack(3, 2**40, True)
    nack = bytes(frame.Method(3, spec.Basic.Nack(9, False)).marshal())
    for after in (b"", nack, ack(4, 9, False), ack(3, 9, False)[:-1], ack(3, 9, False)[:-1] + b"\x00"):
        assert read_acks(run + after, ack_head(3)) == [(1, 0), (2**40, 1)]
    assert read_acks(nack + run, ack_head(3)) == []


def test_the_head_of_an_ack_is_that_of_no_other_frame() -> None:
    others = [spec.Basic.Nack(1, False), spec.Basic.CancelOk("x" * 8), spec.Confirm.SelectOk()]
    assert not any(frame.Method(3, other).marshal().startswith(ack_head(3)) for other in others)


# --- deliveries ----------------------------------------------------------------------------------------------


def delivered(
    tag: int, body: bytes, *, channel: int = 3, redelivered: bool = False, frame_max: int = FRAME_MAX
) -> bytes:
    """A delivery as a broker sends it."""
    properties: Any = PROPERTIES
    deliver = spec.Basic.Deliver(
        consumer_tag="ctag1.é",
        delivery_tag=tag,
        redelivered=redelivered,
        exchange="ackline.messages",
        routing_key="a.é",
    )
    room = frame_max - OVERHEAD
    frames = [frame.Method(channel, deliver), frame.Header(channel, len(body), properties)]
    frames += [frame.Body(channel, body[at : at + room]) for at in range(0, len(body), room)]
    return b"".join(one.marshal() for one in frames)


def test_deliveries_are_read_in_a_run() -> None:
    first, second, third = delivered(1, b"one"), delivered(2**40, b"", redelivered=True), delivered(7, b"x" * 4000)
    arrived, end, begun = read_deliveries(first + second + third, 0, 3)
    assert (end, begun) == (len(first + second + third), False)
    assert [(tag, redelivered, body) for tag, redelivered, _, _, body in arrived] == [
        (1, 0, b"one"),
        (2**40, 1, b""),
        (7, 0, b"x" * 4000),
    ]
    assert {delivery_names(names) for _, _, names, _, _ in arrived} == {(b"ackline.messages", "a.é".encode())}
    assert {properties for _, _, _, properties, _ in arrived} == {PROPERTIES.wire}


def test_one_that_is_cut_anywhere_has_begun_and_is_read_when_the_rest_is_there() -> None:
    whole, next_ = delivered(1, b"one"), delivered(2, b"two")
    for cut in range(len(next_)):
        arrived, end, begun = read_deliveries(whole + next_[:cut], 0, 3)
        assert ([one[0] for one in arrived], end) == ([1], len(whole))
        # Of less than its head nobody knows what it is; pika waits for the rest as well.
        assert begun == (cut >= 12), cut
    arrived, _, begun = read_deliveries(whole + next_, len(whole), 3)
    assert ([one[0] for one in arrived], begun) == ([2], False)


@pytest.mark.parametrize(
    "other",
    [
        delivered(2, b"two", channel=4),
        frame.Heartbeat().marshal(),
        frame.Method(3, spec.Basic.CancelOk(consumer_tag="ctag1.é")).marshal(),
        delivered(2, b"x" * 100, frame_max=64),
        delivered(2, b"x" * 200_000, frame_max=131_072)[:300],
        delivered(2, b"two")[:-1] + b"\\x00",
    ],
    ids=["another channel", "a heartbeat", "another method", "several body frames", "a large one", "no frame end"],
)
def test_what_is_none_ends_the_run_and_is_left_to_pika(other: bytes) -> None:
    whole = delivered(1, b"one")
    arrived, end, begun = read_deliveries(whole + other, 0, 3)
    assert ([one[0] for one in arrived], end, begun) == ([1], len(whole), False)
