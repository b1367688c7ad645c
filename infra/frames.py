"""The AMQP frames of messages, as bytes: those published, the acks that come back, and those delivered.

pika makes an object of each frame and marshals it: half of the time that publishing and consuming took. These functions
know `basic.publish`, `basic.ack` and `basic.deliver`, of which there are many; all other frames stay pika's.
AMQP 0-9-1, 2.3.5 and 4.2.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TypeAlias

#: Octets of a frame besides its payload: type, channel and size before it, the end octet after it.
OVERHEAD = 8

_METHOD, _HEADER, _BODY, _END = 1, 2, 3, b"\xce"
_BASIC, _PUBLISH, _DELIVER, _ACK = 60, 40, 60, 80
_MANDATORY = 1
_FRAME = struct.Struct(">BHI")
#: End of the method frame, begin of the header frame up to the properties: class, weight, size of the body.
_END_AND_HEADER = struct.Struct(">BBHIHHQ")
_END_AND_BODY = struct.Struct(">BBHI")
#: Of an ack: its tag, whether it is for all tags up to it, and the end octet.
_TAG = struct.Struct(">QBB")
_ACK_PAYLOAD = 4 + 8 + 1


@lru_cache(maxsize=1024)
def publish_method(exchange: str, routing_key: str) -> bytes:
    """The payload of a mandatory `basic.publish`. Raises ValueError for a name longer than the 255 bytes of AMQP."""
    names = [name.encode("utf-8", "surrogateescape") for name in (exchange, routing_key)]
    texts = [bytes((len(name),)) + name for name in names]
    return b"".join((struct.pack(">HHH", _BASIC, _PUBLISH, 0), *texts, bytes((_MANDATORY,))))


def add_message(
    pieces: list[bytes], channel: int, frame_max: int, method: bytes, properties: bytes, body: bytes
) -> int:
    """Append the frames of a message to *pieces*, to be joined; returns how many frames they are.

    method: see `publish_method`. properties: flags and values. Neither may exceed a frame of *frame_max* bytes; a body
    is split into as many as it needs.
    """
    size = len(body)
    pieces += (
        _FRAME.pack(_METHOD, channel, len(method)),
        method,
        _END_AND_HEADER.pack(0xCE, 2, channel, 12 + len(properties), _BASIC, 0, size),
        properties,
    )
    room = frame_max - OVERHEAD
    if 0 < size <= room:
        pieces += (_END_AND_BODY.pack(0xCE, _BODY, channel, size), body, _END)
        return 3
    for at in range(0, size, room):
        part = body[at : at + room]
        pieces += (_END_AND_BODY.pack(0xCE, _BODY, channel, len(part)), part)
    pieces.append(_END)
    return 2 + -(-size // room)


#: Octets of an ack.
ACK_SIZE = OVERHEAD + _ACK_PAYLOAD


def ack_head(channel: int) -> bytes:
    """What each ack on *channel* begins with."""
    return _FRAME.pack(_METHOD, channel, _ACK_PAYLOAD) + struct.pack(">HH", _BASIC, _ACK)


def read_acks(buffer: bytes, head: bytes) -> list[tuple[int, int]]:
    """The acks that *buffer* begins with, up to the first frame that is none or not complete: (tag, multiple) each.

    head: what an ack begins with; see `ack_head`.
    """
    acks = []
    at, last = 0, len(buffer) - ACK_SIZE
    while at <= last and buffer.startswith(head, at):
        tag, multiple, end = _TAG.unpack_from(buffer, at + len(head))
        if end != 0xCE:
            break
        acks.append((tag, multiple & 1))
        at += ACK_SIZE
    return acks


#: Of a delivery: the head of its method frame up to the size of the consumer tag, which is followed by the delivery tag
#: and the redelivered bit; the head of its header frame up to the properties; and the head of its body frame.
_DELIVER_HEAD = struct.Struct(">BHIHHB")
_DELIVER_TAG = struct.Struct(">QB")
_HEADER_HEAD = struct.Struct(">BHIHHQ")

#: A message from the wire: delivery tag, whether it was delivered before, exchange and routing key as the frame carries
#: them, properties (flags and values), body.
Arrived: TypeAlias = tuple[int, int, bytes, bytes, bytes]


#: Bytes of the frames of a message that are waited for as a whole; a larger one is put together by pika.
_WHOLE = 64 * 1024


def read_deliveries(buffer: bytes, at: int, channel: int) -> tuple[list[Arrived], int, bool]:
    """The messages delivered on *channel* that *buffer* holds from *at* on, where they end, and whether one more began.

    Up to the first frame that is no `basic.deliver` of that channel, or whose message is large or comes in several body
    frames: that one is left to pika. A smaller one of which a part is there has begun: more is to be read first.
    """
    arrived: list[Arrived] = []
    size = len(buffer)
    begun = False
    unpack_deliver, unpack_tag = _DELIVER_HEAD.unpack_from, _DELIVER_TAG.unpack_from
    unpack_header, unpack_frame = _HEADER_HEAD.unpack_from, _FRAME.unpack_from
    while size - at >= _DELIVER_HEAD.size:
        kind, number, length, class_, method, tag_size = unpack_deliver(buffer, at)
        if kind != _METHOD or number != channel or class_ != _BASIC or method != _DELIVER:
            break
        header = at + OVERHEAD + length
        if header + _HEADER_HEAD.size > size:
            begun = length < _WHOLE
            break
        kind, number, length, _, _, body_size = unpack_header(buffer, header)
        body = header + OVERHEAD + length
        if kind != _HEADER or number != channel:
            break
        end = body + OVERHEAD + body_size if body_size else body
        if end > size:
            begun = end - at < _WHOLE
            break
        if buffer[end - 1] != 0xCE or (body_size and unpack_frame(buffer, body) != (_BODY, channel, body_size)):
            break
        tag_at = at + _DELIVER_HEAD.size + tag_size
        tag, redelivered = unpack_tag(buffer, tag_at)
        arrived.append(
            (
                tag,
                redelivered,
                buffer[tag_at + _DELIVER_TAG.size : header - 1],
                buffer[header + _HEADER_HEAD.size : body - 1],
                buffer[body + 7 : end - 1] if body_size else b"",
            )
        )
        at = end
    return arrived, at, begun


def delivery_names(names: bytes) -> tuple[bytes, bytes]:
    """Exchange and routing key of a delivery, from how its frame carries them."""
    end = 1 + names[0]
    return names[1:end], names[end + 1 : end + 1 + names[end]]
