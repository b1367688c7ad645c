"""Jobs that are submitted twice and run once: `@job(unique_for="10m")`.

Who submits such a job writes its claim and the job itself in one transaction, the job into the outbox, from which
`ackline relay` publishes it. So there is no claim without a job, whoever dies when, and no job without its claim.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from kombu.utils.json import dumps
from sqlalchemy import Connection, Engine, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from ackline.infra.database import writing
from ackline.infra.errors import ConfigurationError
from ackline.infra.tables import unique_jobs
from ackline.infra.wire import now


def submit(
    engine: Engine, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any], job_id: str, options: Mapping[str, Any]
) -> str:
    """Put a job into the outbox as *job_id*, unless an equal one was submitted within its `unique_for`.

    options: of `apply_async`. Returns the id of the one that there is now. Raises `ConfigurationError` when the caller
    has a transaction of its own, `DatabaseUnavailable`, and what publishing raises of a job that cannot be sent.
    """
    if options.get("outbox") is not None:
        raise ConfigurationError(
            f"The job {task.name} has `unique_for`, for which it is put into the outbox in a transaction of Ackline's "
            "database: submit it without `outbox=`."
        )
    with writing(engine) as connection:
        standing = _claim(connection, _key(task, args, kwargs), job_id, task.unique_for)
        if standing == job_id:
            task.apply_async(args, kwargs, task_id=job_id, **{**options, "outbox": connection})
    return standing


def release(connection: Connection, job_id: str) -> None:
    """Let an equal job be submitted again: this one was cancelled."""
    connection.execute(delete(unique_jobs).where(unique_jobs.c.job_id == job_id))


def _claim(connection: Connection, key: bytes, job_id: str, seconds: float) -> str:
    """The id of the job that has the claim now."""
    insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[connection.dialect.name]
    at = now()
    claim = insert(unique_jobs).values(key=key, job_id=job_id, expires_at=at + timedelta(seconds=seconds))
    row = unique_jobs.c
    taken = claim.on_conflict_do_update(
        index_elements=[row.key],
        set_={"job_id": claim.excluded.job_id, "expires_at": claim.excluded.expires_at},
        where=row.expires_at <= at,
    )
    mine: str | None = connection.scalar(taken.returning(row.job_id))
    return mine or connection.execute(select(row.job_id).where(row.key == key)).scalar_one()


def _key(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """The same for equal arguments, whether they are given by place or by name, or left to their defaults."""
    bound = inspect.signature(task.run).bind(*args, **kwargs)
    bound.apply_defaults()
    told = json.dumps(json.loads(dumps(bound.arguments)), sort_keys=True)
    return hashlib.sha256(f"{task.name}\n{told}".encode()).digest()
