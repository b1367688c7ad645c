"""What the live broker has that the topology does not say, and the other way round: one sentence for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ackline.infra.management import Management
from ackline.infra.names import RETURN
from ackline.infra.topology import Binding, Topology

#: Policy keys that change what becomes of a message, and the declared argument that each stands for.
_POLICY_KEYS = {
    key: f"x-{key}"
    for key in (
        "dead-letter-exchange",
        "dead-letter-routing-key",
        "dead-letter-strategy",
        "delivery-limit",
        "expires",
        "max-length",
        "max-length-bytes",
        "message-ttl",
        "overflow",
    )
} | {"alternate-exchange": "alternate-exchange"}


def diff(wanted: Topology, management: Management) -> list[str]:
    """Every difference between *wanted* and the live broker, in the order of the topology; empty when there is none.

    Raises `ManagementUnreachable`.
    """
    exchanges = {found["name"]: found for found in management.get("exchanges/{vhost}")}
    queues = {found["name"]: found for found in management.get("queues/{vhost}?disable_stats=true")}
    bindings = {
        Binding(found["source"], found["destination"], found["routing_key"])
        for found in management.get("bindings/{vhost}")
        if found["destination_type"] == "queue" and found["source"]
    }
    return [
        *_exchange_differences(wanted, exchanges),
        *_queue_differences(wanted, queues),
        *_binding_differences(wanted, bindings, set(queues)),
    ]


def _exchange_differences(wanted: Topology, live: Mapping[str, Any]) -> Iterator[str]:
    for exchange in wanted.exchanges:
        name = f"exchange {exchange.name!r}"
        found = live.get(exchange.name)
        if found is None:
            yield f"{name} is missing; `ackline topology apply` creates it"
            continue
        declared = {"type": exchange.type, "durable": True, "arguments": exchange.arguments or {}}
        yield from _differences(name, declared, found)


def _queue_differences(wanted: Topology, live: Mapping[str, Any]) -> Iterator[str]:
    for queue in wanted.queues:
        name = f"queue {queue.name!r}"
        found = live.get(queue.name)
        if found is None:
            yield f"{name} is missing; `ackline topology apply` creates it"
            continue
        declared = {"durable": True, "auto_delete": False, "arguments": queue.queue_arguments}
        yield from _differences(name, declared, found)


def _differences(name: str, declared: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    for key in declared.keys() - {"arguments"}:
        if found.get(key) != declared[key]:
            yield f"{name} has {key} {found.get(key)!r}, declared {declared[key]!r}; delete it and apply again"
    arguments, live = declared["arguments"], found.get("arguments") or {}
    for key in sorted(arguments.keys() | live.keys()):
        if arguments.get(key) != live.get(key):
            yield (
                f"{name} has {key} {_shown(live, key)}, declared {_shown(arguments, key)}; "
                "a queue or exchange cannot be changed: move its messages, delete it and apply again"
            )
    policies = " and ".join(repr(found[key]) for key in ("policy", "operator_policy") if found.get(key))
    for key, value in sorted((found.get("effective_policy_definition") or {}).items()):
        argument = _POLICY_KEYS.get(key)
        if argument is not None and arguments.get(argument) != value:
            yield f"{name}: the policy {policies} sets {key} to {value!r}, declared {_shown(arguments, argument)}"


def _shown(arguments: Mapping[str, Any], key: str) -> str:
    return repr(arguments[key]) if key in arguments else "nothing"


def _binding_differences(wanted: Topology, live: set[Binding], live_queues: set[str]) -> Iterator[str]:
    declared = set(wanted.bindings())
    queues = {queue.name for queue in wanted.queues}
    for missing in sorted(declared - live, key=str):
        if missing.queue in live_queues:
            yield f"{_binding(missing)} is missing; `ackline topology apply` creates it"
    for extra in sorted(live - declared, key=str):
        if extra.queue in queues:
            yield f"{_binding(extra)} is not declared: messages come in by it that no handler here names"
        elif extra.exchange == RETURN:
            yield f"queue {extra.queue!r} is a consumer's, but no module of ACKLINE_APP has that consumer"


def _binding(bound: Binding) -> str:
    key = f" under {bound.routing_key!r}" if bound.routing_key else ""
    return f"the binding of queue {bound.queue!r} to exchange {bound.exchange!r}{key}"
