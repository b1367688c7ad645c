"""Schedules in the database: ticks that are run once, by whom and whatever the clock does; the commands; the beat."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Connection, Engine, select, update

from ackline.consumers.jobs import app
from ackline.consumers.jobs.queues import jobs_of
from ackline.consumers.schedules import rows
from ackline.consumers.schedules.beat import Beat
from ackline.consumers.schedules.leadership import Leadership
from ackline.consumers.schedules.schedule import Origin, Schedule, _schedules, parse
from ackline.consumers.schedules.targets import id_of
from ackline.infra import database, tables
from ackline.infra.cli import cli
from ackline.infra.database import reading, writing
from ackline.infra.errors import AcklineError
from ackline.infra.names import BEAT, JOBS
from ackline.infra.properties import Properties
from ackline.infra.settings import Settings, settings
from ackline.infra.tables import outbox, schedule_runs
from ackline.infra.tables import schedules as schedules_table
from ackline.infra.unknown import unknown
from tests.amqp import Client
from tests.broker import Vhost
from tests.connections import close, connections
from tests.mail import MailSink
from tests.relaying import QUEUE, declare_queue, taken
from tests.roles import role, run
from tests.waiting import until

#: 08:00 in Shanghai.
MORNING = datetime(2026, 11, 21, tzinfo=UTC)
SECOND, MINUTE, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)


@app.task(name="test.schedules.add")  # type: ignore[untyped-decorator]
def add(a: int, b: int) -> int:
    return a + b


@pytest.fixture(autouse=True)
def no_broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In this process there is none, and what a beat does needs none."""
    monkeypatch.setenv("ACKLINE_AMQP_URL", "amqp://127.0.0.1:1/")
    settings.cache_clear()
    yield
    settings.cache_clear()


class Clock:
    """The time that beats are told."""

    def __init__(self, at: datetime) -> None:
        self.at = at

    def __call__(self, _connection: Connection) -> datetime:
        return self.at


class Active:
    """A beat that is active whatever the others are."""

    is_active = True

    def start(self, timeout: float) -> None:
        pass

    def stop(self) -> None:
        pass


def of(name: str = "recorded", when: str = "every 1s", **more: Any) -> Schedule:
    """A schedule of a message, or of what is said otherwise."""
    target = {} if "job" in more else {"message": "test.recorded", "data": {"number": 7}}
    return parse({"name": name, "when": when} | target | more, "It")


def beat(engine: Engine, clock: Callable[[Connection], datetime], *schedules: Schedule) -> Beat:
    """A beat with those schedules, which has looked once."""
    made = Beat(engine, Active(), {each.name: (Origin.APPLICATION, each) for each in schedules}, now=clock)
    made.look()
    return made


def look(*beats: Beat) -> None:
    """Have each look until nothing more is due."""
    for each in beats:
        while each.look() == 0.0:
            pass


def ran(engine: Engine, name: str = "recorded") -> list[datetime]:
    """The ticks of a schedule that were run."""
    with reading(engine) as connection:
        ticks = select(schedule_runs.c.planned_at).where(schedule_runs.c.schedule == name)
        return list(connection.scalars(ticks.order_by(schedule_runs.c.planned_at)))


def waiting(engine: Engine) -> list[Any]:
    """The rows of the outbox."""
    with reading(engine) as connection:
        return list(connection.execute(select(outbox).order_by(outbox.c.id)))


def stored(engine: Engine, name: str = "recorded") -> rows.Stored:
    with reading(engine) as connection:
        found = rows.find(connection, name)
    assert found is not None
    return found


# --- ticks ------------------------------------------------------------------------------------------------------------


def test_a_tick_is_a_message_under_an_id_of_its_own_which_tells_when_it_was_planned(engine: Engine) -> None:
    clock = Clock(MORNING - MINUTE)
    running = beat(engine, clock, of(when="0 8 * * *", timezone="Asia/Shanghai"))
    assert waiting(engine) == []
    clock.at = MORNING + SECOND
    look(running)
    (row,) = waiting(engine)
    headers = Properties.from_wire(row.properties).headers
    assert (row.type, json.loads(row.payload)["number"]) == ("test.recorded", 7)
    assert row.message_id == id_of("recorded", MORNING) == stored(engine).last_id
    assert (headers.text("schedule"), headers.text("planned_at")) == ("recorded", "2026-11-21T00:00:00+00:00")
    assert stored(engine).last_run_at == clock.at


