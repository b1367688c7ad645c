"""pika's connections, with what is read and written most made lean, and a decoder that no header can kill.

There are two, for the two places where a connection can run (see `ackline.infra.loops`); what they add to pika is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pika
from pika.adapters.asyncio_connection import AsyncioConnection as PikaAsyncioConnection
from pika.frame import Header, decode_frame
from pika.heartbeat import HeartbeatChecker
from pika.spec import FRAME_HEADER

from ackline.infra.frames import ACK_SIZE, Arrived, ack_head, read_acks, read_deliveries
from ackline.infra.properties import Properties

#: Bytes to read at once. pika reads 4 KB, which is eight messages: each read costs a call of the system.
READ_SIZE = 128 * 1024


class Heartbeats(HeartbeatChecker):
    """Sends heartbeats, and looks for the broker's, of which two are due in each period of *timeout* seconds.

    pika looks every *timeout* + 5 seconds for what came since its last look, so that it may take more than two periods
    until it notices a connection that is half open.
    """

    def _start_check_timer(self) -> None:
        self._check_interval = self._timeout
        super()._start_check_timer()  # type: ignore[no-untyped-call]


class Connection:
    """What both connections add to pika's.

    Header frames are decoded on demand and never fail (see `ackline.infra.properties`). A run of acks, or of
    deliveries, is read at once, and frames that are bytes already are written at once.
    """

    _frame_buffer: bytes
    _ack_head = b""
    _on_acks: Callable[[list[tuple[int, int]]], None]
    #: By channel; made by the first `watch_deliveries`.
    _on_deliveries: dict[int, Callable[[list[Arrived]], None]] | None = None
    bytes_received: int
    bytes_sent: int
    frames_received: int
    frames_sent: int
    #: pika's own.
    params: Any
    channel: Any
    close: Any
    is_open: bool
    is_closed: bool
    is_closing: bool
    server_properties: Any
    add_on_connection_blocked_callback: Any
    add_on_connection_unblocked_callback: Any
    _adapter_emit_data: Any
    _process_frame: Any
    _terminate_stream: Any

    def watch_acks(self, channel: int, on_acks: Callable[[list[tuple[int, int]]], None]) -> None:
        """Have the broker's acks on *channel*, (tag, multiple) each, given to *on_acks* and not to pika."""
        self._ack_head = ack_head(channel)
        self._on_acks = on_acks

    def watch_deliveries(self, channel: int, on_deliveries: Callable[[list[Arrived]], None]) -> None:
        """Have what is delivered on *channel* given to *on_deliveries*, in batches.

        A message that comes in pieces is pika's, and goes to the callback that `basic_consume` was given; the order of
        all is kept. Ends with `forget_deliveries`, which a channel's close must call: its number is used again.
        """
        self._on_deliveries = {**(self._on_deliveries or {}), channel: on_deliveries}

    def forget_deliveries(self, channel: int) -> None:
        """Have what is delivered on *channel* be pika's again."""
        self._on_deliveries = {k: v for k, v in (self._on_deliveries or {}).items() if k != channel}

    def write(self, data: bytes, frames: int) -> None:
        """Send *data*, which is *frames* whole frames."""
        self.bytes_sent += len(data)
        self.frames_sent += frames
        self._adapter_emit_data(data)

    def _proto_connection_made(self, transport: Any) -> None:
        transport._MAX_RECV_BYTES = READ_SIZE
        super()._proto_connection_made(transport)  # type: ignore[misc]

    def _create_heartbeat_checker(self) -> HeartbeatChecker | None:
        seconds = self.params.heartbeat
        return Heartbeats(self, seconds) if seconds else None  # type: ignore[no-untyped-call]

    def drop(self, error: Exception) -> None:
        """Close the socket without a word, so that not even a silent broker leaves it open."""
        if not self.is_closed:
            self._terminate_stream(error)

    def _on_data_available(self, data_in: bytes) -> None:
        """pika's loop over the frames that arrived, with a short way for acks and deliveries."""
        self._frame_buffer += data_in
        while self._frame_buffer:
            if self._ack_head and self._frame_buffer.startswith(self._ack_head):
                acks = read_acks(self._frame_buffer, self._ack_head)
                if acks:
                    self._consumed(ACK_SIZE * len(acks))
                    self.frames_received += len(acks)
                    self._on_acks(acks)
                    continue
            if self._on_deliveries:
                read, begun = self._read_deliveries(self._on_deliveries)
                if begun:
                    return
                if read:
                    continue
            size, frame = self._read_frame()
            if not frame:
                return
            self._consumed(size)
            self._process_frame(frame)

    def _read_deliveries(self, watchers: dict[int, Callable[[list[Arrived]], None]]) -> tuple[bool, bool]:
        """Give away the deliveries that the buffer begins with; whether there were any, and whether one more began."""
        buffer, at, begun = self._frame_buffer, 0, False
        batches = []
        while on_deliveries := watchers.get(int.from_bytes(buffer[at + 1 : at + 3])):
            arrived, end, begun = read_deliveries(buffer, at, int.from_bytes(buffer[at + 1 : at + 3]))
            if not arrived:
                break
            self.frames_received += 3 * len(arrived)
            batches.append((on_deliveries, arrived))
            at = end
        if at:
            self._consumed(at)  # before anybody is called, who may raise
            for on_deliveries, arrived in batches:
                on_deliveries(arrived)
        return at > 0, begun

    def _consumed(self, size: int) -> None:
        self._frame_buffer = self._frame_buffer[size:]
        self.bytes_received += size  # the heartbeat looks at it

    def _read_frame(self) -> Any:
        buffer = self._frame_buffer
        if len(buffer) < 8 or buffer[0] != FRAME_HEADER:
            return decode_frame(buffer)
        end = 8 + int.from_bytes(buffer[3:7])
        if end > len(buffer):
            return 0, None
        properties: Any = Properties.from_wire(bytes(buffer[19 : end - 1]))
        return end, Header(int.from_bytes(buffer[1:3]), int.from_bytes(buffer[11:19]), properties)


class ThreadConnection(Connection, pika.SelectConnection):
    """Runs on pika's own event loop."""


class AsyncioConnection(Connection, PikaAsyncioConnection):
    """Runs on an asyncio event loop."""
