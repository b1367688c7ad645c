"""Schedules: which ticks a timing has, which of them are due, and what a schedule may be."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel

from ackline.consumers.scheduled import anything
from ackline.consumers.schedules import Missed, rows, schedule
from ackline.consumers.schedules.due import BATCH, Due, due
from ackline.consumers.schedules.schedule import Origin, _schedules, declared
from ackline.consumers.schedules.targets import id_of
from ackline.consumers.schedules.timing import Timing, latest, ticks, timing
from ackline.infra.database import opened, writing
from ackline.infra.errors import ConfigurationError
from ackline.infra.settings import Settings
from ackline.infra.up import _roles
from ackline.producer import message
from tests.documented import load, section_of, write_files

MINUTE = timedelta(minutes=1)


def at(text: str) -> datetime:
    """A moment, in UTC, of an ISO 8601 time that has an offset."""
    return datetime.fromisoformat(text).astimezone(UTC)


def local(when: str, zone: str, start: str, count: int) -> list[str]:
    """The first ticks after *start*, by the clock on the wall of their zone, with its offset."""
    found, of = at(start), timing(when, zone)
    seen = []
    for _ in range(count):
        following = of.after(found)
        assert following is not None
        assert following > found
        assert following.tzinfo is UTC
        found = following
        seen.append(found.astimezone(ZoneInfo(zone)).isoformat())
    return seen


# --- timings ----------------------------------------------------------------------------------------------------------


def test_eight_in_the_morning_in_shanghai_is_midnight_in_utc() -> None:
    assert timing("0 8 * * *", "Asia/Shanghai").after(at("2026-11-20T00:00:00Z")) == at("2026-11-21T00:00:00Z")
    assert timing("0 8 * * *", "Asia/Shanghai").after(at("2026-11-20T23:59:59.999999Z")) == at("2026-11-21T00:00:00Z")


def test_an_interval_counts_from_midnight_of_1970_in_its_zone() -> None:
    assert timing("every 30s").after(at("2026-11-20T10:00:00Z")) == at("2026-11-20T10:00:30Z")
    assert timing("every 30s").after(at("2026-11-20T10:00:29.5Z")) == at("2026-11-20T10:00:30Z")
    assert local("every 1d", "Asia/Shanghai", "2026-11-20T00:00:00Z", 2) == [
        "2026-11-21T00:00:00+08:00",
        "2026-11-22T00:00:00+08:00",
    ]


def test_an_interval_is_elapsed_time_whatever_clocks_on_walls_do() -> None:
    start = at("2026-10-24T22:00:00Z")
    found = ticks(timing("every 1h", "Europe/Berlin"), start, start + timedelta(hours=6))
    assert found == [start + timedelta(hours=hour) for hour in range(1, 7)]


@pytest.mark.parametrize(
    ("when", "zone", "start", "expected"),
    [
        # 02:00 to 03:00 does not exist.
        (
            "30 2 * * *",
            "Europe/Berlin",
            "2026-03-28T12:00:00+01:00",
            ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"],
        ),
        (
            "30 2 * * *",
            "America/New_York",
            "2026-03-07T12:00:00-05:00",
            ["2026-03-08T03:00:00-04:00", "2026-03-09T02:30:00-04:00"],
        ),
        # Half an hour: 02:00 to 02:30.
        (
            "15 2 * * *",
            "Australia/Lord_Howe",
            "2026-10-03T12:00:00+10:30",
            ["2026-10-04T02:30:00+11:00", "2026-10-05T02:15:00+11:00"],
        ),
        # Two times that do not exist have one next time that does, and that is run once.
        (
            "0,30 2 * * *",
            "Europe/Berlin",
            "2026-03-28T12:00:00+01:00",
            ["2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"],
        ),
        (
            "0 2,3 * * *",
            "Europe/Berlin",
            "2026-03-28T12:00:00+01:00",
            ["2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"],
        ),
    ],
)
def test_a_time_of_day_that_does_not_exist_runs_once_at_the_next_that_does(
    when: str, zone: str, start: str, expected: list[str]
) -> None:
    assert local(when, zone, start, 2) == expected


@pytest.mark.parametrize(
    ("when", "zone", "start", "expected"),
    [
        (
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T12:00:00+02:00",
            ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"],
        ),
        (
            "30 1 * * *",
            "America/New_York",
            "2026-10-31T12:00:00-04:00",
            ["2026-11-01T01:30:00-04:00", "2026-11-02T01:30:00-05:00"],
        ),
        # Half an hour: 01:30 to 02:00.
        (
            "45 1 * * *",
            "Australia/Lord_Howe",
            "2026-04-04T12:00:00+11:00",
            ["2026-04-05T01:45:00+11:00", "2026-04-06T01:45:00+10:30"],
        ),
        # Somebody looks within the second of the two hours: the first is over.
        (
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-25T02:15:00+01:00",
            ["2026-10-26T02:30:00+01:00", "2026-10-27T02:30:00+01:00"],
        ),
    ],
)
def test_a_time_of_day_that_occurs_twice_runs_the_first_time(
    when: str, zone: str, start: str, expected: list[str]
) -> None:
    assert local(when, zone, start, 2) == expected


def test_what_runs_every_hour_follows_the_clock_on_the_wall() -> None:
    assert local("15 * * * *", "Europe/Berlin", "2026-10-25T01:30:00+02:00", 3) == [
        "2026-10-25T02:15:00+02:00",
        "2026-10-25T02:15:00+01:00",
        "2026-10-25T03:15:00+01:00",
    ]
    assert local("15 * * * *", "Europe/Berlin", "2026-03-29T01:00:00+01:00", 2) == [
        "2026-03-29T01:15:00+01:00",
        "2026-03-29T03:15:00+02:00",
    ]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Shanghai"])
@pytest.mark.parametrize("when", ["30 2 * * *", "45 1 * * *", "*/20 * * * *", "7 */3 * * *", "every 25m"])
def test_ticks_are_the_same_from_wherever_one_looks(when: str, zone: str) -> None:
    of = timing(when, zone)
    for begin in ("2026-03-07T00:00:00Z", "2026-04-04T00:00:00Z", "2026-10-03T00:00:00Z", "2026-10-24T00:00:00Z"):
        start = at(begin)
        end = start + timedelta(days=2)
        whole = ticks(of, start, end)
        for moment in (start + 47 * MINUTE * step for step in range(2 * 24 * 60 // 47)):
            assert ticks(of, moment, end) == [tick for tick in whole if tick > moment]
            assert latest(of, start, moment) == next((tick for tick in reversed(whole) if tick <= moment), None)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
@pytest.mark.parametrize("minute", [0, 7, 45])
def test_a_line_with_a_star_runs_at_every_minute_at_which_the_clock_shows_such_a_time(zone: str, minute: int) -> None:
    of, wall = timing(f"{minute} */3 * * *", zone), ZoneInfo(zone)
    for begin in ("2026-03-07T00:00:00Z", "2026-04-04T00:00:00Z", "2026-10-03T00:00:00Z", "2026-10-24T00:00:00Z"):
        minutes = [at(begin) + MINUTE * n for n in range(1, 2 * 24 * 60 + 1)]
        shown = [(moment, moment.astimezone(wall)) for moment in minutes]
        expected = [moment for moment, clock in shown if clock.minute == minute and clock.hour % 3 == 0]
        assert ticks(of, at(begin), minutes[-1]) == expected


def test_the_latest_of_years_of_ticks_is_found_at_once() -> None:
    class Counting:
        asked = 0

        def after(self, moment: datetime) -> datetime | None:
            self.asked += 1
            return of.after(moment)

    of, counting = timing("* * * * *"), Counting()
    assert latest(counting, at("2016-01-01T00:00:00Z"), at("2026-01-01T00:00:30Z")) == at("2026-01-01T00:00:00Z")
    assert counting.asked < 20


@pytest.mark.parametrize(
    ("when", "zone", "said"),
    [
        ("0 8 * *", "UTC", "five fields"),
        ("0 0 8 * * *", "UTC", "five fields"),
        ("61 * * * *", "UTC", "Bad minute"),
        ("0 0 30 2 *", "UTC", "Bad day-of-month"),
        ("0 0 */20 * 1L", "UTC", "names no day that there is"),
        ("every 0.5s", "UTC", "too often"),
        ("every day", "UTC", "'day' is no duration"),
        ("every 30s", "Mars/Base", "is no time zone"),
        ("0 8 * * *", "../etc/passwd", "is no time zone"),
    ],
)
def test_what_is_no_timing_is_a_sentence(when: str, zone: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        timing(when, zone)


# --- what is due ------------------------------------------------------------------------------------------------------

SECONDLY = timing("every 1s")
DAILY = timing("0 8 * * *", "Asia/Shanghai")
TICK = at("2026-11-21T00:00:00Z")


def look(covered_to: datetime, now: datetime, missed: Missed = Missed.SKIP, of: Timing = DAILY) -> Due | None:
    return due(of, covered_to, now, missed, MINUTE)


def test_nothing_is_due_before_its_time_and_one_tick_at_it() -> None:
    before = TICK - timedelta(hours=1)
    assert look(before, TICK - timedelta(microseconds=1)) is None
    assert look(before, TICK) == Due([TICK], None, TICK)
    assert look(TICK, TICK) is None


def test_every_tick_that_is_late_by_less_than_the_grace_is_run() -> None:
    now = at("2026-11-21T10:00:10Z")
    for missed in Missed:
        found = look(now - timedelta(seconds=10), now, missed, SECONDLY)
        assert found is not None
        assert len(found.run) == 10
        assert found.reached == now
        assert found.skipped is None


def test_ticks_that_are_missed_are_skipped_or_run_once_as_their_rule_says() -> None:
    three_days_before, now = TICK - timedelta(days=3), TICK + timedelta(hours=2)
    assert look(three_days_before, now) == Due([], TICK, TICK)
    assert look(three_days_before, now, Missed.RUN_ONCE) == Due([TICK], None, TICK)


def test_after_what_was_missed_comes_what_is_late() -> None:
    now = at("2026-11-21T10:00:00Z")
    late, within = now - MINUTE, [now - timedelta(seconds=left) for left in range(59, -1, -1)]
    assert look(now - timedelta(hours=1), now, Missed.SKIP, SECONDLY) == Due(within, late, now)
    assert look(now - timedelta(hours=1), now, Missed.RUN_ONCE, SECONDLY) == Due([late, *within], None, now)


def test_more_than_a_batch_is_run_in_several() -> None:
    now = at("2026-11-21T10:00:00Z")
    covered_to, seen = now - timedelta(seconds=250), []
    while (found := due(SECONDLY, covered_to, now, Missed.SKIP, timedelta(hours=1))) is not None:
        assert len(found.run) <= BATCH
        seen += found.run
        covered_to = found.reached
    assert seen == ticks(SECONDLY, now - timedelta(seconds=250), now)
    assert len(seen) == 250


def test_a_clock_that_went_back_makes_nothing_due() -> None:
    assert look(TICK, TICK - timedelta(days=1)) is None


@pytest.mark.parametrize("missed", list(Missed))
def test_however_often_one_looks_each_tick_is_run_or_missed_once(missed: Missed) -> None:
    start = at("2026-11-21T10:00:00Z")
    pauses = itertools.cycle([0.25, 1, 3, 59, 61, 300])
    covered_to = now = start
    seen: list[datetime] = []
    for pause in itertools.islice(pauses, 60):
        now += timedelta(seconds=pause)
        found = due(SECONDLY, covered_to, now, missed, MINUTE)
        if found is not None:
            seen += found.run
            covered_to = found.reached
    assert seen == sorted(set(seen)), "none twice, in order"
    expected = set(ticks(SECONDLY, start, now))
    assert set(seen) <= expected
    # Of each sleep of 61 or 300 s what was later than a minute is missed; one of it is run in its place, if that is so.
    lost = {61: 2, 300: 241}
    per_round = sum(lost.values()) - (2 if missed == Missed.RUN_ONCE else 0)
    assert abs(len(expected) - len(seen) - 10 * per_round) <= 20


# --- schedules --------------------------------------------------------------------------------------------------------


@message("test.probe")
class Probe(BaseModel):
    host: str


class AJob:
    name = "shop.count"


@pytest.fixture(autouse=True)
def no_schedules() -> Iterator[None]:
    kept = dict(_schedules)
    _schedules.clear()
    yield
    _schedules.clear()
    _schedules.update(kept)


def of_file(**told: Any) -> Settings:
    return Settings(schedules=({"name": "x", "when": "every 30s", "job": "shop.count"} | told,))


def test_a_schedule_is_declared_next_to_its_job_or_message() -> None:
    job = schedule("count", "0 8 * * *", AJob(), args=[1], kwargs={"deep": True}, timezone="Asia/Shanghai", grace="5m")
    probe = schedule("probe", "every 30s", Probe(host="a"), missed="run once")
    assert (job.job, job.args, job.kwargs, job.grace, job.missed) == ("shop.count", [1], {"deep": True}, 300, "skip")
    assert (probe.message, probe.data, probe.missed) == ("test.probe", {"host": "a"}, Missed.RUN_ONCE)
    assert declared(Settings()) == {"count": (Origin.APPLICATION, job), "probe": (Origin.APPLICATION, probe)}


def test_a_schedule_of_the_file_takes_the_place_of_one_in_the_code() -> None:
    schedule("x", "0 8 * * *", AJob())
    ((origin, found),) = declared(of_file(timezone="Asia/Shanghai", grace="2h")).values()
    assert (origin, found.when, found.grace) == (Origin.FILE, "every 30s", 7200)


def test_two_schedules_of_one_name_are_refused_wherever_they_are() -> None:
    assert schedule("x", "0 8 * * *", AJob()) == schedule("x", "0 8 * * *", AJob())
    with pytest.raises(ConfigurationError, match="There is another schedule 'x' already"):
        schedule("x", "0 9 * * *", AJob())
    (one,) = of_file().schedules
    with pytest.raises(ConfigurationError, match=r"'x' of ackline\.toml \(ACKLINE_SCHEDULES\) is there twice"):
        declared(Settings(schedules=(one, one | {"when": "every 1m"})))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"job": None}, "name a job or a message"),
        ({"message": "test.probe"}, "name a job or a message"),
        ({"data": {}}, "data is a message's"),
        ({"job": None, "message": "test.probe", "args": [1]}, "args and kwargs are a job's"),
        ({"when": "at noon"}, "'at noon' is no timing"),
        ({"timezone": "Mars/Base"}, "'Mars/Base' is no time zone"),
        ({"missed": "run"}, "missed: "),
        ({"grace": "0s"}, "grace: "),
        ({"grace": "long"}, "grace: 'long' is no duration"),
        ({"name": "a b"}, "name: "),
        ({"cron": "0 8 * * *"}, "cron: "),
    ],
)
def test_a_schedule_of_the_file_that_cannot_be_used_is_named(told: dict[str, Any], said: str) -> None:
    name = told.get("name", "x")
    with pytest.raises(ConfigurationError, match=rf"The schedule '{name}' of ackline\.toml .*{said}"):
        declared(of_file(**told))


def test_a_tick_always_has_the_same_id() -> None:
    assert id_of("count", TICK) == id_of("count", TICK)
    assert len({id_of("count", TICK), id_of("count", TICK + MINUTE), id_of("other", TICK)}) == 3


def test_the_schedules_of_the_documentation_can_be_used(tmp_path: Path, own_registry: None) -> None:
    (toml,) = re.findall(r"```toml\n(.*?)```", section_of("jobs.md", "Schedules"), re.DOTALL)
    write_files("jobs.md", "Schedules", tmp_path)
    load(tmp_path / "mornings.py")
    assert set(_schedules) == {"greeting"}
    found = declared(Settings(schedules=tuple(tomllib.loads(toml)["schedules"])))
    assert {name: (origin, each.when) for name, (origin, each) in found.items()} == {
        "greeting": (Origin.FILE, "30 7 * * mon-fri"),
        "sizes": (Origin.FILE, "every 30s"),
    }


def test_a_beat_runs_where_anything_is_scheduled(tmp_path: Path) -> None:
    nothing = Settings(amqp_url="amqp://127.0.0.1:1/", database_url=f"sqlite:///{tmp_path / 'ackline.db'}")
    assert not anything(nothing)
    of_the_file = nothing.model_copy(update={"schedules": of_file().schedules})
    assert anything(of_the_file)
    assert "beat" in {role.name for role in _roles(of_the_file, own_sink=False, with_flower=False)}
    with opened(nothing.database) as engine, writing(engine) as connection:
        rows.add(connection, Origin.COMMAND_LINE, declared(of_the_file)["x"][1], TICK)
    assert anything(nothing)
