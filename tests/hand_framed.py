"""A foreign AMQP client that frames by hand, for what no library encodes: it sends whatever octets it is given."""

from __future__ import annotations

import socket
import struct
from typing import Self
from urllib.parse import unquote, urlsplit

FRAME_METHOD, FRAME_HEADER, FRAME_BODY, FRAME_END = 1, 2, 3, b"\xce"
FRAME_MAX = 131_072

Method = tuple[int, int]
START, START_OK, TUNE, TUNE_OK, OPEN, OPEN_OK = (10, 10), (10, 11), (10, 30), (10, 31), (10, 40), (10, 41)
CHANNEL_OPEN, CHANNEL_OPEN_OK, CHANNEL_CLOSE = (20, 10), (20, 11), (20, 40)
CONFIRM_SELECT, CONFIRM_SELECT_OK = (85, 10), (85, 11)
PUBLISH, ACK, NACK = (60, 40), (60, 80), (60, 120)

#: Bits of the property flags.
HEADERS, TIMESTAMP, MESSAGE_ID, TYPE = 1 << 13, 1 << 6, 1 << 7, 1 << 5


class Closed(Exception):
    """The broker closed the channel or the connection; the text is the broker's."""


def short(value: bytes) -> bytes:
    """A short string."""
    return bytes((len(value),)) + value


def long(value: bytes) -> bytes:
    """A long string, or the inside of a table with its length."""
    return struct.pack(">I", len(value)) + value


def deep_table(depth: int) -> bytes:
    """The inside of a table that holds a table, and so on, *depth* deep."""
    inside = short(b"end") + b"V"
    for _ in range(depth):
        inside = short(b"t") + b"F" + long(inside)
    return inside


class HandFramedClient:
    """One connection with one channel in confirm mode."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 5672), timeout=60)
        self._read = self._socket.makefile("rb")
        self._socket.sendall(b"AMQP\x00\x00\x09\x01")
        self._expect(START)
        login = b"\x00" + unquote(parts.username or "guest").encode() + b"\x00" + unquote(parts.password or "").encode()
        self._send(0, START_OK, long(b"") + short(b"PLAIN") + long(login) + short(b"en_US"))
        self._expect(TUNE)
        self._send(0, TUNE_OK, struct.pack(">HIH", 2047, FRAME_MAX, 0))
        self._send(0, OPEN, short(unquote(parts.path[1:]).encode() or b"/") + short(b"") + b"\x00")
        self._expect(OPEN_OK)
        self._send(1, CHANNEL_OPEN, short(b""))
        self._expect(CHANNEL_OPEN_OK)
        self._send(1, CONFIRM_SELECT, b"\x00")
        self._expect(CONFIRM_SELECT_OK)

    def publish(self, exchange: bytes, routing_key: bytes, flags: int, properties: bytes, body: bytes) -> None:
        """Publish and wait for the confirm. *flags* and *properties* go out as they are.

        Raises `Closed` when the broker does not take it.
        """
        self._send(1, PUBLISH, b"\x00\x00" + short(exchange) + short(routing_key) + b"\x01")
        header = struct.pack(">HHQH", 60, 0, len(body), flags) + properties
        frames = [self._frame(FRAME_HEADER, 1, header)]
        size = FRAME_MAX - 8
        frames += [self._frame(FRAME_BODY, 1, body[at : at + size]) for at in range(0, len(body), size)]
        self._socket.sendall(b"".join(frames))
        self._expect(ACK)

    def close(self) -> None:
        self._read.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _frame(self, kind: int, channel: int, payload: bytes) -> bytes:
        return struct.pack(">BHI", kind, channel, len(payload)) + payload + FRAME_END

    def _send(self, channel: int, method: Method, arguments: bytes) -> None:
        self._socket.sendall(self._frame(FRAME_METHOD, channel, struct.pack(">HH", *method) + arguments))

    def _expect(self, method: Method) -> None:
        while True:
            head = self._read.read(7)
            if len(head) < 7:
                raise Closed("the connection ended")
            kind, _, size = struct.unpack(">BHI", head)
            payload = self._read.read(size + 1)[:-1]
            if kind != FRAME_METHOD:
                continue
            found = struct.unpack(">HH", payload[:4])
            if found == method:
                return
            if found in ((10, 50), CHANNEL_CLOSE, NACK):
                raise Closed(repr(payload[4:]))
