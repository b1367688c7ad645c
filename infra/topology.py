"""Every exchange, queue and binding that Ackline declares, described with kombu in one place.

The topology is a function of the consumers, so that `infra` knows none of them. See DESIGN "Topology" in
docs/inside.md for why each one is as it is; the rules that keep messages are in the comments here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from amqp.exceptions import AccessRefused, InvalidCommand, NotAllowed, NotFound, PreconditionFailed
from kombu import Connection, Exchange, Queue, binding
from kombu.exceptions import OperationalError

from ackline.infra.errors import AcklineError, ConfigurationError
from ackline.infra.link import explain, parameters
from ackline.infra.names import (
    ACCEPTED,
    BEAT,
    CONTROL,
    DEAD,
    MESSAGES,
    OUTCOMES,
    RESERVED_PREFIX,
    RETRY_TIERS,
    RETURN,
    TRACKED,
    UNROUTED,
    is_job_queue,
)
from ackline.infra.wire import KEY, SLOT, SLOTS

#: Deliveries of one message before the broker dead-letters it. Without a limit a message that kills its worker does so
#: for ever; each lost connection counts for every message in the prefetch window, so it must not be small.
DELIVERY_LIMIT = 20

#: The exchange type of the plugin rabbitmq_consistent_hash_exchange.
CONSISTENT_HASH = "x-consistent-hash"


class TopologyMismatch(AcklineError):
    """Something of the topology exists on the broker with other properties."""


class TopologyNotPermitted(AcklineError):
    """The user may not create something of the topology."""


@dataclass(frozen=True, slots=True)
class ConsumerQueue:
    """What the topology needs to know of a consumer: its name, and the message types that it takes.

    A queue of jobs is one that takes what is published under its own name.

    shards: of an ordered consumer; 0 for one that is not.
    """

    name: str
    types: tuple[str, ...]
    shards: int = 0

    @property
    def queues(self) -> tuple[str, ...]:
        """The names of its queues: one of its own name, or one for each shard."""
        return tuple(f"{self.name}.{shard}" for shard in range(1, self.shards + 1)) or (self.name,)

    @property
    def foreign(self) -> str:
        """The exchange of an ordered consumer for messages without a slot. Its name tells the number of shards.

        It is an argument of the exchange `<name>`, so the broker itself refuses another number of shards: the slots
        would be bound twice, and each message would go to two shards.
        """
        return f"{self.name}.foreign-{self.shards}"


@dataclass(frozen=True, slots=True)
class Binding:
    """A queue, or an exchange, is bound to an exchange under a routing key, or by headers: (name, value) each."""

    exchange: str
    destination: str
    routing_key: str
    headers: tuple[tuple[str, Any], ...] = ()
    to_exchange: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """As AMQP has them."""
        return dict(self.headers)


@dataclass(frozen=True, slots=True)
class Topology:
    """Exchanges and queues; a queue holds its bindings. links: from exchange to exchange."""

    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]
    links: tuple[Binding, ...] = ()

    def bindings(self) -> Iterator[Binding]:
        """Every binding."""
        for queue in self.queues:
            for bound in queue.bindings:
                headers = tuple(sorted((bound.arguments or {}).items()))
                yield Binding(bound.exchange.name, queue.name, bound.routing_key, headers)
        yield from self.links


def check_consumer_name(name: str) -> str:
    """*name* if a consumer, and so its queue, may have it; `ConfigurationError` otherwise."""
    if not name or not name.isprintable() or len(name.encode()) > 200 or name.startswith((RESERVED_PREFIX, "amq.")):
        raise ConfigurationError(
            f"{name!r} cannot be the name of a consumer: it names its queue, has 1 to 200 printable characters, "
            f"and does not begin with {RESERVED_PREFIX!r} or 'amq.'."
        )
    return name


def topology(
    consumers: Iterable[ConsumerQueue] = (), *, broker_version: str = "4.3", unhashed: Collection[str] | None = ()
) -> Topology:
    """The topology for these consumers on a broker of that version.

    unhashed: names of ordered consumers without the broker's consistent hash; None: all of them.
    Raises `ConfigurationError` for names that consumers cannot have.
    """
    consumers = tuple(consumers)
    _check_names(consumers)
    # Without it, 4.0 to 4.2 delete a message that was peeked at 21 times in the management UI; before 4.0 there is no
    # default limit, and the broker does not take -1.
    unlimited = {"x-delivery-limit": -1} if _major(broker_version) >= 4 else {}
    messages = Exchange(MESSAGES, "topic", arguments={"alternate-exchange": UNROUTED})
    # An exchange before `ackline.messages`, not one bound to it: where an exchange leads to another one, RabbitMQ never
    # takes its alternate exchange, and what nobody consumes would be lost. A topic exchange, for topic permissions.
    tracked = Exchange(TRACKED, "topic")
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
        # Without a dead-letter exchange: a copy that expires is nobody's delivery.
        _queue(ACCEPTED, unlimited, [binding(tracked, routing_key="#")]),
        # Quorum queues let several consume exclusively.
        Queue(BEAT, durable=True, auto_delete=False, queue_arguments={"x-queue-type": "classic"}),
        *[
            # The dead-letter exchange of a work queue is the final one, never a retry tier: delivery limit, then TTL,
            # then work again would be an automatic cycle.
            _queue(
                consumer.name,
                {"x-delivery-limit": DELIVERY_LIMIT} | _dead_letters_to(DEAD),
                [binding(returns, routing_key=consumer.name)]
                + [binding(messages, routing_key=type_) for type_ in sorted(consumer.types)],
            )
            for consumer in consumers
            if not consumer.shards
        ],
    ]
    exchanges = [messages, tracked, unrouted, returns, dead, outcomes, control, *(tier for tier, _ in tiers)]
    links = [Binding(TRACKED, MESSAGES, "#", to_exchange=True)]
    for consumer in consumers:
        if consumer.shards:
            exchanges += [
                _by_slot(consumer),
                _foreign(consumer, hashed=unhashed is not None and consumer.name not in unhashed),
            ]
            queues += _shards(consumer, *exchanges[-2:])
            links += [Binding(RETURN, consumer.name, consumer.name, to_exchange=True)]
            links += [Binding(MESSAGES, consumer.name, type_, to_exchange=True) for type_ in sorted(consumer.types)]
    return Topology(tuple(exchanges), tuple(queues), tuple(links))


def _by_slot(consumer: ConsumerQueue) -> Exchange:
    """The way into an ordered consumer: to the shard of a message's slot, which its publisher wrote.

    Not by the broker's consistent hash, which needs a plugin, and whose ring changes with its bindings: a key must not
    change its shard while messages wait.
    """
    return Exchange(consumer.name, "headers", arguments={"alternate-exchange": consumer.foreign})


def _foreign(consumer: ConsumerQueue, *, hashed: bool) -> Exchange:
    """The way in of messages without a slot: by the broker's hash of their key, else all to the first shard."""
    arguments = {"alternate-exchange": UNROUTED}
    if hashed:
        return Exchange(consumer.foreign, CONSISTENT_HASH, arguments=arguments | {"hash-header": KEY})
    return Exchange(consumer.foreign, "fanout", arguments=arguments)


