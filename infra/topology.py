"""Every exchange, queue and binding that Ackline declares, described with kombu in one place.

The topology is a function of the consumers, so that `infra` knows none of them. See DESIGN "Topology" in
docs/inside.md for why each one is as it is; the rules that keep messages are in the comments here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from amqp.exceptions import AccessRefused, NotAllowed, PreconditionFailed
from kombu import Connection, Exchange, Queue, binding
from kombu.exceptions import OperationalError

from ackline.infra.errors import AcklineError, ConfigurationError
from ackline.infra.link import explain, parameters
from ackline.infra.names import CONTROL, DEAD, MESSAGES, OUTCOMES, RESERVED_PREFIX, RETRY_TIERS, RETURN, UNROUTED

#: Deliveries of one message before the broker dead-letters it. Without a limit a message that kills its worker does so
#: for ever; each lost connection counts for every message in the prefetch window, so it must not be small.
DELIVERY_LIMIT = 20


class TopologyMismatch(AcklineError):
    """Something of the topology exists on the broker with other properties."""


class TopologyNotPermitted(AcklineError):
    """The user may not create something of the topology."""


@dataclass(frozen=True, slots=True)
class ConsumerQueue:
    """What the topology needs to know of a consumer: its name, and the message types that it takes."""

    name: str
    types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Binding:
    """A queue is bound to an exchange under a routing key."""

    exchange: str
    queue: str
    routing_key: str


@dataclass(frozen=True, slots=True)
class Topology:
    """Exchanges and queues; a queue holds its bindings."""

    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]

    def bindings(self) -> Iterator[Binding]:
        """Every binding."""
        for queue in self.queues:
            for bound in queue.bindings:
                yield Binding(bound.exchange.name, queue.name, bound.routing_key)


def check_consumer_name(name: str) -> str:
    """*name* if a consumer, and so its queue, may have it; `ConfigurationError` otherwise."""
    if not name or not name.isprintable() or len(name.encode()) > 200 or name.startswith((RESERVED_PREFIX, "amq.")):
        raise ConfigurationError(
            f"{name!r} cannot be the name of a consumer: it names its queue, has 1 to 200 printable characters, "
            f"and does not begin with {RESERVED_PREFIX!r} or 'amq.'."
        )
    return name


def topology(consumers: Iterable[ConsumerQueue] = (), *, broker_version: str = "4.3") -> Topology:
    """The topology for these consumers on a broker of that version."""
    # Without it, 4.0 to 4.2 delete a message that was peeked at 21 times in the management UI; before 4.0 there is no
    # default limit, and the broker does not take -1.
    unlimited = {"x-delivery-limit": -1} if _major(broker_version) >= 4 else {}
    messages = Exchange(MESSAGES, "topic", arguments={"alternate-exchange": UNROUTED})
    unrouted = Exchange(UNROUTED, "fanout")
    # At-least-once dead-lettering of 32 messages that cannot be routed stalls all later ones of that queue, so every
    # dead-letter target leads somewhere: `ackline.return` through its alternate exchange, the fanouts by themselves.
    returns = Exchange(RETURN, "direct", arguments={"alternate-exchange": UNROUTED})
    dead = Exchange(DEAD, "fanout")
    outcomes = Exchange(OUTCOMES, "topic")
    control = Exchange(CONTROL, "fanout")  # its queues are the workers' own, exclusive: each declares one
    tiers = [(Exchange(name, "fanout"), seconds) for name, seconds in RETRY_TIERS]
    queues = [
        _queue(UNROUTED, unlimited | _dead_letters_to(DEAD), [binding(unrouted)]),
        *[
            _queue(tier.name, unlimited | {"x-message-ttl": seconds * 1000} | _dead_letters_to(RETURN), [binding(tier)])
            for tier, seconds in tiers
        ],
        _queue(DEAD, unlimited, [binding(dead)]),
        _queue(OUTCOMES, unlimited, [binding(outcomes, routing_key="#")]),
        *[
            # The dead-letter exchange of a work queue is the final one, never a retry tier: delivery limit, then TTL,
            # then work again would be an automatic cycle.
            _queue(
                check_consumer_name(consumer.name),
                {"x-delivery-limit": DELIVERY_LIMIT} | _dead_letters_to(DEAD),
                [binding(returns, routing_key=consumer.name)]
                + [binding(messages, routing_key=type_) for type_ in sorted(consumer.types)],
            )
            for consumer in consumers
        ],
    ]
    exchanges = (messages, unrouted, returns, dead, outcomes, control, *(tier for tier, _ in tiers))
    return Topology(exchanges, tuple(queues))


def _dead_letters_to(exchange: str) -> dict[str, Any]:
    return {
        "x-dead-letter-exchange": exchange,
        "x-dead-letter-strategy": "at-least-once",
        # drop-head would silently turn at-least-once into at-most-once.
        "x-overflow": "reject-publish",
    }


def _queue(name: str, arguments: dict[str, Any], bindings: list[Any]) -> Queue:
    return Queue(
        name, durable=True, auto_delete=False, queue_arguments={"x-queue-type": "quorum"} | arguments, bindings=bindings
    )


def _major(version: str) -> int:
    head = version.split(".", 1)[0]
    return int(head) if head.isdigit() else 4


def declare(url: str, consumers: Iterable[ConsumerQueue] = ()) -> Topology:
    """Create what is missing of the topology on the broker at *url*; what exists is left as it is. Returns it.

    Raises `TopologyMismatch` when something exists with other properties, `TopologyNotPermitted` when the user may not
    create something that is missing, `BrokerRefused` and `BrokerUnreachable` when there is no connection to be had.
    """
    parameters(url, "topology")  # says clearly what is wrong with a URL
    try:
        with Connection(url, connect_timeout=5, ssl=urlsplit(url).scheme == "amqps") as connection:
            connection.connect()
            wanted = topology(consumers, broker_version=str(connection.connection.server_properties["version"]))
            for entity in (*wanted.exchanges, *wanted.queues):
                _declare(connection, entity)
            return wanted
    except (AccessRefused, NotAllowed) as error:
        raise explain(error, url) from None
    except (OperationalError, *connection_errors()) as error:
        raise explain(error.__cause__ or error, url) from None


def connection_errors() -> tuple[type[Exception], ...]:
    """What kombu's AMQP transport raises when a connection cannot be had or is lost."""
    return tuple(Connection("amqp://").connection_errors)


def _declare(connection: Connection, entity: Exchange | Queue) -> None:
    kind = type(entity).__name__.lower()
    channel = connection.channel()
    try:
        entity.bind(channel).declare()
        channel.close()
    except PreconditionFailed as error:
        raise TopologyMismatch(
            f"The {kind} {entity.name!r} exists with other properties than Ackline's: {error.reply_text}. "
            "`ackline topology diff` names them; move its messages elsewhere, delete it, and apply again."
        ) from None
    except AccessRefused as error:
        raise TopologyNotPermitted(f"The {kind} {entity.name!r} cannot be created: {error.reply_text}.") from None
