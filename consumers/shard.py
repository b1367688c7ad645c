"""One shard of an ordered consumer in a worker: the messages of a key one at a time, in the order of their queue.

The broker gives the shard's queue to one worker at a time (a single active consumer). Here each key has a lane
(`KeyLanes`): the next message of a key begins when the one before has its answer. A failed one is tried
again *in place*: it stays unacked and waits for its tier's delay in this process, so nothing of its key can overtake
it, and other keys go on as far as the prefetch reaches. It is done with that by half of `consumer_timeout` from its
delivery; then it goes to review, and its key goes on.

**Giving back in order.** When a subscription to a queue with a single active consumer is cancelled, the broker makes
the next worker the active one at once, and gives it what follows while what came before is still unacked here (seen on
3.10.8 and 4.3.6). When the *channel* is closed, it first returns what is unacked, in its order. So an ordered
subscription is never cancelled and nothing of it is nacked: to stop, to pause, and before deliveries get too old, it
begins nothing more, waits until what has begun has its answer, and closes the channel.

**Who is active** is decided by a priority that each worker has for each shard, from a hash of both: so the shards
spread over the workers, and only those of a worker that comes or goes move. A worker with a higher priority takes over
when the active one has answered what it holds (4.0 and later; before, whoever comes first stays active).
"""

from __future__ import annotations

import hashlib
from collections import deque
from functools import partial

from ackline.consumers.consumer import Consumer
from ackline.consumers.delivery import Delivery
from ackline.consumers.handling import Settlement
from ackline.consumers.key_lanes import KeyLanes
from ackline.consumers.runner import Item, Runner, Services
from ackline.infra.names import RETRY_TIERS, RETURN
from ackline.infra.wire import KEY

#: Unacked deliveries of a shard at most: so far the other keys go on while one waits.
PREFETCH = 100
#: Shares of `consumer_timeout`: what handlers may take for all that a shard holds; the end of tries in place; and the
#: age at which everything is given back, to be delivered anew.
_HELD_SHARE, _IN_PLACE_SHARE, _OLD_SHARE = 0.25, 0.5, 0.75

_TIERS = dict(RETRY_TIERS)


