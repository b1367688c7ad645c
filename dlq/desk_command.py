"""`ackline desk`."""

from __future__ import annotations

import click

from ackline.infra.logs import configure_logging
from ackline.infra.settings import settings


@click.command()
@click.option("--host", help="Address to listen on. [ACKLINE_DESK_HOST]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on. [ACKLINE_DESK_PORT]")
def desk(host: str | None, port: int | None) -> None:
    """Serve the operators' API.

    On a desk without people whoever uses this machine may do everything, and it listens to this machine only; `ackline
    people add` adds somebody.
    """
    from ackline.dlq.api import check_address, create_app
    from ackline.infra import database
    from ackline.producer.gateway.server import listen, serve

    configure_logging()
    changes = {"desk_host": host, "desk_port": port}
    configured = settings().model_copy(update={name: value for name, value in changes.items() if value is not None})
    database.upgrade(configured.database)
    check_address(configured)
    listening = listen("desk", configured.desk_host, configured.desk_port)
    serve(create_app(configured), listening, configured.grace_seconds)
