"""The database of jobs, from whatever process: Ackline's own, which all that publish and run jobs share."""

from __future__ import annotations

import os
from functools import cache

from sqlalchemy import Engine

from ackline.infra.database import connect, upgrade
from ackline.infra.settings import settings


def engine() -> Engine:
    """The engine of this process, on tables of the newest version. Raises what `connect` and `upgrade` raise."""
    return _connected(settings().database, os.getpid())


@cache  # for ever: a connection that was open when a process forked is its parent's, and not to be closed here
def _connected(url: str, pid: int) -> Engine:
    upgrade(url)
    return connect(url)