def test_a_tick_of_a_job_is_a_job_for_the_relay_to_publish(engine: Engine) -> None:
    clock = Clock(MORNING - SECOND)
    running = beat(engine, clock, of("add", job="test.schedules.add", args=[1], kwargs={"b": 2}))
    clock.at = MORNING
    look(running)
    (row,) = waiting(engine)
    properties = Properties.from_wire(row.properties)
    assert (row.type, properties.type, properties.headers.text("task")) == (
        JOBS,
        b"test.schedules.add",
        "test.schedules.add",
    )
    assert row.message_id == properties.headers.text("id") == id_of("add", MORNING)
    assert json.loads(row.payload)[:2] == [[1], {"b": 2}]


def test_two_beats_that_both_believe_they_are_active_run_each_tick_once(engine: Engine) -> None:
    clock = Clock(MORNING)
    schedules = [of("recorded"), of("other", "every 2s")]
    beats = [beat(engine, clock, *schedules) for _ in range(2)]
    gate = threading.Barrier(2)

    def look_at_once(running: Beat) -> None:
        gate.wait(60)
        look(running)

    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            clock.at += SECOND
            list(pool.map(look_at_once, beats))
    expected = [MORNING + SECOND * n for n in range(1, 21)]
    assert ran(engine) == expected
    assert ran(engine, "other") == expected[1::2]
    assert len({row.message_id for row in waiting(engine)}) == len(waiting(engine)) == 30


def test_what_one_beat_read_before_another_ran_it_is_not_run_again(engine: Engine) -> None:
    clock = Clock(MORNING)
    running = beat(engine, clock, of())
    asleep = stored(engine)
    clock.at += SECOND
    look(running)
    with writing(engine) as connection:  # it wakes up, with what it read
        assert rows.run(connection, asleep, [clock.at], clock.at, "another", clock.at) is None
    assert len(waiting(engine)) == 1


def test_missed_ticks_are_skipped_or_run_once_as_their_rule_says(engine: Engine) -> None:
    clock = Clock(MORNING - MINUTE)
    daily = {"when": "0 8 * * *", "timezone": "Asia/Shanghai"}
    running = beat(engine, clock, of("skips", **daily), of("once", missed="run once", **daily))
    clock.at = MORNING + 3 * DAY + 2 * MINUTE
    look(running)
    assert ran(engine, "skips") == []
    assert ran(engine, "once") == [MORNING + 3 * DAY]
    clock.at = MORNING + 4 * DAY
    look(running)
    assert ran(engine, "skips") == [MORNING + 4 * DAY]
    assert ran(engine, "once") == [MORNING + 3 * DAY, MORNING + 4 * DAY]


