"""What a tick publishes: a job or a message, as a row of the outbox."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection

from ackline.consumers.schedules.schedule import Schedule
from ackline.infra.errors import AcklineError
from ackline.infra.unknown import unknown as unknown_name
from ackline.infra.wire import uuid8
from ackline.producer import outbox
from ackline.producer.message import contracts, unknown


class CannotRun(AcklineError):
    """What a schedule is to run is not there, or does not take what it would be given."""


def id_of(schedule: str, planned_at: datetime) -> str:
    """The id of what a tick publishes: always the same."""
    return uuid8(f"schedule {schedule} {planned_at.isoformat()}")


def check(schedule: Schedule) -> None:
    """Raise `CannotRun` where the application has no such job or message, or one that does not take the arguments."""
    if schedule.message is not None:
        _instance(schedule)
        return
    try:
        _task(schedule).__header__(*schedule.args, **schedule.kwargs)
    except TypeError as error:
        raise CannotRun(f"The job {schedule.job} does not take these arguments: {error}.") from None


def put(transaction: Connection, schedule: Schedule, planned_at: datetime) -> str:
    """Have a tick published when *transaction* is committed, and only then. Returns its id. Raises as `check`."""
    check(schedule)
    id_ = id_of(schedule.name, planned_at)
    told = {"schedule": schedule.name, "planned_at": planned_at.isoformat()}
    if schedule.message is not None:
        outbox.add(transaction, _instance(schedule), message_id=id_, headers=told)
    else:
        _task(schedule).apply_async(schedule.args, schedule.kwargs, task_id=id_, headers=told, outbox=transaction)
    return id_


def _instance(schedule: Schedule) -> Any:
    contract = contracts().get(str(schedule.message))
    if contract is None:
        raise CannotRun(unknown(str(schedule.message)))
    try:
        return contract.model_validate(schedule.data)
    except ValidationError as error:
        raise CannotRun(f"The data is no {schedule.message}: {_said(error)}.") from None


def _said(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}" for each in error.errors())


def _task(schedule: Schedule) -> Any:
    from ackline.consumers.jobs.app import app  # Celery is for those who have jobs
    from ackline.consumers.jobs.queues import jobs_of

    app.finalize()
    task = app.tasks.get(schedule.job)
    if task is None:
        raise CannotRun(unknown_name("job", str(schedule.job), jobs_of(app)))
    return task
