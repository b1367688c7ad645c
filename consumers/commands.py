"""`ackline worker`: the parent, and the processes that it starts by the same command."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ackline.consumers.processes import Place, Processes
from ackline.consumers.reloading import Sources
from ackline.infra.errors import ConfigurationError
from ackline.infra.logs import configure_logging
from ackline.infra.settings import Settings, settings
from ackline.infra.sizes import octets

if TYPE_CHECKING:
    from ackline.consumers.consumer import Consumer


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else octets(value)
    except ConfigurationError as error:
        raise click.BadParameter(str(error), ctx, param) from None


@click.command()
@click.option("--consumers", "names", help="Run these consumers only: their names, comma-separated.")
@click.option(
    "--concurrency", type=click.IntRange(1, 1000), help="Handlers at once in each process. [ACKLINE_CONCURRENCY]"
)
@click.option(
    "--prefetch", type=click.IntRange(1, 65535), help="Unacked messages per consumer and process. [ACKLINE_PREFETCH]"
)
@click.option("--processes", type=click.IntRange(1, 256), help="Processes that run handlers. [ACKLINE_PROCESSES]")
@click.option(
    "--max-memory", callback=_size, help="Kill a process that holds more than this, as 512MB. [ACKLINE_MAX_MEMORY]"
)
@click.option("--reload", is_flag=True, help="For development: start again when a source file changes.")
def worker(
    names: str | None,
    concurrency: int | None,
    prefetch: int | None,
    processes: int | None,
    max_memory: int | None,
    reload: bool,
) -> None:
    """Run the handlers of the application (the modules of ACKLINE_APP).

    A process that a handler ends is started again, and the message that did it is found and goes to review.

    SIGTERM or Ctrl-C: takes no more messages, finishes what runs, gives back the rest, and ends. A second one ends
    at once; nothing is lost by that.
    """
    place = Place.taken_from(os.environ)
    if place is not None:
        place.take()
    configure_logging()
    configured = settings().model_copy(
        update={
            name: value
            for name, value in {
                "concurrency": concurrency,
                "prefetch": prefetch,
                "processes": processes,
                "max_memory": max_memory,
            }.items()
            if value is not None
        }
    )
    if place is not None:
        _work(configured, names, place)
    else:
        sys.exit(_supervise(configured, names, reload=reload))


def _supervise(configured: Settings, names: str | None, *, reload: bool) -> int:
    command = [sys.executable, "-m", "ackline.infra", "worker"]
    command += ["--concurrency", str(configured.concurrency), "--prefetch", str(configured.prefetch)]
    command += ["--processes", str(configured.processes)]
    if names is not None:
        command += ["--consumers", names]
    if configured.max_memory is not None:
        command += ["--max-memory", str(configured.max_memory)]
    return Processes(
        command,
        configured.processes,
        grace_seconds=configured.grace_seconds,
        max_memory=configured.max_memory,
        sources=Sources(configured.app, Path.cwd()) if reload else None,
    ).run()


def _work(configured: Settings, names: str | None, place: Place) -> None:
    # Imported here, since the parent has no use for them.
    from ackline.consumers.control import reader
    from ackline.consumers.isolation import Isolation
    from ackline.consumers.worker import Worker

    role = Worker(
        _chosen(configured, names),
        url=configured.broker,
        concurrency=configured.concurrency,
        prefetch=configured.prefetch,
        grace_seconds=configured.grace_seconds,
        consumer_timeout=configured.consumer_timeout,
        processes=configured.processes,
        read_pauses=reader(configured),
        isolation=Isolation(place.journal, max_memory=configured.max_memory),
    )
    # Whoever signals all processes, as systemd does, means it once: the parent's is no second one. That is a SIGKILL.
    signal.signal(signal.SIGTERM, lambda *_: role.stop())
    role.run()


def _chosen(configured: Settings, names: str | None) -> list[Consumer]:
    """The consumers of those names, or all. Raises `ConfigurationError`."""
    from ackline.consumers.consumer import load_consumers

    found = load_consumers(configured)
    if names:
        wanted = [name.strip() for name in names.split(",")]
        unknown = [name for name in wanted if name not in found]
        if unknown:
            raise ConfigurationError(
                f"There is no consumer {', '.join(unknown)}; the application has {', '.join(sorted(found)) or 'none'}."
            )
        found = {name: found[name] for name in wanted}
    if not found:
        raise ConfigurationError(
            f"The application ({', '.join(configured.app)}) has no consumers: "
            "decorate a function with @consumer('name')."
        )
    return list(found.values())
