"""Whether anything is scheduled, for `ackline up`; also where what schedules need is not installed."""

from __future__ import annotations

from ackline.infra import database
from ackline.infra.app import load_app
from ackline.infra.errors import ConfigurationError
from ackline.infra.settings import Settings


def anything(configured: Settings) -> bool:
    """Whether the application, `ackline.toml` or the database has a schedule, so that a beat is needed."""
    load_app(configured.app)
    try:
        from ackline.consumers.schedules import rows
        from ackline.consumers.schedules.schedule import declared
    except ModuleNotFoundError as error:
        if configured.schedules:
            raise ConfigurationError(f"Schedules need the package {error.name}: pip install 'ackline[jobs]'.") from None
        return False
    if declared(configured):
        return True
    with database.opened(configured.database) as engine, database.reading(engine) as connection:
        return bool(rows.listed(connection))