def _shards(consumer: ConsumerQueue, by_slot: Exchange, foreign: Exchange) -> Iterator[Queue]:
    hashed = foreign.type == CONSISTENT_HASH
    for index, name in enumerate(consumer.queues):
        bindings = [
            binding(by_slot, arguments={"x-match": "all", SLOT: slot}) for slot in range(index, SLOTS, consumer.shards)
        ]
        if hashed or index == 0:
            bindings.append(binding(foreign, routing_key="1" if hashed else ""))  # of a hash it is the weight
        # One worker at a time takes the messages of a shard; the next one takes over when it is gone.
        arguments = {"x-delivery-limit": DELIVERY_LIMIT, "x-single-active-consumer": True} | _dead_letters_to(DEAD)
        yield _queue(name, arguments, bindings)


def _check_names(consumers: Iterable[ConsumerQueue]) -> None:
    owners: dict[str, str] = {}
    for consumer in consumers:
        if not is_job_queue(consumer.name):
            check_consumer_name(consumer.name)
        for queue in consumer.queues:
            other = owners.setdefault(queue, consumer.name)
            if other != consumer.name:
                raise ConfigurationError(
                    f"The consumers {other!r} and {consumer.name!r} would both have a queue {queue!r}; rename one."
                )


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
            consumers = tuple(consumers)
            ordered = [consumer for consumer in consumers if consumer.shards]
            for consumer in ordered:
                _refuse_other_shards(connection, consumer)
            wanted = topology(
                consumers,
                broker_version=str(connection.connection.server_properties["version"]),
                unhashed=[consumer.name for consumer in ordered if not _is_hashed(connection, consumer)],
            )
            for exchange in wanted.exchanges:
                _declare(connection, exchange)
            # Before the queues: what has a copy on record must have gone on.
            _link(connection, (link for link in wanted.links if link.exchange == TRACKED))
            for queue in wanted.queues:
                _declare(connection, queue)
            # After them: what comes in by these must find the shards.
            _link(connection, (link for link in wanted.links if link.exchange != TRACKED))
            return wanted
    except (AccessRefused, NotAllowed) as error:
        raise explain(error, url) from None
    except (OperationalError, *connection_errors()) as error:
        raise explain(error.__cause__ or error, url) from None


