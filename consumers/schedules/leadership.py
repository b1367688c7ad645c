"""Which of several beats is the active one.

It is the one that consumes the queue `ackline.beat`, exclusively: RabbitMQ refuses that to a second one, and its name
is the consumer's tag in the management UI. No message ever goes there. The others look once a second whether somebody
consumes it. A beat that is killed is followed within that second; one that stands still, or whose machine is gone, when
it has missed two heartbeats.

What this decides is who does the work. That no tick is run twice does not depend on it
(`ackline.consumers.schedules.rows`), so a beat that cannot learn who is active does the work, too, as while RabbitMQ is
away: what it writes is published when RabbitMQ is back.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from pika.channel import Channel

from ackline.infra.connection import Connection
from ackline.infra.errors import AcklineError
from ackline.infra.link import BrokerUnreachable, Link
from ackline.infra.names import BEAT
from ackline.infra.settings import process_name
from ackline.infra.topology import declare

log = logging.getLogger(__name__)

#: Seconds between heartbeats: RabbitMQ's least that gives no false alarms.
_HEARTBEAT = 5
#: Seconds between a standby's looks, and before it takes part anew.
_LOOK_SECONDS = 1.0
#: Seconds after which a beat that does not know who is active is active.
_ALONE_SECONDS = 5.0


class Leadership:
    """Takes part in the choice, from `start` to `stop`."""

    def __init__(self, url: str) -> None:
        """url: the broker."""
        self._url = url
        self._link = Link(url, f"beat {process_name()}", on_up=self._up, on_down=self._down, heartbeat=_HEARTBEAT)
        self._channel: Channel | None = None
        self._leads = False
        self._told = ""
        self._known = threading.Event()
        #: Since when it is not known who is active (monotonic time); None while it is.
        self._lost_at: float | None = time.monotonic()

    # --- from the beat's thread ------------------------------------------------------------------------

    def start(self, timeout: float) -> None:
        """Begin. Returns when it is known who is active, or after *timeout* seconds. Raises `BrokerRefused`."""
        self._link.start()
        try:
            self._link.wait_up(timeout)
        except BrokerUnreachable as error:
            log.warning("%s Schedules go on; what they run is published when it is back.", error)
        else:
            self._known.wait(timeout)

    @property
    def is_active(self) -> bool:
        """Whether this process is to do the work now. Costs nothing."""
        lost_at = self._lost_at
        return self._leads or (lost_at is not None and time.monotonic() - lost_at > _ALONE_SECONDS)

    def stop(self) -> None:
        """Let another one be active."""
        self._link.stop()

    # --- on the I/O thread -----------------------------------------------------------------------------

    def _up(self, connection: Connection) -> None:
        threading.Thread(target=self._prepare, args=(connection,), name="topology", daemon=True).start()

    def _down(self, reason: AcklineError) -> None:
        self._lose()

    def _lose(self) -> None:
        self._channel = None
        self._leads = False
        self._lost_at = self._lost_at or time.monotonic()

    def _prepare(self, connection: Connection) -> None:
        """Create what is missing, as on a broker that lost its data; then take part. On a thread of its own."""
        try:
            declare(self._url)
        except AcklineError as error:
            log.warning("%s Going on with what exists.", error)
        self._link.call(lambda: self._open(connection))

    def _open(self, connection: Connection) -> None:
        if connection.is_open:
            connection.channel(on_open_callback=self._opened).add_on_close_callback(self._closed)

    def _opened(self, channel: Channel) -> None:
        self._channel = channel
        channel.add_on_cancel_callback(lambda _frame: channel.close())
        self._look(channel)

    def _look(self, channel: Channel) -> None:
        """Ask how many consume the queue. To ask for it and be refused would close the channel, once a second."""
        if channel is self._channel and channel.is_open:
            channel.queue_declare(BEAT, passive=True, callback=lambda frame: self._seen(channel, frame))

    def _seen(self, channel: Channel, frame: Any) -> None:
        if frame.method.consumer_count == 0:
            channel.basic_consume(
                BEAT,
                lambda *_: None,
                auto_ack=True,
                exclusive=True,
                consumer_tag=process_name(),
                callback=lambda _frame: self._lead(),
            )
            return
        self._tell("standing by: another beat is active")
        self._link.later(_LOOK_SECONDS, lambda: self._look(channel))

    def _lead(self) -> None:
        self._leads = True
        self._tell("active: this is the beat that runs schedules")

    def _closed(self, channel: Channel, reason: Any) -> None:
        """Another one was quicker; or the queue is gone."""
        if channel is not self._channel:
            return
        self._lose()
        if channel.connection.is_open:
            log.info("the choice of the active beat begins anew: %s", reason.reply_text)
            self._link.later(_LOOK_SECONDS, lambda: self._up(channel.connection))

    def _tell(self, state: str) -> None:
        if state != self._told:
            log.info(state)
        self._told = state
        self._lost_at = None
        self._known.set()
