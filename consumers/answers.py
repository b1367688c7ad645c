"""Answering the deliveries of one channel: acks in runs, stragglers singly, rejects and give-backs at once."""

from __future__ import annotations

from pika.channel import Channel

from ackline.consumers.acks import STRAGGLER_SECONDS, AckWindow
from ackline.infra.link import Link


class Answers:
    """The answers to one channel's deliveries. The I/O thread's own; void, and silent, once the channel is closed.

    Tags belong to a channel, so there is one of these for each channel and none outlives it.
    """

    def __init__(self, link: Link, channel: Channel) -> None:
        self._link = link
        self._channel = channel
        self._window = AckWindow()
        self._watching = False

    def delivered(self, tag: int) -> None:
        """Deliveries came, the last of them with this tag."""
        self._window.delivered(tag)

    @property
    def unsettled(self) -> int:
        """Deliveries without an answer."""
        return self._window.unsettled

    def ack(self, tag: int) -> None:
        """A delivery is done with. Goes out with `send`."""
        self._window.finish(tag)

    def reject(self, tag: int) -> None:
        """Have the broker dead-letter a delivery."""
        if self._channel.is_open:
            self._channel.basic_reject(tag, requeue=False)
            self._window.settle(tag)

    def give_back(self, tag: int) -> None:
        """Return a delivery to its queue."""
        if self._channel.is_open:
            self._channel.basic_nack(tag, requeue=True)  # on 4.3 a reject would count towards the delivery limit
            self._window.settle(tag)

    def send(self) -> None:
        """Ack what has finished without a gap; what lies above one is acked singly a little later."""
        run = self._window.run()
        if run is not None and self._channel.is_open:
            self._channel.basic_ack(run, multiple=True)
        self._ack_singly(self._window.crowd())
        self._watch()

    def send_all(self) -> None:
        """Ack everything that has finished, now."""
        self.send()
        for _ in range(2):  # what is new becomes a straggler at the first look
            self._ack_singly(self._window.stragglers())

    def _watch(self) -> None:
        if self._window.waiting and not self._watching and self._channel.is_open:
            self._watching = True
            self._link.later(STRAGGLER_SECONDS, self._look)

    def _look(self) -> None:
        self._watching = False
        self._ack_singly(self._window.stragglers())
        self._watch()

    def _ack_singly(self, tags: list[int]) -> None:
        for tag in tags:
            if self._channel.is_open:
                self._channel.basic_ack(tag)
