"""When a schedule is due: its *ticks*, as moments in UTC. The same for whoever asks, whenever.

Two ways to say it:

- `every 30s`: an interval of elapsed time, counted from midnight of 1 January 1970 in its time zone. What clocks on
  walls do does not concern it.
- `0 8 * * *`: a crontab line (minute, hour, day of month, month, day of week), by the clock on the wall of its zone.

Where that clock jumps, the rule is that of Debian's cron (`man 8 cron`). A line that names its minutes and hours runs
once for each time that it names: one that does not exist on that day at the next that does, one that occurs twice the
first time. A line with a `*` in minute or hour means whatever the clock shows: a time that is left out is not run, and
one that occurs twice is run twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice, takewhile
from typing import Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from ackline.infra.durations import seconds
from ackline.infra.errors import ConfigurationError

_EVERY = "every "
#: Seconds between the ticks of an interval at least.
_SHORTEST = 1.0
#: By how much clocks on walls jump at most.
_JUMP = timedelta(hours=3)
#: The first window that is searched for the latest tick.
_WINDOW = timedelta(minutes=1)


class Timing(Protocol):
    """The ticks of a schedule."""

    def after(self, moment: datetime) -> datetime | None:
        """The first tick later than *moment*, in UTC; None when none comes within fifty years.

        moment: aware.
        """


@dataclass(frozen=True, slots=True)
class Every:
    """A tick every *interval* of elapsed time since *origin*."""

    interval: timedelta
    origin: datetime

    def after(self, moment: datetime) -> datetime | None:
        """See `Timing`."""
        return self.origin + ((moment - self.origin) // self.interval + 1) * self.interval


@dataclass(frozen=True, slots=True)
class Crontab:
    """A tick at each time that matches *line* in *zone*.

    CronSim says which times match, by a clock that never jumps; what becomes of one that does not exist, or occurs
    twice, is decided here. (CronSim's own way leaves out ticks where a clock jumps by half an hour.)
    """

    line: str
    zone: tzinfo

    def after(self, moment: datetime) -> datetime | None:
        """See `Timing`."""
        shown = self._shown(moment)
        if self._is_of_the_day:
            following = (self._once(time) for time in CronSim(self.line, shown))
            return next((tick for tick in following if tick > moment), None)
        if self._shown(moment + _JUMP) >= shown + _JUMP:
            following = (tick for time in CronSim(self.line, shown) for tick in self._moments(time))
            return next((tick for tick in following if tick > moment), None)
        # The clock is about to go back: what it has shown before comes again before what it has not shown yet.
        soon = takewhile(lambda time: time <= shown + _JUMP, CronSim(self.line, shown - _JUMP))
        again = [tick for time in soon for tick in self._moments(time) if tick > moment]
        return min(again) if again else self.after(moment + _JUMP)

    @property
    def _is_of_the_day(self) -> bool:
        """Whether the line names its minutes and hours."""
        minute, hour = self.line.split()[:2]
        return not (minute.startswith("*") or hour.startswith("*"))

    def _shown(self, moment: datetime) -> datetime:
        """What the clock shows at a moment."""
        return moment.astimezone(self.zone).replace(tzinfo=None, fold=0)

    def _moments(self, time: datetime) -> list[datetime]:
        """When the clock shows *time*: once, or never, or twice."""
        found = {time.replace(tzinfo=self.zone, fold=fold).astimezone(UTC) for fold in (0, 1)}
        return sorted(moment for moment in found if self._shown(moment) == time)

    def _once(self, time: datetime) -> datetime:
        """When the clock shows *time* first; of one that it never shows, when it shows the next that it does."""
        while not (moments := self._moments(time)):
            time += timedelta(minutes=1)
        return moments[0]


def timing(when: str, timezone: str = "UTC") -> Timing:
    """What *when* says, in the zone of that name (IANA, such as Asia/Shanghai).

    Raises `ConfigurationError` for a zone that is not known, and for what is no timing or never comes.
    """
    zone = _zone(timezone)
    if when.startswith(_EVERY):
        interval = seconds(when.removeprefix(_EVERY))
        if interval < _SHORTEST:
            raise ConfigurationError(f"{when!r} is too often: every second at most.")
        return Every(timedelta(seconds=interval), datetime(1970, 1, 1, tzinfo=zone).astimezone(UTC))
    crontab = Crontab(when, zone)
    try:
        if len(when.split()) != 5:
            raise CronSimError("it has not five fields")
        if crontab.after(datetime(2000, 1, 1, tzinfo=UTC)) is None:
            raise CronSimError("it names no day that there is")
    except CronSimError as error:
        raise ConfigurationError(
            f"{when!r} is no timing ({error}): write a crontab line such as '0 8 * * *', or 'every 30s'."
        ) from None
    return crontab


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigurationError(f"{name!r} is no time zone: write a name such as Europe/Berlin, or UTC.") from None


def ticks(of: Timing, after: datetime, upto: datetime, limit: int | None = None) -> list[datetime]:
    """The ticks later than *after* and not later than *upto*, in order, the first *limit* of them."""
    return list(islice(takewhile(lambda tick: tick <= upto, _ticks(of, after)), limit))


def latest(of: Timing, after: datetime, upto: datetime) -> datetime | None:
    """The last of those ticks; None when there are none. Quick, however many there are."""
    window = _WINDOW
    while True:
        begin = max(upto - window, after)
        found = ticks(of, begin, upto)
        if found or begin == after:
            return found[-1] if found else None
        window *= 2


def _ticks(of: Timing, after: datetime) -> Iterator[datetime]:
    tick = of.after(after)
    while tick is not None:
        yield tick
        tick = of.after(tick)
