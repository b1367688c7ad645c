"""A message as the broker delivered it."""

from __future__ import annotations

from typing import Any, Protocol

from ackline.infra.properties import Properties


class Source(Protocol):
    """Where a delivery came from, and is answered: a `Subscription`. Every method may be called on any thread."""

    @property
    def generation(self) -> int:
        """The number of the present channel: a delivery of another one is void."""

    def finish(self, delivery: Delivery) -> None:
        """Ack it."""

    def reject(self, delivery: Delivery) -> None:
        """Have the broker dead-letter it."""

    def give_back(self, delivery: Delivery) -> None:
        """Return it, which was not begun, to its queue. Counts as no attempt."""


class Delivery:
    """A message, and the broker's handle on this delivery of it. Do not change it.

    A delivery tag belongs to its channel, so the channel's number (*generation*) goes with it. Pickled, it is only the
    message.
    """

    __slots__ = (
        "arrived",
        "body",
        "exchange",
        "generation",
        "properties",
        "redelivered",
        "routing_key",
        "source",
        "tag",
    )

    def __init__(
        self,
        exchange: str,
        routing_key: str,
        properties: Properties,
        body: bytes,
        redelivered: bool = False,
        tag: int = 0,
        generation: int = 0,
        source: Any = None,
        arrived: float = 0.0,
    ) -> None:
        """redelivered: as the broker says it. source: a `Source`. arrived: monotonic time."""
        self.exchange = exchange
        self.routing_key = routing_key
        self.properties = properties
        self.body = body
        self.redelivered = redelivered
        self.tag = tag
        self.generation = generation
        self.source = source
        self.arrived = arrived

    @property
    def is_current(self) -> bool:
        """Whether the broker still waits for an answer to it; otherwise it delivers the message again."""
        return bool(self.generation == self.source.generation)

    def __reduce__(self) -> tuple[Any, ...]:
        return Delivery, (self.exchange, self.routing_key, self.properties, self.body, self.redelivered)

    def __repr__(self) -> str:
        return f"Delivery({self.exchange!r}, {self.routing_key!r}, tag={self.tag}, {len(self.body)} bytes)"
