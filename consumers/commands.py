"""`ackline worker`."""

from __future__ import annotations

import click

from ackline.consumers.consumer import load_consumers
from ackline.consumers.worker import Worker
from ackline.infra.errors import ConfigurationError
from ackline.infra.logs import configure_logging
from ackline.infra.settings import settings
from ackline.infra.stopping import stop_on_signal


@click.command()
@click.option("--consumers", "names", help="Run these consumers only: their names, comma-separated.")
@click.option("--concurrency", type=click.IntRange(1, 1000), help="Handlers at once. [ACKLINE_CONCURRENCY]")
@click.option("--prefetch", type=click.IntRange(1, 65535), help="Unacked messages per consumer. [ACKLINE_PREFETCH]")
def worker(names: str | None, concurrency: int | None, prefetch: int | None) -> None:
    """Run the handlers of the application (the modules of ACKLINE_APP).

    SIGTERM or Ctrl-C: takes no more messages, finishes what runs, gives back the rest, and ends. A second one ends
    at once; nothing is lost by that.
    """
    configure_logging()
    configured = settings()
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
    role = Worker(
        found.values(),
        url=configured.broker,
        concurrency=concurrency or configured.concurrency,
        prefetch=prefetch or configured.prefetch,
        grace_seconds=configured.grace_seconds,
    )
    stop_on_signal(role.stop)
    role.run()
