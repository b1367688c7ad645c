"""The AMQP frames of publishing, as bytes: messages on their way out, and the acks that come back.

pika makes an object of each frame and marshals it: half of the time that publishing took. These functions know
`basic.publish` and `basic.ack`, of which there are many; all other frames stay pika's. AMQP 0-9-1, 2.3.5 and 4.2.
"""

from __future__ import annotations

import struct
from functools import lru_cache

#: Octets of a frame besides its payload: type, channel and size before it, the end octet after it.
OVERHEAD = 8

_METHOD, _BODY, _END = 1, 3, b"\xce"
_BASIC, _PUBLISH, _ACK = 60, 40, 80
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
