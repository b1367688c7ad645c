"""Secrets that Ackline makes for itself, once per database, so that every process that shares it knows the same."""

from __future__ import annotations

import os

from sqlalchemy import Engine, insert, select
from sqlalchemy.exc import IntegrityError

from ackline.infra import database
from ackline.infra.tables import secrets
from ackline.infra.wire import now

_SIZE = 32


def secret(engine: Engine, name: str) -> bytes:
    """The secret called *name*: 32 random bytes, made when somebody first asks. Raises `DatabaseUnavailable`."""
    found = _read(engine, name)
    if found is None:
        try:
            with database.writing(engine) as connection:
                connection.execute(insert(secrets).values(name=name, value=os.urandom(_SIZE), created_at=now()))
        except IntegrityError:  # another process was first
            pass
        found = _read(engine, name)
    assert found is not None  # noqa: S101
    return found


def _read(engine: Engine, name: str) -> bytes | None:
    with database.reading(engine) as connection:
        return connection.scalar(select(secrets.c.value).where(secrets.c.name == name))
