"""One queue's channel: consuming with manual acks, and coming back from whatever ends it.

Everything here runs on the link's I/O thread but `finish`, `reject` and `give_back`, which any thread may call.

**How much it holds.** The broker delivers up to a prefetch of unacked messages. RabbitMQ fixes it when a subscription
begins, so another one is had by subscribing anew on the same channel and cancelling the old; deliveries and their tags
belong to the channel and are not touched by it. With a prefetch of 0 there is no subscription.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

from pika import spec
from pika.channel import Channel

from ackline.consumers.answers import Answers
from ackline.consumers.delivery import Delivery
from ackline.infra.connection import Connection
from ackline.infra.frames import Arrived, delivery_names
from ackline.infra.link import Link
from ackline.infra.properties import Properties
from ackline.infra.table import text

log = logging.getLogger(__name__)

#: Seconds before a queue that is gone is looked for again.
REOPEN_SECONDS = 2.0
#: Seconds between the end of a subscription by the broker and the next one: 4.3 closes the whole connection of who
#: consumes a queue that is just being deleted.
_AGAIN_SECONDS = 2.0
#: Seconds that the broker gets to answer a subscription.
ANSWER_SECONDS = 20.0
#: Answers that have come together before the I/O thread is woken for them; otherwise it looks at its next tick.
FLUSH_AT = 64
_NOT_FOUND = 404
#: How long a channel stays open after its last answer, in times that its queue took for its last reply. A quorum
#: queue that is behind has its channel keep answers back, and who closes the channel then loses them: what was handled
#: is delivered again (`unsent_commands` of rabbit_fifo_client, 3.10 to 4.3). No reply tells when it has them.
LINGER = 3.0

_Cancel: Any = spec.Basic.Cancel
_CancelOk: Any = spec.Basic.CancelOk


class Subscription:
    """Consumes *queue* and hands what is delivered to *deliver*, in batches. Is the `Source` of those deliveries."""

    def __init__(
        self,
        queue: str,
        link: Link,
        *,
        prefetch: int,
        deliver: Callable[[list[Delivery]], None],
        consuming: Callable[[], None],
        quiet: Callable[[], bool] = lambda: True,
        voided: Callable[[], None] = lambda: None,
        arguments: Mapping[str, Any] | None = None,
        gather: float = 0.0,
    ) -> None:
        """prefetch: unacked deliveries at most, to begin with. consuming: called when the broker has begun to deliver.

        voided: called when the channel is gone, and so its deliveries. arguments: of `basic.consume`. gather: seconds
        for which answers may wait for others, so that the I/O thread wakes up once for all of them.

        quiet: whether nothing more is to be expected soon, so that an answer should go out at once.
        """
        self.queue = queue
        #: Who handles what is delivered.
        self.owner: Any = None
        #: Whether what has no answer must return to the queue before anybody gets what follows.
        self.in_order = False
        #: The number of the present channel: a delivery of another one is void. Read by any thread.
        self.generation = 0
        self._link = link
        self._prefetch = prefetch
        self._deliver = deliver
        self._consuming = consuming
        self._quiet = quiet
        self._voided = voided
        self._arguments = dict(arguments or {})
        self._gather = gather
        self._channel: Channel | None = None
        #: One that is about to be closed, when the queue has had the time to take its answers.
        self._releasing: Channel | None = None
        #: Consumer tag of the subscription that is wanted; None while there is to be none.
        self._tag: str | None = None
        self._cancelling = 0
        #: Seconds that the broker took to end a subscription, of late.
        self._latency = 0.0
        #: When there was something to wait for, at the last look of who stops (monotonic time).
        self._busy_at = 0.0
        self._answers: Answers | None = None
        self._finished: deque[Delivery] = deque()
        self._given: deque[tuple[Callable[[Answers, int], None], Delivery]] = deque()
        self._woken = False
        self._stopping = False
        self._missing = False
        self._ended_by_broker = False
        self._unanswered: str | None = None

    # --- from any thread -------------------------------------------------------------------------------

    def finish(self, delivery: Delivery) -> None:
        """Ack this delivery."""
        self._finished.append(delivery)
        if not self._woken and (len(self._finished) >= FLUSH_AT or self._quiet()):
            self._woken = True
            self._link.call(self._flush_soon if self._gather else self.flush)

    def reject(self, delivery: Delivery) -> None:
        """Have the broker dead-letter this delivery."""
        self._answer(Answers.reject, delivery)

    def give_back(self, delivery: Delivery) -> None:
        """Return this delivery, which was not begun, to its queue. Counts as no attempt."""
        self._answer(Answers.give_back, delivery)

    def _answer(self, how: Callable[[Answers, int], None], delivery: Delivery) -> None:
        self._given.append((how, delivery))
        if not self._woken:
            self._woken = True
            self._link.call(self.flush)

    # --- on the I/O thread -----------------------------------------------------------------------------

    @property
    def unsettled(self) -> int:
        """Deliveries that the broker has no answer for."""
        return self._answers.unsettled if self._answers is not None else 0

    @property
    def prefetch(self) -> int:
        """Unacked deliveries at most."""
        return self._prefetch

    @property
    def has_stopped(self) -> bool:
        """Whether nothing more comes, and everything that came is answered, so that the channel may be closed."""
        if not self._stopping or self._releasing is not None:
            return False
        if self._channel is None:
            return True
        return not self._is_busy and time.monotonic() - self._busy_at >= LINGER * self._latency

    @property
    def _is_busy(self) -> bool:
        return bool(self._tag or self._cancelling or self.unsettled)

    def open(self, connection: Connection) -> None:
        """Begin to consume on a new channel of *connection*."""
        if not self._stopping and connection.is_open and self._channel is None:
            # Known from now on, before it is open: a second one would count its tags from 1 as well.
            channel: Channel = connection.channel(on_open_callback=self._opened)
            self._channel = channel
            channel.add_on_close_callback(self._closed)
            connection.watch_deliveries(channel.channel_number, self._arrived)
            self._answers = Answers(self._link, channel)

    def lost(self) -> None:
        """The connection is gone: forget the tags."""
        self._ended_by_broker = False
        self._releasing = None
        self._forget()

    def stop(self) -> None:
        """Take no more deliveries; what is on its way is given back."""
        self._stopping = True
        self._busy_at = time.monotonic()
        self._unsubscribe()

    def hold(self, prefetch: int) -> None:
        """Have that many unacked deliveries at most from now on; 0 ends the subscription until the next call."""
        if prefetch == self._prefetch:
            return
        self._prefetch = prefetch
        if self._channel is None or not self._channel.is_open or self._stopping:
            return
        self._unsubscribe()
        if prefetch:
            self._subscribe(self._channel)

    def release(self, *, prefetch: int | None) -> None:
        """Return what has no answer to its queue, in order, by closing the channel; then begin anew with *prefetch*.

        None: never. It counts as a delivery. Not by cancelling before, as pika does: the next worker of a queue with a
        single active consumer would get what follows before what returns.
        """
        self.flush_all()
        self._stopping = self._stopping or prefetch is None
        self._prefetch = prefetch or 0
        channel = self._channel
        if channel is None or not channel.is_open:
            return
        connection: Any = channel.connection
        connection.forget_deliveries(channel.channel_number)  # nothing that still comes is of the next channel
        self._forget()
        self._releasing = channel
        channel.add_on_close_callback(self._released)
        since = time.monotonic()

        def close(_frame: Any) -> None:
            self._link.later(LINGER * (time.monotonic() - since), partial(self._close, channel))

        # A further subscription, which gets nothing: its reply comes through the queue's log, as what the answers do.
        channel.basic_consume(self.queue, lambda *_: None, callback=close)

    def _close(self, channel: Channel) -> None:
        if channel.is_open:
            cancelled: Any = channel._cancelled
            cancelled.update(channel.consumer_tags)
            channel.close()

    def _released(self, channel: Channel, _reason: Any) -> None:
        if channel is self._releasing:
            self._releasing = None
            if not self._stopping:
                connection: Any = channel.connection
                self._link.later(0.1, lambda: self.open(connection))

    def flush(self) -> None:
        """Send the answers that have come together."""
        self._woken = False
        answers, generation = self._answers, self.generation
        finished = self._finished
        while finished:
            delivery = finished.popleft()
            if answers is not None and delivery.generation == generation:  # else the broker has taken it back already
                answers.ack(delivery.tag)
        while self._given:
            how, delivery = self._given.popleft()
            if answers is not None and delivery.generation == generation:
                how(answers, delivery.tag)
        if answers is not None:
            answers.send()
        if self._stopping and self._is_busy:
            self._busy_at = time.monotonic()

    def _flush_soon(self) -> None:
        self._link.later(self._gather, self.flush)

    def flush_all(self) -> None:
        """Send every answer now, without waiting for a run."""
        self.flush()
        if self._answers is not None:
            self._answers.send_all()

    def _forget(self) -> None:
        self.generation += 1
        self._channel = None
        self._tag = None
        self._cancelling = 0
        self._answers = None
        self._voided()

    def _opened(self, channel: Channel) -> None:
        if self._stopping:
            channel.close()
            return
        channel.add_on_cancel_callback(self._cancelled)
        if self._prefetch:
            self._subscribe(channel)
        else:  # paused: it is as ready as it can be
            self._consuming()

    def _subscribe(self, channel: Channel) -> None:
        channel.basic_qos(prefetch_count=self._prefetch)  # it holds for the subscription that begins next
        tag = self._tag = channel.basic_consume(
            self.queue, self._on_message, arguments=self._arguments, callback=self._began
        )
        self._unanswered = tag
        self._link.later(ANSWER_SECONDS, lambda: self._look_for_answer(tag))

    def _unsubscribe(self) -> None:
        channel, tag, self._tag = self._channel, self._tag, None
        if channel is not None and channel.is_open and tag is not None:
            # Not pika's `basic_cancel`: after it pika rejects what is still on its way, which counts as a delivery.
            self._cancelling += 1
            rpc: Any = channel._rpc
            ended = partial(self._ended, channel, tag, time.monotonic())
            rpc(_Cancel(consumer_tag=tag, nowait=False), ended, [(_CancelOk, {"consumer_tag": tag})])

    def _ended(self, channel: Channel, tag: str, since: float, _frame: Any) -> None:
        self._latency = time.monotonic() - since
        if channel is self._channel:
            self._cancelling -= 1
        known: Any = channel._consumers
        known.pop(tag, None)

    def _look_for_answer(self, tag: str) -> None:
        """Begin anew when the broker has not answered: a quorum queue that had no leader yet may never do it."""
        if tag == self._unanswered and tag == self._tag and not self._stopping:
            self._link.drop(f"no answer to the subscription of {self.queue!r} in {ANSWER_SECONDS:g} s")

    def _began(self, _frame: Any) -> None:
        self._unanswered = None
        if self._missing:
            log.info("the queue %r is there again; consuming", self.queue)
        elif self._ended_by_broker:
            log.warning(
                "RabbitMQ ended the subscription of %r, as it does when a delivery has no answer within "
                "`consumer_timeout`, and delivers that again; subscribed again",
                self.queue,
            )
        self._missing = self._ended_by_broker = False
        self._consuming()

    def _cancelled(self, frame: Any) -> None:
        """The broker ended the subscription: a delivery timed out (4.3), or the queue was deleted.

        It has taken back what timed out, and ignores its ack. All else stays with this channel: to close it would
        count a delivery for each. (It closes it itself for a delivery of a subscription that we have ended, and before
        4.3 for any.) Where the queue is gone, it closes the channel at the next subscription.
        """
        channel = self._channel
        if channel is None or not channel.is_open or self._stopping or frame.method.consumer_tag != self._tag:
            return  # we were about to end it as well
        self._ended_by_broker = True
        if self.in_order:
            self.release(prefetch=self._prefetch)
            return
        # To the broker it is there until we end it, too, and may be delivered to; pika has forgotten it.
        known: Any = channel._consumers
        known[self._tag] = self._on_message
        self._unsubscribe()
        self._link.later(_AGAIN_SECONDS, partial(self._subscribe_again, channel))

    def _subscribe_again(self, channel: Channel) -> None:
        if channel is self._channel and channel.is_open and self._prefetch and not (self._tag or self._stopping):
            self._subscribe(channel)

    def _closed(self, channel: Channel, reason: Any) -> None:
        connection: Any = channel.connection
        connection.forget_deliveries(channel.channel_number)
        if channel is not self._channel:
            return
        self._forget()
        if self._stopping or not connection.is_open:
            return
        if reason.reply_code == _NOT_FOUND:
            # Whoever deleted it may have meant it, so it is not created again behind their back.
            if not self._missing:
                log.error(
                    "the queue %r is gone; waiting until it is there again (`ackline topology apply`, or a restart, "
                    "creates it)",
                    self.queue,
                )
            self._missing = True
        elif reason.reply_code not in (0, 200):
            log.error("the channel of %r was closed: %s", self.queue, reason.reply_text)
        self._link.later(REOPEN_SECONDS if self._missing else 0.1, lambda: self.open(connection))

    def _arrived(self, arrived: list[Arrived]) -> None:
        """A batch of messages, read at once."""
        generation, now = self.generation, time.monotonic()
        from_wire = Properties.from_wire
        deliveries = [
            Delivery(*_names(names), from_wire(properties), body, redelivered == 1, tag, generation, self, now)
            for tag, redelivered, names, properties, body in arrived
        ]
        self._take(deliveries)

    def _on_message(self, _channel: Channel, method: Any, properties: Any, body: bytes) -> None:
        """A message that came in pieces."""
        names = (_name(method.exchange), _name(method.routing_key))
        tag, redelivered = method.delivery_tag, method.redelivered
        self._take([Delivery(*names, properties, body, redelivered, tag, self.generation, self, time.monotonic())])

    def _take(self, deliveries: list[Delivery]) -> None:
        if self._answers is None:
            return
        self._answers.delivered(deliveries[-1].tag)
        if self._stopping or not self._prefetch:
            for delivery in deliveries:
                self.give_back(delivery)
        else:
            self._deliver(deliveries)


@lru_cache(maxsize=4096)
def _names(raw: bytes) -> tuple[str, str]:
    """Exchange and routing key as the frame of a delivery carries them."""
    exchange, routing_key = delivery_names(raw)
    return text(exchange), text(routing_key)


def _name(value: Any) -> str:
    """A name from pika, which gives bytes for what is not UTF-8."""
    return text(value) if isinstance(value, bytes) else str(value)
