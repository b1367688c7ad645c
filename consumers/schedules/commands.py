"""`ackline beat`, and `ackline schedules`: what is due when, and what is done about it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import click
from rich import box
from rich.table import Table
from sqlalchemy import Connection

from ackline.consumers.schedules import rows, targets
from ackline.consumers.schedules.rows import Stored
from ackline.consumers.schedules.schedule import Origin, Schedule, declared, parse
from ackline.consumers.schedules.targets import CannotRun
from ackline.consumers.schedules.timing import Timing
from ackline.infra import database
from ackline.infra.app import load_app
from ackline.infra.errors import AcklineError, ConfigurationError
from ackline.infra.logs import configure_logging
from ackline.infra.settings import Settings, settings
from ackline.infra.stopping import stop_on_signal
from ackline.infra.terminal import console, line, moment, plain

#: A beat looks once a second, and another one takes over from one that does not answer within some ten.
_LATE = timedelta(seconds=20)


@click.command()
def beat() -> None:
    """Run the schedules: publish jobs and messages when they are due.

    One is active; others that run stand by. SIGTERM or Ctrl-C lets another take over, and ends.
    """
    from ackline.consumers.schedules.beat import Beat
    from ackline.consumers.schedules.leadership import Leadership

    configure_logging()
    configured = settings()
    found = _declared(configured)
    for _, schedule in found.values():
        try:
            targets.check(schedule)
        except CannotRun as error:
            raise ConfigurationError(f"The schedule {schedule.name!r} cannot be run: {error}") from None
    with database.opened(configured.database) as engine:
        role = Beat(engine, Leadership(configured.broker), found)
        stop_on_signal(role.stop)
        role.run()


@click.group()
def schedules() -> None:
    """See what is due when, add and remove schedules, pause and resume them, run one now."""


@schedules.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def list_(as_json: bool) -> None:
    """List the schedules. Times are in UTC."""
    configured = settings()
    with database.opened(configured.database) as engine, database.reading(engine) as connection:
        stored = rows.listed(connection)
        now = database.clock(connection)
    known = {each.name for each in stored}
    new = [
        Stored(name, origin, True, schedule.model_dump(mode="json"), now, None, None, None, None, None, None)
        for name, (origin, schedule) in _declared(configured).items()
        if name not in known
    ]
    listed = [_seen(each, now, is_new=each.name not in known) for each in sorted(stored + new)]
    if as_json:
        for schedule in listed:
            print(json.dumps(plain(schedule), ensure_ascii=False))
        return
    if listed:
        console().print(_table(listed))
    print(f"{len(listed):,} schedule{'s'[: len(listed) != 1]}.", file=sys.stderr)


@schedules.command()
@click.argument("name")
@click.argument("when")
@click.option("--timezone", default="UTC", show_default=True, help="Whose clock a crontab line is meant for.")
@click.option("--job", help="Name of the job to run.")
@click.option("--args", metavar="JSON", default="[]", help="Its positional arguments, a JSON array.")
@click.option("--kwargs", metavar="JSON", default="{}", help="Its named arguments, a JSON object.")
@click.option("--message", help="Type of the message to publish, instead of a job.")
@click.option("--data", metavar="JSON", help="The message.")
@click.option(
    "--missed",
    type=click.Choice(["skip", "run once"]),
    default="skip",
    show_default=True,
    help="What becomes of ticks that nobody could run in time.",
)
@click.option("--grace", default="1m", show_default=True, help="How late a tick may be run.")
def add(name: str, when: str, args: str, kwargs: str, data: str | None, **more: Any) -> None:
    """Add the schedule NAME, due WHEN: a crontab line such as "0 8 * * *", or "every 30s".

    It begins with the next tick. A beat that runs takes it up within a second.
    """
    told = {
        "name": name,
        "when": when,
        "args": _json("--args", args),
        "kwargs": _json("--kwargs", kwargs),
        "data": None if data is None else _json("--data", data),
    }
    schedule = parse(told | more, f"The schedule {line(name)!r}")
    configured = settings()
    known = _declared(configured)
    targets.check(schedule)
    with _writing(configured) as connection:
        if name in known or not rows.add(connection, Origin.COMMAND_LINE, schedule, database.clock(connection)):
            raise AcklineError(f"There is a schedule {name} already: remove it first, or choose another name.")
        following = schedule.timing.after(database.clock(connection))
    print(f"{name}: added, next at {moment(following)}")


@schedules.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def remove(names: tuple[str, ...]) -> None:
    """Remove schedules that were added here, and those that are not declared any more."""
    configured = settings()
    with _writing(configured) as connection:
        for stored in _found(connection, configured, names):
            if stored.declared and stored.origin != Origin.COMMAND_LINE:
                where = "ackline.toml" if stored.origin == Origin.FILE else "the application"
                raise AcklineError(f"{stored.name} is declared in {where}: remove it there, or pause it.")
            rows.remove(connection, stored.name)
    for name in names:
        print(f"{name}: removed")


@schedules.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--reason", default="", help="Why. It is kept, and shown in the list.")
def pause(names: tuple[str, ...], reason: str) -> None:
    """Run no ticks of these schedules until they are resumed. Restarts do not end it."""
    configured = settings()
    with _writing(configured) as connection:
        now = database.clock(connection)
        for stored in _found(connection, configured, names):
            paused = rows.pause(connection, stored.name, configured.acting, reason, now)
            print(f"{stored.name}: {'paused' if paused else f'already {_paused(stored)}'}")


@schedules.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def resume(names: tuple[str, ...]) -> None:
    """Run the ticks of these schedules again, from the next one on: those of the pause are over."""
    configured = settings()
    with _writing(configured) as connection:
        now = database.clock(connection)
        for stored in _found(connection, configured, names):
            print(f"{stored.name}: {'resumed' if rows.resume(connection, stored.name, now) else 'was not paused'}")


@schedules.command("run-now")
@click.argument("name")
def run_now(name: str) -> None:
    """Run the schedule NAME once more, now, whatever its timing says, and paused or not. Prints the id of what it runs.

    The relay publishes it; its other ticks stay as they are.
    """
    configured = settings()
    with _writing(configured) as connection:
        (stored,) = _found(connection, configured, (name,))
        print(rows.run_now(connection, stored, configured.acting, database.clock(connection)))


def _declared(configured: Settings) -> dict[str, tuple[Origin, Schedule]]:
    load_app(configured.app)
    return declared(configured)


@contextmanager
def _writing(configured: Settings) -> Iterator[Connection]:
    with database.opened(configured.database) as engine, database.writing(engine) as connection:
        yield connection


def _found(connection: Connection, configured: Settings, names: tuple[str, ...]) -> list[Stored]:
    """The schedules of those names, each once. Raises `AcklineError` for one that does not exist.

    One that is declared, and that no beat has seen yet, is written down first.
    """
    for name, (origin, schedule) in _declared(configured).items():
        if name in names:
            rows.add(connection, origin, schedule, database.clock(connection))
    found = [(name, rows.find(connection, name)) for name in dict.fromkeys(names)]
    missing = [name for name, stored in found if stored is None]
    if missing:
        raise AcklineError(
            f"There is no schedule {', '.join(map(line, missing))}: `ackline schedules list` shows which there are."
        )
    return [stored for _, stored in found if stored is not None]


def _json(option: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise click.UsageError(f"{option} is no JSON: {error}") from None


class Seen(NamedTuple):
    """A schedule for people and programs."""

    name: str
    when: str
    timezone: str
    runs: str
    missed: str
    origin: str
    state: str
    next_at: datetime | None
    last_at: datetime | None
    last_id: str | None
    error: str | None
    paused: dict[str, Any] | None


def _seen(stored: Stored, now: datetime, *, is_new: bool) -> Seen:
    told = stored.definition
    timing = None
    with suppress(CannotRun):  # it is the beat's to say that this version cannot read it
        timing = stored.schedule.timing
    paused = None
    if stored.paused_at is not None:
        paused = {"at": stored.paused_at, "actor": stored.paused_by, "reason": stored.pause_reason}
    if not stored.declared:
        state = "not declared"
    elif paused is not None:
        state = "paused"
    elif stored.error is not None:
        state = "failing"
    elif timing is not None and _is_late(timing, stored.covered_to, now):
        state = "late"
    else:
        state = "new" if is_new else "active"
    runs = f"job {told['job']}" if told.get("job") else f"message {told.get('message')}"
    is_on = state in ("active", "failing", "late", "new")
    return Seen(
        name=stored.name,
        when=str(told.get("when")),
        timezone=str(told.get("timezone")),
        runs=runs,
        missed=str(told.get("missed")),
        origin=stored.origin,
        state=state,
        next_at=timing.after(now) if timing is not None and is_on else None,
        last_at=stored.last_run_at,
        last_id=stored.last_id,
        error=stored.error,
        paused=paused,
    )


def _is_late(timing: Timing, covered_to: datetime, now: datetime) -> bool:
    """Whether a tick has been due for longer than any beat that runs takes."""
    tick = timing.after(covered_to)
    return tick is not None and now - tick > _LATE


def _table(listed: list[Seen]) -> Table:
    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for name in ("NAME", "WHEN", "TIME ZONE", "RUNS", "NEXT", "LAST", "STATE"):
        table.add_column(name)
    for each in listed:
        why = {"failing": each.error, "late": "does `ackline beat` run?"}.get(each.state)
        if each.paused is not None and each.state == "paused":
            why = f"by {each.paused['actor']}" + (f", {each.paused['reason']}" if each.paused["reason"] else "")
        table.add_row(
            each.name,
            line(each.when),
            line(each.timezone),
            line(each.runs),
            moment(each.next_at) or "-",
            moment(each.last_at) or "-",
            each.state if why is None else f"{each.state}: {line(why)}",
        )
    return table


def _paused(stored: Stored) -> str:
    why = f": {line(stored.pause_reason)}" if stored.pause_reason else ""
    return f"paused by {line(str(stored.paused_by))} since {moment(stored.paused_at)}{why}"