class Shard(Runner):
    """Runs *consumer* on one of its queues. See the top of this page."""

    def __init__(
        self,
        consumer: Consumer,
        services: Services,
        *,
        queue: str,
        concurrency: int,
        prefetch: int,
        consumer_timeout: float,
        processes: int,
    ) -> None:
        """See `Runner`. queue: of this shard."""
        shards = 1 if consumer.order is None else consumer.order.shards
        super().__init__(
            consumer,
            services,
            concurrency=concurrency,
            prefetch=min(prefetch, PREFETCH),
            consumer_timeout=consumer_timeout,
            processes=processes * shards,
            queue=queue,
            arguments={"x-priority": priority(services.name, queue)},
        )
        self._source = _Watched(self)
        self.subscription.in_order = True
        self._consumer_timeout = consumer_timeout
        self.way = self.way._replace(in_place=consumer_timeout * _IN_PLACE_SHARE)
        self.subscription.hold(self._prefetch())
        self._lanes: KeyLanes[Delivery] = KeyLanes()
        #: Those that have the way, and wait for a limit to let them begin.
        self._ready: deque[Delivery] = deque()
        #: Handed over, until the handler has returned; also of connections that were lost.
        self._running: set[Delivery] = set()
        #: Handed over, until they have an answer or wait for the next try.
        self._begun: set[Delivery] = set()
        self._releasing = False
        self._stopping = False
        # From any thread, for the I/O thread:
        self._returned: deque[Delivery] = deque()
        self._answered: deque[Delivery] = deque()
        self._woken = False

    # --- the I/O thread --------------------------------------------------------------------------------

    def _deliver(self, deliveries: list[Delivery]) -> None:
        self._services.busy()
        for delivery in deliveries:
            delivery.source = self._source
            if self._lanes.add(_key(delivery), delivery):
                self._ready.append(delivery)
        self._begin()

    def _begin(self) -> None:
        """Hand over those that have the way, as far as the limits let them."""
        if self._releasing or not self._ready:
            return
        room = min(self._limits.values(), default=len(self._ready) + len(self._begun)) - len(self._begun)
        if room <= 0:
            return
        begin = [self._ready.popleft() for _ in range(min(room, len(self._ready)))]
        self._running.update(begin)
        self._begun.update(begin)
        self._dispatch(begin)

    def _look(self) -> None:
        """See what has returned, and what has its answer."""
        self._woken = False
        self.subscription.flush()  # the acks go out before what they make way for begins
        while self._answered:
            delivery = self._answered.popleft()
            if delivery.is_current:
                self._make_way(delivery)
        while self._returned:
            delivery = self._returned.popleft()
            if not delivery.is_current and self._lanes.has_way(_key(delivery), delivery):
                self._make_way(delivery)  # its channel was lost before its answer, and its key has waited for it
            self._running.discard(delivery)
        self._begin()
        self._release_when_done()

    def _make_way(self, delivery: Delivery) -> None:
        self._begun.discard(delivery)
        following = self._lanes.leave(_key(delivery))
        if following is not None:
            self._ready.append(following)

    def _wait(self, delivery: Delivery, again: Delivery, seconds: float) -> None:
        """Keep the way for the next try of *delivery*, which is *again*."""
        if delivery.is_current:
            self._begun.discard(delivery)
            self._running.discard(delivery)
            self._lanes.renew(_key(delivery), again)
            self._services.link.later(seconds, partial(self._try, again))
            self._release_when_done()

    def _try(self, again: Delivery) -> None:
        if again.is_current and not self._releasing:
            self._ready.append(again)
            self._begin()

    def _hold(self) -> None:
        """The limits have changed. What waits here is given back only when it gets too old: that counts a delivery."""
        if 0 in self._limits.values():
            if not self._lanes and self.subscription.prefetch:
                self._release()
        elif not self.subscription.prefetch:
            self.subscription.hold(self._prefetch())
        self._begin()

    def _prefetch(self) -> int:
        """As many as their handlers can surely take while they are held."""
        if 0 in self._limits.values():
            return 0
        if not self.seconds:
            return self._most
        return max(1, min(self._most, int(self._consumer_timeout * _HELD_SHARE / self.seconds)))

    def adapt(self, long: int) -> None:
        """Nothing: another prefetch is another subscription, and it would change the active consumer."""

    def give_back_the_old(self, now: float) -> None:
        """Have everything delivered anew when some of it has been here for too long."""
        latest = now - self._consumer_timeout * _OLD_SHARE
        if any(delivery.arrived < latest for delivery in self._lanes):
            self._release()

    def _release(self) -> None:
        """Give back everything, in order, as soon as what has begun has its answer; nothing more begins."""
        self._releasing = True
        self._ready.clear()
        withdrawn = self.withdraw()
        self._running.difference_update(withdrawn)
        self._begun.difference_update(withdrawn)
        self._release_when_done()

    def _release_when_done(self) -> None:
        if self._releasing and not self._begun:
            self._releasing = False
            self.subscription.release(prefetch=None if self._stopping else self._prefetch())

    def voided(self) -> None:
        """See `Runner`. A handler that still runs keeps the way of its key."""
        self._releasing = False
        self._ready.clear()
        self._begun.clear()
        self._lanes.keep(self._running.__contains__)
        if self._stopping:
            self.subscription.release(prefetch=None)

    def stop(self) -> None:
        """Begin nothing more, and give back the rest when what runs has its answer."""
        self._stopping = True
        self._release()

    def close(self) -> None:
        """Send every answer and give back the rest, whatever still runs."""
        self.subscription.release(prefetch=None)

    @property
    def has_stopped(self) -> bool:
        """Whether nothing more comes, and everything that came has its answer or was given back."""
        return self.subscription.has_stopped and not self._running

    # --- handler threads, or the event loop ------------------------------------------------------------

    def run(self, item: Item) -> None:
        """Handle what was delivered. On a handler thread."""
        super().run(item)
        self._has_returned(item)

    def run_apart(self, item: Item) -> None:
        """Handle a suspect. On the thread for suspects."""
        super().run_apart(item)
        self._has_returned(item)

    async def arun(self, item: Item) -> None:
        """Handle what was delivered. On the event loop."""
        await super().arun(item)
        self._has_returned(item)

    def _has_returned(self, item: Item) -> None:
        assert isinstance(item, Delivery)  # noqa: S101 - an ordered consumer takes no batches
        self._tell(self._returned, item)

    def _answer(self, delivery: Delivery, settlement: Settlement) -> None:
        tier = settlement.outgoing[0] if settlement.outgoing else None
        if tier is None or tier.exchange not in _TIERS:
            super()._answer(delivery, settlement)
            return
        # What would come back through the tier: with the failure, and the number of the next attempt.
        again = Delivery(
            RETURN,
            self.consumer.name,
            tier.properties,
            delivery.body,
            delivery.redelivered,
            delivery.tag,
            delivery.generation,
            self._source,
            delivery.arrived,
        )
        if settlement.report is not None:
            self._services.reports.add(settlement.report)
        self._services.link.call(partial(self._wait, delivery, again, _TIERS[tier.exchange]))

    # --- any thread ------------------------------------------------------------------------------------

    def answered(self, delivery: Delivery) -> None:
        """It has its answer."""
        self._tell(self._answered, delivery)

    def released(self) -> None:
        """One delivery is to be given back: then all are, for one alone would lose its place."""
        self._services.link.call(self._release)

    def _tell(self, queue: deque[Delivery], delivery: Delivery) -> None:
        queue.append(delivery)
        if not self._woken:
            self._woken = True
            self._services.link.call(self._look)


class _Watched:
    """The `Source` of a shard's deliveries: has each answered, and tells the shard."""

    def __init__(self, shard: Shard) -> None:
        self.owner = shard
        self._subscription = shard.subscription

    @property
    def generation(self) -> int:
        return self._subscription.generation

    def finish(self, delivery: Delivery) -> None:
        self._subscription.finish(delivery)
        self.owner.answered(delivery)

    def reject(self, delivery: Delivery) -> None:
        self._subscription.reject(delivery)
        self.owner.answered(delivery)

    def give_back(self, delivery: Delivery) -> None:
        self.owner.released()


def priority(worker: str, queue: str) -> int:
    """How much *worker* is preferred for that shard: spread evenly over 31 bits."""
    return int.from_bytes(hashlib.sha256(f"{queue} {worker}".encode()).digest()[:4]) >> 1


def _key(delivery: Delivery) -> str | None:
    """The key of a message; those without one, or with one that is no text, have None in common."""
    return delivery.properties.headers.text(KEY)