def test_a_clock_that_jumps_ahead_and_back_runs_no_tick_twice_and_stops_nothing(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(MORNING)
    running = beat(engine, clock, of(when="every 1m", missed="run once", grace="30s"))
    clock.at += MINUTE
    look(running)
    clock.at += 20 * DAY
    look(running)
    first, ahead = MORNING + MINUTE, [MORNING + 20 * DAY, MORNING + 20 * DAY + MINUTE]
    assert ran(engine) == [first, *ahead], "one in place of those of three weeks, and the one that was due"
    clock.at = MORNING + 2 * MINUTE
    look(running)
    assert "the clock went back" in caplog.text
    clock.at += MINUTE
    look(running)
    assert ran(engine) == [first, MORNING + 3 * MINUTE, *ahead], "it goes on from what the clock shows"
    clock.at = MORNING - 10 * MINUTE
    look(running)
    for _ in range(14):
        clock.at += MINUTE
        look(running)
    minutes = [MORNING + MINUTE * n for n in range(-9, 5)]
    assert ran(engine) == [*minutes, *ahead]
    assert len(waiting(engine)) == len(minutes) + 2, "those that had been run were not run again"


def test_a_tick_that_cannot_be_made_says_so_and_holds_up_no_other(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(MORNING)
    running = beat(engine, clock, of("broken", job="test.schedules.nobody"), of("refused", data={"number": "x"}), of())
    for _ in range(3):
        clock.at += SECOND
        running.look()
    assert len(ran(engine)) == 3
    assert ran(engine, "broken") == ran(engine, "refused") == []
    assert stored(engine, "broken").error == unknown("job", "test.schedules.nobody", jobs_of(app))
    assert str(stored(engine, "refused").error).startswith("The data is no test.recorded: number: ")
    assert caplog.text.count("broken cannot be run") == 1, "once, not at every look"

    mended = beat(engine, clock, of("broken", job="test.schedules.add", args=[1, 2]))
    look(mended)
    assert len(ran(engine, "broken")) == 3, "within the grace they are run after all"
    assert stored(engine, "broken").error is None


def test_what_is_declared_anew_begins_with_the_next_tick_and_what_is_not_declared_rests(engine: Engine) -> None:
    clock = Clock(MORNING)
    beat(engine, clock, of())
    clock.at += 5 * SECOND
    look(beat(engine, clock))  # an application without it
    assert not stored(engine).declared
    assert ran(engine) == []
    clock.at += 5 * SECOND
    returned = beat(engine, clock, of())
    look(returned)
    assert ran(engine) == [], "what it missed was nobody's wish"
    clock.at += SECOND
    look(returned)
    assert ran(engine) == [clock.at]
    look(beat(engine, clock, of(when="every 2s", grace="5m")))
    clock.at += SECOND
    changed = beat(engine, clock, of(when="every 2s", grace="5m"))
    look(changed)
    assert ran(engine)[1:] == [clock.at]


def test_other_arguments_change_nothing_of_when(engine: Engine) -> None:
    clock = Clock(MORNING)
    beat(engine, clock, of())
    clock.at += SECOND
    look(beat(engine, clock, of(data={"number": 8})))
    (row,) = waiting(engine)
    assert (row.message_id, json.loads(row.payload)["number"]) == (id_of("recorded", clock.at), 8)


def test_what_is_paused_is_not_run_and_not_made_up_for(engine: Engine) -> None:
    clock = Clock(MORNING)
    running = beat(engine, clock, of(missed="run once"))
    with writing(engine) as connection:
        assert rows.pause(connection, "recorded", "ada", "the shop is closed", clock.at)
        assert not rows.pause(connection, "recorded", "bob", "", clock.at)
    clock.at += 10 * MINUTE
    look(running)
    with writing(engine) as connection:
        assert rows.resume(connection, "recorded", clock.at)
        assert not rows.resume(connection, "recorded", clock.at)
    look(running)
    assert ran(engine) == []
    clock.at += SECOND
    look(running)
    assert ran(engine) == [clock.at]


def test_rows_of_ticks_are_kept_for_a_month(engine: Engine) -> None:
    clock = Clock(MORNING)
    running = beat(engine, clock, of(when="every 1d"))
    clock.at += DAY
    look(running)
    clock.at += 29 * DAY
    look(running)
    assert ran(engine)[0] == MORNING + DAY
    clock.at += 2 * DAY
    look(running)
    assert MORNING + DAY not in ran(engine)


def test_a_database_that_is_away_is_said_once_and_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "ackline.db"
    database.upgrade(f"sqlite:///{file}")
    engine = database.connect(f"sqlite:///{file}")
    running = Beat(engine, Active(), {"recorded": (Origin.APPLICATION, of(grace="1h"))})
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        until(lambda: ran(engine), what="the first tick")
        holder = sqlite3.connect(file, isolation_level=None, timeout=60)
        holder.execute("BEGIN IMMEDIATE")
        until(lambda: "running schedules waits: " in caplog.text, what="the outage to be said")
        before = len(ran(engine))
        holder.execute("ROLLBACK")
        holder.close()
        until(lambda: len(ran(engine)) > before + 1, what="the schedule to go on")
    finally:
        running.stop()
        thread.join(60)
        engine.dispose()
    ticks = ran(database.connect(f"sqlite:///{file}"))
    assert ticks == [ticks[0] + SECOND * n for n in range(len(ticks))], "within the grace none was missed"
    assert caplog.text.count("running schedules waits: ") == caplog.text.count("running schedules goes on")


# --- who is active ----------------------------------------------------------------------------------------------------


@contextmanager
def choices(url: str, count: int) -> Iterator[list[Leadership]]:
    """So many that take part in the choice, and know who is active."""
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            choice = Leadership(url)
            stack.callback(choice.stop)
            choice.start(60)
            found.append(choice)
        yield found


def only(choices: list[Leadership]) -> Leadership | None:
    """The active one, when there is exactly one."""
    active = [choice for choice in choices if choice.is_active]
    return active[0] if len(active) == 1 else None


def test_one_of_several_beats_is_active_and_another_when_it_stops(ackline_settings: Settings) -> None:
    with choices(ackline_settings.broker, 3) as found:
        first = until(lambda: only(found), what="an active one")
        first.stop()
        left = [choice for choice in found if choice is not first]
        until(lambda: only(left), what="another one to be active")


def test_beats_that_lose_their_connections_choose_again(vhost: Vhost) -> None:
    with choices(vhost.amqp_url, 2) as found:
        until(lambda: only(found), what="an active one")
        names = until(lambda: (len(named := connections(vhost, "beat ")) == 2 and named) or None, what="their names")
        close(vhost, names)
        until(lambda: all(choice._link.losses for choice in found), what="them to notice")
        until(lambda: only(found), what="an active one again")


def test_a_deleted_queue_is_created_again(ackline_settings: Settings, client: Client) -> None:
    with choices(ackline_settings.broker, 2) as found:
        until(lambda: only(found), what="an active one")
        client.delete_queue(BEAT)
        until(lambda: client.exists(BEAT) and client.consumers(BEAT) == 1, what="a beat that consumes it again")
        until(lambda: only(found), what="an active one again")


def test_a_beat_without_rabbitmq_is_active_by_itself(ackline_settings: Settings) -> None:
    alone = Leadership("amqp://127.0.0.1:1/")
    alone.start(0.1)
    try:
        until(lambda: alone.is_active, what="it to go on alone")
    finally:
        alone.stop()


# --- the commands -----------------------------------------------------------------------------------------------------

TOLD: Any = {"ACKLINE_APP": "tests.relaying", "ACKLINE_ACTOR": "ada"}
OF_FILE = {
    "name": "of-file",
    "when": "0 8 * * *",
    "timezone": "Asia/Shanghai",
    "job": "test.schedules.add",
    "args": [1, 2],
}


class Commands:
    """`ackline schedules`, in this process."""

    def _run(self, arguments: tuple[str, ...]) -> Result:
        settings.cache_clear()
        return CliRunner().invoke(cli, ["schedules", *arguments])

    def __call__(self, *arguments: str) -> str:
        done = self._run(arguments)
        assert done.exception is None, done.exception
        return done.stdout

    def refused(self, *arguments: str) -> str:
        done = self._run(arguments)
        assert isinstance(done.exception, (AcklineError, SystemExit))
        return done.stderr or str(done.exception)

    def listed(self) -> dict[str, dict[str, Any]]:
        return {each["name"]: each for each in map(json.loads, self("list", "--json").splitlines())}


@pytest.fixture
def schedules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    told = {"ACKLINE_DATA_DIR": str(tmp_path), "ACKLINE_SCHEDULES": json.dumps([OF_FILE]), **TOLD}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    for name in tuple(_schedules):  # other tests' are not this application's
        monkeypatch.delitem(_schedules, name)
    return Commands()


def test_schedules_are_listed_added_paused_run_and_removed(schedules: Commands) -> None:
    assert schedules.listed()["of-file"]["state"] == "new"
    told = ("--message", "test.recorded", "--data", '{"number": 7}')
    assert "probe: added, next at 2" in schedules("add", "probe", "every 30s", *told, "--missed", "run once")
    assert "There is a schedule probe already" in schedules.refused("add", "probe", "every 10s", *told)
    assert "There is a schedule of-file already" in schedules.refused("add", "of-file", "every 10s", *told)

    assert schedules("pause", "probe", "of-file", "--reason", "closed") == "probe: paused\nof-file: paused\n"
    assert "already paused by ada since" in schedules("pause", "probe")
    listed = schedules.listed()
    assert [listed[name]["state"] for name in ("probe", "of-file")] == ["paused", "paused"]
    assert listed["probe"]["paused"]["reason"] == "closed"
    assert listed["probe"]["next_at"] is None
    assert schedules("resume", "of-file") == "of-file: resumed\n"

    id_ = schedules("run-now", "probe").strip()
    engine = database.connect(settings().database)
    assert [row.message_id for row in waiting(engine)] == [id_]
    engine.dispose()
    listed = schedules.listed()
    assert (listed["probe"]["last_id"], listed["probe"]["origin"]) == (id_, "command line")
    eight = listed["of-file"]
    assert (eight["state"], eight["runs"], eight["next_at"][10:]) == ("active", "job test.schedules.add", "T00:00:00Z")
    table = schedules("list")
    assert "paused: by ada, closed" in table
    assert "0 8 * * *" in table

    engine = database.connect(settings().database)
    with database.writing(engine) as connection:  # as a newer version may have
        newer = tables.schedules.update().where(tables.schedules.c.name == "probe")
        connection.execute(newer.values(definition={"message": "test.recorded", "at": "noon"}))
    engine.dispose()
    schedules("resume", "probe")
    assert schedules.listed()["probe"]["next_at"] is None

    assert "of-file is declared in ackline.toml" in schedules.refused("remove", "of-file", "probe")
    assert schedules("remove", "probe") == "probe: removed\n"
    assert "There is no schedule probe" in schedules.refused("run-now", "probe")
    assert set(schedules.listed()) == {"of-file"}


def test_the_list_says_of_a_schedule_that_is_due_for_long_that_no_beat_may_run(schedules: Commands) -> None:
    told = ("--message", "test.recorded", "--data", '{"number": 7}')
    schedules("add", "probe", "every 30s", *told)
    assert schedules.listed()["probe"]["state"] == "active"
    with database.opened(settings().database) as engine, writing(engine) as connection:
        connection.execute(update(schedules_table).values(covered_to=datetime.now(UTC) - MINUTE))
    assert schedules.listed()["probe"]["state"] == "late"
    assert "late: does `ackline beat` run?" in schedules("list")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("every 30s", "--job", "nobody"), "There is no job 'nobody'. There are: "),
        (
            ("every 30s", "--job", "test.schedules.add", "--args", "[1]"),
            "The job test.schedules.add does not take these arguments",
        ),
        (("every 30s", "--job", "test.schedules.add", "--args", "1,2"), "--args is no JSON"),
        (("every 30s", "--message", "nothing"), "There is no message type 'nothing'"),
        (("every 30s", "--message", "test.recorded", "--data", '{"number": "x"}'), "The data is no test.recorded"),
        (("now and then", "--job", "test.schedules.add"), "'now and then' is no timing"),
        (("every 30s",), "name a job or a message"),
    ],
)
def test_a_schedule_that_could_not_be_run_is_not_added(
    schedules: Commands, arguments: tuple[str, ...], said: str
) -> None:
    assert said in schedules.refused("add", "wrong", *arguments)
    assert set(schedules.listed()) == {"of-file"}


