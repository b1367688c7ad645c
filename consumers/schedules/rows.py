"""Schedules and their ticks in the database.

**Never twice.** A tick is run in one transaction: the schedule's `covered_to` moves on from what was read, which only
one of several can do; a row for the tick is inserted, of which there can be no second; and the message is put into the
outbox. The second of these holds even where the clock went back, and `covered_to` with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from pydantic import ValidationError
from sqlalchemy import Connection, Table, and_, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ackline.consumers.schedules.schedule import Origin, Schedule
from ackline.consumers.schedules.targets import CannotRun, id_of, put
from ackline.infra.errors import AcklineError
from ackline.infra.tables import schedule_runs, schedules

#: Days that the row of a tick is kept: a clock that jumps by less, ahead or back, runs none twice.
KEEP_DAYS = 30


class Stored(NamedTuple):
    """A schedule as the database has it. definition: for `Schedule`; what wrote it may have been another version."""

    name: str
    origin: Origin
    declared: bool
    definition: dict[str, Any]
    covered_to: datetime
    last_run_at: datetime | None
    last_id: str | None
    error: str | None
    paused_at: datetime | None
    paused_by: str | None
    pause_reason: str | None

    @property
    def schedule(self) -> Schedule:
        """What it is. Raises `CannotRun`."""
        try:
            return Schedule.model_validate(self.definition)
        except ValidationError as error:
            raise CannotRun(f"Its definition cannot be read: {error.errors()[0]['msg']}.") from None


_STORED = tuple(schedules.c[name] for name in Stored._fields)


def listed(connection: Connection) -> list[Stored]:
    """All schedules, by name."""
    found = connection.execute(select(*_STORED).order_by(schedules.c.name))
    return [Stored(*row)._replace(origin=Origin(row.origin)) for row in found]


def find(connection: Connection, name: str) -> Stored | None:
    """The schedule of that name."""
    return next((stored for stored in listed(connection) if stored.name == name), None)


# --- declarations -----------------------------------------------------------------------------------------------------


def add(connection: Connection, origin: Origin, schedule: Schedule, now: datetime) -> bool:
    """Write down a schedule; whether there was none of its name. Its first tick is the first one after *now*."""
    row = {
        "name": schedule.name,
        "origin": origin,
        "declared": True,
        "definition": schedule.model_dump(mode="json"),
        "covered_to": now,
    }
    return _inserted(connection, schedules, row)


def synchronise(connection: Connection, declared: Mapping[str, tuple[Origin, Schedule]], now: datetime) -> None:
    """Have the database's schedules be those that are *declared*, besides those of the command line.

    One that is new, is back, or has another timing begins after *now*. One that is not declared any more stays, is not
    run, and keeps its pause.
    """
    before = {stored.name: stored for stored in listed(connection)}
    for name, (origin, schedule) in declared.items():
        known = before.get(name)
        if known is None:
            add(connection, origin, schedule, now)
            continue
        definition = schedule.model_dump(mode="json")
        if known.declared and (known.origin, known.definition) == (origin, definition):
            continue
        same = known.declared and all(known.definition.get(part) == definition[part] for part in ("when", "timezone"))
        covered_to = known.covered_to if same else now
        changed = {"origin": origin, "declared": True, "definition": definition, "covered_to": covered_to}
        connection.execute(update(schedules).where(schedules.c.name == name).values(changed))
    gone = [name for name, known in before.items() if known.origin != Origin.COMMAND_LINE and name not in declared]
    if gone:
        connection.execute(update(schedules).where(schedules.c.name.in_(gone)).values(declared=False, error=None))


def remove(connection: Connection, name: str) -> None:
    """Forget a schedule. Its ticks stay on record, so that one that is added again runs none of them again."""
    connection.execute(delete(schedules).where(schedules.c.name == name))


def pause(connection: Connection, name: str, actor: str, reason: str, now: datetime) -> bool:
    """Run no ticks of it until it is resumed; whether it was not paused before."""
    paused = {"paused_at": now, "paused_by": actor, "pause_reason": reason}
    return _changed(connection, name, schedules.c.paused_at.is_(None), paused)


def resume(connection: Connection, name: str, now: datetime) -> bool:
    """Run its ticks again, from the next one on; whether it was paused."""
    resumed = {"paused_at": None, "paused_by": None, "pause_reason": None, "covered_to": now}
    return _changed(connection, name, schedules.c.paused_at.is_not(None), resumed)


# --- ticks ------------------------------------------------------------------------------------------------------------


def run(
    connection: Connection, stored: Stored, ticks: Iterable[datetime], covered_to: datetime, by: str, now: datetime
) -> list[str] | None:
    """Run *ticks* of a schedule in this transaction, and note that nothing is due up to *covered_to*.

    Returns the ids of what is published, which is nothing of a tick that has been run before; None when somebody else
    has moved on, or changed, the schedule since it was read. Raises `CannotRun`.
    """
    if not cover(connection, stored, covered_to):
        return None
    return [id_ for tick in ticks if (id_ := _run(connection, stored.schedule, tick, by, now)) is not None]


def run_now(connection: Connection, stored: Stored, actor: str, now: datetime) -> str:
    """Run a schedule once more, now, whatever its timing says. Returns the id of what is published.

    Raises `CannotRun`.
    """
    id_ = _run(connection, stored.schedule, now, actor, now)
    if id_ is None:
        raise AcklineError(f"{stored.name} runs at this very moment anyway.")
    return id_


def cover(connection: Connection, stored: Stored, covered_to: datetime) -> bool:
    """Note that nothing is due up to *covered_to*; whether the schedule was still as it was read."""
    as_read = and_(
        schedules.c.covered_to == stored.covered_to, schedules.c.declared.is_(True), schedules.c.paused_at.is_(None)
    )
    return _changed(connection, stored.name, as_read, {"covered_to": covered_to, "error": None})


def fail(connection: Connection, stored: Stored, error: str) -> bool:
    """Note why it cannot be run; whether that is new."""
    return _changed(connection, stored.name, schedules.c.error.is_distinct_from(error), {"error": error})


def clean(connection: Connection, now: datetime) -> None:
    """Delete the rows of ticks that were run long ago."""
    connection.execute(delete(schedule_runs).where(schedule_runs.c.at < now - timedelta(days=KEEP_DAYS)))


def _run(connection: Connection, schedule: Schedule, tick: datetime, by: str, now: datetime) -> str | None:
    id_ = id_of(schedule.name, tick)
    row = {"schedule": schedule.name, "planned_at": tick, "at": now, "message_id": id_, "by": by}
    if not _inserted(connection, schedule_runs, row):
        return None
    put(connection, schedule, tick)
    ran = update(schedules).where(schedules.c.name == schedule.name).values(last_run_at=now, last_id=id_)
    connection.execute(ran)
    return id_


def _changed(connection: Connection, name: str, condition: Any, values: Mapping[str, Any]) -> bool:
    changed = update(schedules).where(schedules.c.name == name, condition).values(values)
    return connection.execute(changed.returning(schedules.c.name)).first() is not None


def _inserted(connection: Connection, table: Table, row: Mapping[str, Any]) -> bool:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    inserted = dialect.insert(table).values(row).on_conflict_do_nothing()
    return connection.execute(inserted.returning(*table.primary_key)).first() is not None
