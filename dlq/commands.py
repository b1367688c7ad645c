"""`ackline reviewer`."""

from __future__ import annotations

from functools import partial

import click

from ackline.dlq.alerts import AlertSender
from ackline.dlq.contracts import Contracts
from ackline.dlq.reviewer import Reviewer
from ackline.dlq.upkeep import of_letters
from ackline.infra import database
from ackline.infra.logs import configure_logging
from ackline.infra.settings import settings
from ackline.infra.stopping import stop_on_signal


@click.command()
def reviewer() -> None:
    """Take dead letters into the database, and send back those that are retried.

    SIGTERM or Ctrl-C: stores what has arrived, gives back the rest, and ends. A second one ends at once; nothing is
    lost by that.
    """
    configure_logging()
    configured = settings()
    url = configured.broker
    with database.opened(configured.database) as engine:
        role = Reviewer(
            url,
            engine,
            grace_seconds=configured.grace_seconds,
            status_keep_days=configured.status_keep_days,
            contracts=partial(Contracts.of, configured),
            alerts=AlertSender(engine, configured, configured.alert_url) if configured.alert_url else None,
            upkeep=of_letters(engine, configured),
        )
        stop_on_signal(role.stop)
        role.run()
