"""What a schedule is, and where it is declared: in code, or in `ackline.toml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, model_validator

from ackline.consumers.schedules.due import Missed
from ackline.consumers.schedules.timing import Timing, timing
from ackline.infra.durations import seconds
from ackline.infra.errors import ConfigurationError
from ackline.infra.settings import Settings
from ackline.producer.message import type_of

#: A beat looks once a second, so a tick may well be as late as that.
_LEAST_GRACE = 1.0


class Origin(StrEnum):
    """Where a schedule is declared."""

    APPLICATION = "application"
    FILE = "file"
    COMMAND_LINE = "command line"


def _grace(value: Any) -> float:
    try:
        return seconds(value)
    except (ConfigurationError, TypeError) as error:
        raise ValueError(str(error)) from None


class Schedule(BaseModel):
    """What is due when. Either `job`, with `args` and `kwargs`, or `message`, a type, with `data`.

    when: a crontab line, or an interval such as "every 30s" (see `ackline.consumers.schedules.timing`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,200}$")]
    when: str
    timezone: str = "UTC"
    job: str | None = None
    args: list[JsonValue] = []
    kwargs: dict[str, JsonValue] = {}
    message: str | None = None
    data: JsonValue = None
    missed: Missed = Missed.SKIP
    grace: Annotated[float, BeforeValidator(_grace), Field(ge=_LEAST_GRACE)] = 60.0

    @model_validator(mode="after")
    def _check(self) -> Schedule:
        if (self.job is None) == (self.message is None):
            raise ValueError("name a job or a message, one of them")
        if self.job is None and (self.args or self.kwargs):
            raise ValueError("args and kwargs are a job's; a message has data")
        if self.message is None and self.data is not None:
            raise ValueError("data is a message's; a job has args and kwargs")
        try:
            timing(self.when, self.timezone)
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def timing(self) -> Timing:
        """Its ticks."""
        return timing(self.when, self.timezone)

    @property
    def allowance(self) -> timedelta:
        """How late a tick may be run."""
        return timedelta(seconds=self.grace)

    @property
    def target(self) -> str:
        """What it runs, in a word."""
        return self.job or self.message or ""


_schedules: dict[str, Schedule] = {}


def schedule(
    name: str,
    when: str,
    target: Any,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    timezone: str = "UTC",
    missed: Missed | str = Missed.SKIP,
    grace: str | float = 60.0,
) -> Schedule:
    """Have *target* run at each tick of *when*: a job, with *args* and *kwargs*, or an instance of a contract.

    name: 1 to 200 letters, digits, `.`, `_` or `-`. when: a crontab line ("0 8 * * *": minute, hour, day of month,
    month, day of week), or an interval ("every 30s"). timezone: an IANA name, for whose clock a crontab line is meant.
    grace: how late a tick may be run ("5m", or seconds; one second at least), each one. missed: what becomes of ticks
    that nobody could run within their grace: "skip", or "run once" in place of all of them.

    The id of the job or message follows from the name and the time for which it was planned. The job finds these as
    `self.request.schedule` and `self.request.planned_at` (ISO 8601, UTC), a handler in the headers `schedule` and
    `planned_at`.

    Guarantees: a tick is published once, unless the relay is killed between the publish and its note of it: then again
    under the same id. Raises `ConfigurationError` for what cannot be used, and for a name that another one has.
    """
    if isinstance(target, BaseModel):
        what: dict[str, Any] = {"message": type_of(target), "data": target.model_dump(mode="json", by_alias=True)}
    else:
        what = {"job": target.name}
    if args or kwargs:
        what |= {"args": list(args), "kwargs": dict(kwargs or {})}
    told = {"name": name, "when": when, "timezone": timezone, "missed": missed, "grace": grace}
    declared = parse(told | what, f"The schedule {name!r}")
    if _schedules.setdefault(name, declared) != declared:
        raise ConfigurationError(f"There is another schedule {name!r} already: give each a name of its own.")
    return declared


def parse(told: Mapping[str, Any], whose: str) -> Schedule:
    """The schedule that *told* describes. Raises `ConfigurationError`, which calls it *whose*."""
    try:
        return Schedule.model_validate(told)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}" if each["loc"] else each["msg"]
            for each in error.errors()
        )
        raise ConfigurationError(f"{whose} cannot be used: {wrong.replace('Value error, ', '').rstrip('.')}.") from None


def declared(configured: Settings) -> dict[str, tuple[Origin, Schedule]]:
    """The schedules of the application, which is loaded, and of `ackline.toml`; one of the file takes the place of one
    of that name in the code. Raises `ConfigurationError` for one that cannot be used.
    """
    of_file: dict[str, tuple[Origin, Schedule]] = {}
    for number, told in enumerate(configured.schedules, start=1):
        whose = f"The schedule {told.get('name', number)!r} of ackline.toml (ACKLINE_SCHEDULES)"
        found = parse(told, whose)
        if found.name in of_file:
            raise ConfigurationError(f"{whose} is there twice: give each a name of its own.")
        of_file[found.name] = (Origin.FILE, found)
    return {name: (Origin.APPLICATION, schedule) for name, schedule in _schedules.items()} | of_file
