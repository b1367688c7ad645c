"""`ackline consumers list | pause | resume`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click
from rich import box
from rich.table import Table

from ackline.consumers import pauses
from ackline.consumers.control import LOOK_SECONDS, Change, Pause
from ackline.infra import database
from ackline.infra.errors import AcklineError
from ackline.infra.management import Management, ManagementUnreachable
from ackline.infra.names import MESSAGES, RESERVED_PREFIX, RETURN, is_job_queue
from ackline.infra.settings import Settings, settings
from ackline.infra.terminal import console, line, moment, plain
from ackline.producer.publisher import Publisher


@dataclass(frozen=True, slots=True)
class Listed:
    """A consumer as the broker and the database know it. Counts are None while RabbitMQ has not counted yet."""

    name: str
    queues: tuple[str, ...]
    types: tuple[str, ...]
    ready: int | None
    unacked: int | None
    consumers: int | None
    pause: Pause | None

    @property
    def state(self) -> str:
        """What it does, for a person."""
        if self.pause is not None:
            return "paused"
        if self.consumers is None:
            return "unknown"
        return "running" if self.consumers else "no worker"


def listed(management: Management, paused: Mapping[str, Pause]) -> list[Listed]:
    """The consumers of the vhost, and the queues of jobs, by name: what `ackline.return` leads to, and what is paused.

    They need not be in the application that is configured here. Raises `ManagementUnreachable`.
    """
    bindings = management.get("bindings/{vhost}")
    live = {queue["name"]: queue for queue in management.get("queues/{vhost}")}

    def sources(name: str, exchange: str) -> list[str]:
        return sorted(b["routing_key"] for b in bindings if (b["source"], b["destination"]) == (exchange, name))

    found = []
    for name in sorted(_consumers(bindings) | paused.keys()):
        # The shards of an ordered consumer are bound to an exchange of its name.
        shards = {b["destination"] for b in bindings if b["source"] == name and b["destination_type"] == "queue"}
        queues = sorted(({name} | shards) & live.keys())
        counts = [[live[queue].get(key) for queue in queues] for key in _COUNTS]
        ready, unacked, consumers = (None if None in count else sum(count) for count in counts)
        types = tuple(sources(name, MESSAGES))
        found.append(Listed(name, tuple(queues), types, ready, unacked, consumers, paused.get(name)))
    return found


_COUNTS = ("messages_ready", "messages_unacknowledged", "consumers")


def _consumers(bindings: Any) -> set[str]:
    names = {bound["destination"] for bound in bindings if bound["source"] == RETURN}
    return {name for name in names if not name.startswith(RESERVED_PREFIX) or is_job_queue(name)}


@click.group()
def consumers() -> None:
    """See what consumers and jobs do, and pause and resume them in all workers."""


@consumers.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def list_(as_json: bool) -> None:
    """List the consumers of this vhost. RabbitMQ counts messages every few seconds."""
    configured = settings()
    with database.opened(configured.database) as engine, Management(configured) as management:
        found = listed(management, pauses.paused(engine))
    if as_json:
        for consumer in found:
            print(json.dumps(_json(consumer), ensure_ascii=False))
        return
    if found:
        console().print(_table(found))
    held = sum(consumer.pause is not None for consumer in found)
    print(f"{len(found):,} consumer{'s'[: len(found) != 1]}, {held:,} paused.", file=sys.stderr)


def _json(consumer: Listed) -> dict[str, Any]:
    pause = consumer.pause
    return {
        "name": consumer.name,
        "state": consumer.state,
        "queues": consumer.queues,
        "types": consumer.types,
        "ready": consumer.ready,
        "unacked": consumer.unacked,
        "consumers": consumer.consumers,
        "paused": None if pause is None else plain(pause._asdict()),
    }


def _table(found: list[Listed]) -> Table:
    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for name in ("NAME", "READY", "UNACKED", "CONSUMERS", "STATE", "TYPES"):
        table.add_column(name, justify="right" if name in ("READY", "UNACKED", "CONSUMERS") else "left")
    for consumer in found:
        counts = (consumer.ready, consumer.unacked, consumer.consumers)
        state = consumer.state if consumer.pause is None else _told(consumer.pause)
        table.add_row(
            line(consumer.name),
            *("?" if count is None else f"{count:,}" for count in counts),
            state,
            ", ".join(map(line, consumer.types)) or "-",
        )
    return table


def _told(pause: Pause) -> str:
    why = f": {line(pause.reason)}" if pause.reason else ""
    return f"paused by {line(pause.actor)} since {moment(pause.at)}{why}"


@consumers.command()
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All consumers of this vhost.")
@click.option("--reason", default="", help="Why. It is kept, and shown in the list.")
def pause(names: tuple[str, ...], everything: bool, reason: str) -> None:
    """Have no worker take messages of these consumers until they are resumed. Restarts do not end it.

    What runs is finished; what had not begun goes back to its queue. Messages wait there; nothing is lost.
    """
    configured = settings()
    with database.opened(configured.database) as engine:
        chosen = _chosen(configured, names, everything, pauses.paused(engine))
        already = pauses.pause(engine, chosen, configured.acting, reason)
    # Those too that were paused already: a worker that was not told then is told now.
    _tell(configured, Change(event="paused", consumers=chosen, actor=configured.acting, reason=reason))
    for name in chosen:
        print(f"{name}: already {_told(already[name])}" if name in already else f"{name}: paused")


@consumers.command()
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that are paused.")
def resume(names: tuple[str, ...], everything: bool) -> None:
    """Have the workers take messages of these consumers again."""
    configured = settings()
    with database.opened(configured.database) as engine:
        held = pauses.paused(engine)
        chosen = sorted(held) if everything and not names else _chosen(configured, names, everything, held)
        lifted = pauses.resume(engine, chosen)
    _tell(configured, Change(event="resumed", consumers=chosen, actor=configured.acting))
    for name in chosen:
        print(f"{name}: {'resumed' if name in lifted else 'was not paused'}")


def _chosen(configured: Settings, names: tuple[str, ...], everything: bool, held: Mapping[str, Pause]) -> list[str]:
    """The consumers that are meant, each once. Raises `AcklineError` for one that does not exist."""
    if bool(names) == everything:
        raise click.UsageError("Name the consumers, or say --all: `ackline consumers list` shows them.")
    try:
        with Management(configured) as management:
            known = _consumers(management.get("bindings/{vhost}"))
    except ManagementUnreachable as error:
        if everything:
            raise
        # In an emergency a consumer must be paused all the same.
        print(f"ackline: whether these consumers exist is not known. {error}", file=sys.stderr)
        return sorted(set(names))
    unknown = sorted(set(names) - known - held.keys())
    if unknown:
        raise AcklineError(
            f"There is no consumer {', '.join(map(line, unknown))}: `ackline consumers list` shows which there are."
        )
    return sorted(known if everything else set(names))


def _tell(configured: Settings, change: Change) -> None:
    try:
        with Publisher.connect(configured, name="consumers command") as publisher:
            pauses.tell(publisher, change)
    except AcklineError as error:
        print(
            f"ackline: it is kept, but running workers could not be told; they see it within {LOOK_SECONDS:g} s. "
            f"{error}",
            file=sys.stderr,
        )
