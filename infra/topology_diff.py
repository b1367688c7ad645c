"""What the live broker has that the topology does not say, and the other way round: one sentence for each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
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

#: The policies of a vhost by their rank: users' and operators'.
Policies = Mapping[str, Sequence[Mapping[str, Any]]]


def diff(wanted: Topology, management: Management) -> list[str]:
    """Every difference between *wanted* and the live broker, in the order of the topology; empty when there is none.

    Raises `ManagementUnreachable`.
    """
    exchanges = {found["name"]: found for found in management.get("exchanges/{vhost}")}
    queues = {found["name"]: found for found in management.get("queues/{vhost}?disable_stats=true")}
    bindings = {
        Binding(
            found["source"],
            found["destination"],
            found["routing_key"],
            tuple(sorted(found["arguments"].items())),
            found["destination_type"] == "exchange",
        )
        for found in management.get("bindings/{vhost}")
        if found["source"]
    }
    # By the policies themselves: the API tells no effective definition of exchanges, nor of queues before 4.0.
    policies = {"policy": management.get("policies/{vhost}")}
    policies["operator policy"] = management.get("operator-policies/{vhost}")
    return [
        *_exchange_differences(wanted, exchanges, policies),
        *_queue_differences(wanted, queues, policies),
        *_binding_differences(wanted, bindings, (set(queues), set(exchanges))),
    ]


def _exchange_differences(wanted: Topology, live: Mapping[str, Any], policies: Policies) -> Iterator[str]:
    for exchange in wanted.exchanges:
        name = f"exchange {exchange.name!r}"
        found = live.get(exchange.name)
        if found is None:
            yield f"{name} is missing; `ackline topology apply` creates it"
            continue
        kept = {"durable": True, "auto_delete": False, "internal": False}
        declared = {"type": exchange.type, "arguments": exchange.arguments or {}} | kept
        yield from _differences(name, declared, found)
        yield from _policy_differences(name, exchange.name, ("exchanges",), exchange.arguments or {}, policies)


def _queue_differences(wanted: Topology, live: Mapping[str, Any], policies: Policies) -> Iterator[str]:
    for queue in wanted.queues:
        name = f"queue {queue.name!r}"
        found = live.get(queue.name)
        if found is None:
            yield f"{name} is missing; `ackline topology apply` creates it"
            continue
        declared = {"durable": True, "auto_delete": False, "arguments": queue.queue_arguments}
        yield from _differences(name, declared, found)
        yield from _policy_differences(name, queue.name, ("queues", "quorum_queues"), queue.queue_arguments, policies)


def _differences(name: str, declared: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(declared.keys() - {"arguments"}):
        if found.get(key) != declared[key]:
            yield f"{name} has {key} {found.get(key)!r}, declared {declared[key]!r}; delete it and apply again"
    arguments, live = declared["arguments"], found.get("arguments") or {}
    for key in sorted(arguments.keys() | live.keys()):
        if arguments.get(key) != live.get(key):
            yield (
                f"{name} has {key} {_shown(live, key)}, declared {_shown(arguments, key)}; "
                "a queue or exchange cannot be changed: move its messages, delete it and apply again"
            )


def _policy_differences(
    name: str, entity: str, kinds: tuple[str, ...], arguments: Mapping[str, Any], policies: Policies
) -> Iterator[str]:
    """What the policy and the operator policy in force for *entity* set otherwise than its *arguments*."""
    for rank, held in policies.items():
        matching = [policy for policy in held if policy["apply-to"] in ("all", *kinds) and _matches(policy, entity)]
        if not matching:
            continue
        policy = max(matching, key=lambda policy: int(policy["priority"]))
        for key, value in sorted(policy["definition"].items()):
            argument = _POLICY_KEYS.get(key)
            if argument is not None and arguments.get(argument) != value:
                declared = _shown(arguments, argument)
                yield f"{name}: the {rank} {policy['name']!r} sets {key} to {value!r}, declared {declared}"


def _matches(policy: Mapping[str, Any], entity: str) -> bool:
    try:
        return re.search(policy["pattern"], entity) is not None
    except re.error:  # RabbitMQ's expressions are PCRE, of which Python knows nearly all
        return False


def _shown(arguments: Mapping[str, Any], key: str) -> str:
    return repr(arguments[key]) if key in arguments else "nothing"


def _binding_differences(wanted: Topology, live: set[Binding], live_names: tuple[set[str], set[str]]) -> Iterator[str]:
    """live_names: of the queues and of the exchanges that there are; the bindings of others are missing with them."""
    declared = set(wanted.bindings())
    names = ({queue.name for queue in wanted.queues}, {exchange.name for exchange in wanted.exchanges})
    for missing in sorted(declared - live, key=str):
        if missing.destination in live_names[missing.to_exchange]:
            yield f"{_binding(missing)} is missing; `ackline topology apply` creates it"
    for extra in sorted(live - declared, key=str):
        if extra.destination in names[extra.to_exchange]:
            yield f"{_binding(extra)} is not declared: messages come in by it that no handler here names"
        elif extra.exchange == RETURN:
            owner = "an ordered consumer's" if extra.to_exchange else "a consumer's"
            yield f"{_destination(extra)} is {owner}, but no module of ACKLINE_APP has that consumer"


def _binding(bound: Binding) -> str:
    by = [repr(bound.routing_key)] if bound.routing_key else []
    by += [f"{name}={value}" for name, value in bound.headers]
    return f"the binding of {_destination(bound)} to exchange {bound.exchange!r}" + (
        f" under {', '.join(by)}" if by else ""
    )


def _destination(bound: Binding) -> str:
    return f"{'exchange' if bound.to_exchange else 'queue'} {bound.destination!r}"