def _link(connection: Connection, links: Iterable[Binding]) -> None:
    for link in links:
        Exchange(link.destination).bind(connection.default_channel).bind_to(link.exchange, link.routing_key)


def connection_errors() -> tuple[type[Exception], ...]:
    """What kombu's AMQP transport raises when a connection cannot be had or is lost."""
    return tuple(Connection("amqp://").connection_errors)


def _refuse_other_shards(connection: Connection, consumer: ConsumerQueue) -> None:
    """Raise `TopologyMismatch` when the broker has *consumer* with other shards, or not ordered: both would get all."""
    try:
        _declare(connection, _by_slot(consumer))
    except TopologyMismatch:
        found = f"The broker has the ordered consumer {consumer.name!r} with other shards than {consumer.shards}"
    else:
        channel = connection.channel()
        try:
            channel.queue_declare(consumer.name, passive=True)
        except NotFound:
            return
        channel.close()
        found = f"There is a queue {consumer.name!r} from before that consumer was ordered"
    raise TopologyMismatch(
        f"{found}, and a key must not change its queue while messages wait. Stop what publishes its types "
        f"({', '.join(sorted(consumer.types))}), let the old workers empty the old queues, delete these and the "
        f"exchange {consumer.name!r}, and start again."
    )


def _is_hashed(connection: Connection, consumer: ConsumerQueue) -> bool:
    """Whether the broker hashes the keys of foreign clients: it has the plugin, or had it when *consumer* was new.

    What exists stays: a key must not change its shard when the plugin is turned on. Creates the exchange where it can.
    """
    with connection.clone() as own:  # brokers before 4.0 close the connection for a type that they do not know
        try:
            _foreign(consumer, hashed=True).bind(own.channel()).declare()
        except (PreconditionFailed, InvalidCommand):
            return False
        except AccessRefused as error:
            raise _not_permitted("exchange", consumer.foreign, error) from None
    return True


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
        raise _not_permitted(kind, entity.name, error) from None


def _not_permitted(kind: str, name: str, error: AccessRefused) -> TopologyNotPermitted:
    return TopologyNotPermitted(f"The {kind} {name!r} cannot be created: {error.reply_text}.")