def test_a_beat_does_not_start_with_a_schedule_that_it_could_not_run(ackline_settings: Settings) -> None:
    wrong = json.dumps([OF_FILE | {"job": "nobody"}])
    done = run(ackline_settings, "beat", ACKLINE_SCHEDULES=wrong, **TOLD)
    assert done.returncode == 2
    assert "The schedule 'of-file' cannot be run: There is no job 'nobody': ACKLINE_APP names no module" in done.stderr


# --- all of it --------------------------------------------------------------------------------------------------------


def test_a_beat_and_a_relay_publish_what_is_due(ackline_settings: Settings, client: Client) -> None:
    declare_queue(ackline_settings.broker)
    secondly = {"name": "secondly", "when": "every 1s", "message": "test.recorded", "data": {"number": 7}}
    with (
        role(ackline_settings, "relay"),
        role(ackline_settings, "beat", ACKLINE_SCHEDULES=json.dumps([secondly]), **TOLD) as running,
    ):
        until(lambda: client.ready(QUEUE) >= 3, what="three ticks")
        assert running.stop() == 0
    published = taken(client)
    assert len({one.properties.message_id for one in published}) == len(published) >= 3


def test_the_daily_mail_is_sent_at_eight_in_shanghai(ackline_settings: Settings, smtp_sink: MailSink) -> None:
    from ackline.consumers.handlers.daily_mail import daily_mail

    assert _schedules["daily-mail"].job == daily_mail.name
    apps = ("ackline.consumers.handlers.daily_mail", "ackline.consumers.handlers.email")
    configured = ackline_settings.model_copy(update={"app": apps, "smtp_url": smtp_sink.url})
    told = {"ACKLINE_DAILY_MAIL_TO": "ada@example.test, bob@example.test"}
    with (
        database.opened(configured.database) as engine,
        role(configured, "relay"),
        role(configured, "worker"),
        role(configured, "jobs", "--concurrency", "1", **told),
    ):
        clock = Clock(MORNING - SECOND)
        running = beat(engine, clock, _schedules["daily-mail"])
        assert ran(engine, "daily-mail") == []
        clock.at = MORNING
        look(running, beat(engine, clock, _schedules["daily-mail"]))
        until(lambda: len(smtp_sink.mails()) == 2, what="both mails")
        clock.at += DAY - SECOND
        look(running)
        assert len(ran(engine, "daily-mail")) == 1, "not before eight"
    mails = smtp_sink.mails()
    assert {mail["To"] for mail in mails} == {"ada@example.test", "bob@example.test"}
    assert {mail["Subject"] for mail in mails} == {"In review: 0, of which 0 since yesterday"}
