"""`ackline topology show | apply | diff | export`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any

import click

from ackline.infra.definitions import definitions
from ackline.infra.errors import ConfigurationError
from ackline.infra.management import Management
from ackline.infra.settings import Settings, settings
from ackline.infra.topology import CONSISTENT_HASH, Binding, ConsumerQueue, Topology, declare
from ackline.infra.topology import topology as topology_of
from ackline.infra.topology_diff import diff as differences
from ackline.infra.wire import SLOT

PASSWORD_VARIABLE = "ACKLINE_EXPORT_PASSWORD"  # noqa: S105


def consumer_queues(configured: Settings | None = None) -> list[ConsumerQueue]:
    """The consumers of the configured application.

    They come by the entry point group `ackline.consumers`, a function from settings to them: `infra` imports nothing
    above it.
    """
    chosen = configured or settings()
    return [queue for point in entry_points(group="ackline.consumers") for queue in point.load()(chosen)]


@click.group()
def topology() -> None:
    """Show, create, compare and export Ackline's exchanges, queues and bindings."""


@topology.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def show(as_json: bool) -> None:
    """Print the exchanges, queues and bindings that the application needs."""
    wanted = topology_of(consumer_queues())
    if as_json:
        print(json.dumps(definitions(wanted, "/"), indent=2))
        return
    for exchange in wanted.exchanges:
        print(f"exchange {exchange.name}  {exchange.type}{_arguments(exchange.arguments)}")
        _print_ways_in(bound for bound in wanted.links if bound.destination == exchange.name)
    for queue in wanted.queues:
        print(f"queue    {queue.name}{_arguments(queue.queue_arguments)}")
        _print_ways_in(
            bound for bound in wanted.bindings() if bound.destination == queue.name and not bound.to_exchange
        )


def _print_ways_in(bindings: Iterable[Binding]) -> None:
    """One line for each binding; for all those of one exchange by slots, one."""
    slots: dict[str, list[int]] = {}
    for bound in bindings:
        if SLOT in bound.arguments:
            slots.setdefault(bound.exchange, []).append(bound.arguments[SLOT])
        else:
            print(f"           from {bound.exchange}" + (f" under {bound.routing_key}" if bound.routing_key else ""))
    for exchange, values in slots.items():
        print(f"           from {exchange} by {SLOT} {', '.join(map(str, sorted(values)))}")


def _arguments(arguments: dict[str, object] | None) -> str:
    return "".join(f"  {name}={value}" for name, value in (arguments or {}).items())


@topology.command()
def apply() -> None:
    """Create what is missing. What exists is never changed or deleted."""
    wanted = declare(settings().broker, consumer_queues())
    print(
        f"The topology is in place: {len(wanted.exchanges)} exchanges, {len(wanted.queues)} queues, "
        f"{len(list(wanted.bindings()))} bindings."
    )


@topology.command()
def diff() -> None:
    """Name every difference to the live broker, policies included. Prints nothing, and exits with 0, if there is none.

    Exits with 1 when there are differences.
    """
    with Management(settings()) as management:
        found = differences(_for_live_broker(management), management)
    for line in found:
        print(line)
    sys.exit(1 if found else 0)


def _for_live_broker(management: Management) -> Topology:
    return topology_for(management.get("overview"), consumer_queues())


def topology_for(overview: Mapping[str, Any], consumers: Iterable[ConsumerQueue]) -> Topology:
    """The topology for *consumers* on the broker that the management API describes so in `/api/overview`."""
    hashes = CONSISTENT_HASH in {kind["name"] for kind in overview["exchange_types"]}
    version = str(overview["rabbitmq_version"])
    return topology_of(consumers, broker_version=version, unhashed=() if hashes else None)


@topology.command()
@click.option("--vhost", default="/", show_default=True, help="The vhost that the definitions are for.")
@click.option("--broker-version", default="4.3", show_default=True, help="The version that is to load them.")
@click.option("--without-consistent-hash", is_flag=True, help="For a broker without rabbitmq_consistent_hash_exchange.")
@click.option("--user", help=f"Create this administrator too, with the password in {PASSWORD_VARIABLE}.")
def export(vhost: str, broker_version: str, without_consistent_hash: bool, user: str | None) -> None:
    """Write a definitions.json to standard output that RabbitMQ can load at boot (`load_definitions`).

    A broker that loads definitions at boot creates no default user: create one with --user, or by hand.
    """
    account = None
    if user is not None:
        password = os.environ.get(PASSWORD_VARIABLE)
        if not password:
            raise ConfigurationError(f"--user needs the password in the variable {PASSWORD_VARIABLE}.")
        account = (user, password)
    unhashed = None if without_consistent_hash else ()
    wanted = topology_of(consumer_queues(), broker_version=broker_version, unhashed=unhashed)
    print(json.dumps(definitions(wanted, vhost, account), indent=2))
    if account is None:
        print(
            "Note: a broker that loads these definitions at boot creates no default user; "
            "add one with --user, or `rabbitmqctl add_user` afterwards.",
            file=sys.stderr,
        )
    if any(exchange.type == CONSISTENT_HASH for exchange in wanted.exchanges):
        print(
            "Note: the broker needs rabbitmq_consistent_hash_exchange to load them; "
            "for one without it, export --without-consistent-hash.",
            file=sys.stderr,
        )
