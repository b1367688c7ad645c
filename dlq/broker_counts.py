"""What the broker counts: the messages in its queues now, and where the management API answers, what went through."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ackline.dlq.queues import Queues
from ackline.infra.management import Management, ManagementUnreachable
from ackline.infra.names import ACCEPTED, DEAD, OUTCOMES, RETRY_TIERS, UNROUTED
from ackline.infra.settings import Settings
from ackline.infra.wire import now

#: What the reviewer reads: what is in one of these is on its way into the database.
TO_REVIEWER = (DEAD, UNROUTED, OUTCOMES, ACCEPTED)


@dataclass(frozen=True, slots=True)
class Depth:
    """The messages in a consumer's queues. held: by its workers, unacked; published, acked: since the node's start.

    What is None nobody has counted.
    """

    ready: int
    held: int | None = None
    published: int | None = None
    acked: int | None = None
    #: Ready and held, counted at one time, some seconds ago: so none is missed that a worker has just taken.
    together: int | None = None

    @property
    def most(self) -> int | None:
        """Messages that may be there at most; None when those that workers hold are not counted."""
        return None if self.held is None else max(self.ready + self.held, self.together or 0)


@dataclass(frozen=True, slots=True)
class Counts:
    """A look at the broker. consumers: None for one that has no queue. to_reviewer: ready messages of each such queue.

    since: when the broker began to count what went through.
    """

    consumers: Mapping[str, Depth | None]
    tiers: int
    to_reviewer: Mapping[str, int]
    since: datetime | None
    problem: str | None = None


def look(settings: Settings, queues: Queues, consumers: Collection[str]) -> Counts:
    """Count, for these *consumers*. Raises `BrokerUnreachable`, `BrokerRefused`."""
    ready = {consumer: queues.depth(consumer) for consumer in sorted(consumers)}
    tiers = sum(queues.depth(tier) or 0 for tier, _ in RETRY_TIERS)
    to_reviewer = {queue: queues.depth(queue) or 0 for queue in TO_REVIEWER}
    try:
        with Management(settings) as management:
            live = management.get("queues/{vhost}")
            since = _since(management)
    except ManagementUnreachable as error:
        depths = {name: None if found is None else Depth(found) for name, found in ready.items()}
        return Counts(depths, tiers, to_reviewer, None, str(error))
    depths = {name: None if found is None else _depth(found, name, live) for name, found in ready.items()}
    return Counts(depths, tiers, to_reviewer, since)


def _depth(ready: int, consumer: str, live: Iterable[Mapping[str, Any]]) -> Depth:
    """*ready*, with what the management API tells of the consumer's queues: one of its name, or its shards."""
    own = re.compile(re.escape(consumer) + r"(\.[0-9]+)?")
    queues = [queue for queue in live if own.fullmatch(queue["name"])]
    shards = [queue for queue in queues if queue["name"] != consumer]
    queues = [queue for queue in queues if queue["name"] == consumer] or shards
    passed = [queue.get("message_stats", {}) for queue in queues]
    return Depth(
        ready,
        _sum(queue.get("messages_unacknowledged") for queue in queues),
        sum(stats.get("publish", 0) for stats in passed),
        sum(stats.get("ack", 0) for stats in passed),
        _sum(queue.get("messages") for queue in queues),
    )


def _sum(values: Iterable[int | None]) -> int | None:
    """The sum; None when one is not known, as of a queue that RabbitMQ has not counted yet."""
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _since(management: Management) -> datetime | None:
    try:
        # A node that has just started tells nothing of itself for some seconds.
        uptimes = [node["uptime"] for node in management.get("nodes") if node.get("running") and "uptime" in node]
    except ManagementUnreachable:  # that takes another tag
        return None
    return now() - timedelta(milliseconds=min(uptimes)) if uptimes else None
