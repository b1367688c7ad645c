"""Workers of jobs, their processes and the broker are killed at random: each job ends, or is in review.

Plain Celery, with its defaults, has as many of the same jobs beside it, on the same broker, under the same kills. What
becomes of those is said, and nothing is asked of it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, Self

import pytest
from celery import Celery
from sqlalchemy import Engine, select

from ackline.consumers.jobs.app import Jobs, configuration
from ackline.infra import database, ready
from ackline.infra.names import DEAD, JOBS, RETRY_TIERS, UNROUTED
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from ackline.infra.tables import DeadLetterState, dead_letters
from ackline.producer.errors import PublishError
from tests.amqp import Client
from tests.job_tally import NOTES, expected, tallied
from tests.roles import ROOT, RoleProcess, role
from tests.waiting import until

LONG = bool(os.environ.get("ACKLINE_TEST_LONG"))
SENT, KILLS, RESTARTS = (5_000, 30, 2) if LONG else (400, 2, 1)
#: Jobs that have been published and have not ended, at most: so the kills come in the middle.
WINDOW = 60
#: What is killed: one that runs jobs, or their parent, which is started again. Then the broker: killed, and stopped.
PARTS = (PROCESS, PARENT, ALL) = ("process", "parent", "parent and processes")
BROKER = (KILLED, STOPPED) = ("broker killed", "broker stopped")
CONCURRENCY = 2
#: Seconds for what ours does, and for what plain Celery may do.
DEADLINE, PLAIN_DEADLINE = 900.0, 120.0
PLAIN_QUEUE = "celery"

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600 if LONG else 1800)]


class Worker(RoleProcess):
    """A worker with processes of its own, under fire."""

    def lose(self, part: str, number: int) -> None:
        """Kill that, and start it again where it does not do so itself. number: of the process."""
        processes = until(self.processes, what="its processes")
        if part != PROCESS:
            self.kill()  # the first, for it would say of its processes that they died
        for process in {PROCESS: [processes[number % len(processes)]], PARENT: [], ALL: processes}[part]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if part != PROCESS:
            self.start()


class PlainWorker(Worker):
    """`celery worker`, which gets the environment of a role."""

    def _spawn(self, write: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tests.plain_jobs", "worker", "-c", str(CONCURRENCY)],
            env=self._environment | {ready.VARIABLE: str(write)},
            pass_fds=[write],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def test_every_job_ends_or_is_in_review_whoever_is_killed(
    own_broker: Broker, own_broker_settings: Settings, tmp_path: Path, say: Callable[[str], None]
) -> None:
    seed = int(os.environ.get("ACKLINE_TEST_SEED") or random.SystemRandom().randrange(10**6))
    say(f"seed {seed} (ACKLINE_TEST_SEED)")
    chance = random.Random(seed)
    settings = own_broker_settings.model_copy(update={"app": ("tests.tally_jobs",)})
    notes, plain_notes = tmp_path / "notes", tmp_path / "plain-notes"
    ours = Worker(settings, "jobs", "--concurrency", str(CONCURRENCY), **{NOTES: str(notes)})
    plain = PlainWorker(settings, "plain", **{NOTES: str(plain_notes)})
    with (
        role(settings, "reviewer"),
        _killed_at_the_end(ours),
        _killed_at_the_end(plain),
        database.opened(settings.database) as engine,
    ):

        def missing() -> set[str]:
            ended = tallied(notes)
            return expected(SENT, ended) - ended.keys() - _in_review(engine).keys()

        def over() -> int:
            """How many have ended, or are in review."""
            return len({id_ for id_ in tallied(notes).keys() | _in_review(engine).keys() if id_.startswith("tally-")})

        ours.start()
        plain.start()
        kills = _kills(chance)
        with Publishing(_ours(settings)) as publishing, Publishing(_plain(settings)) as plain_publishing:
            for kill, point in kills:
                publishing.publish_to(point + WINDOW)
                until(lambda: over() >= point, deadline=DEADLINE, what=f"{point} jobs to end")  # noqa: B023
                if kill not in BROKER:
                    ours.lose(kill, number := chance.randrange(CONCURRENCY))
                # Its jobs come now, so that it is in the middle of them, too, however quick it was.
                before = len(tallied(plain_notes))
                plain_publishing.publish_to(point + WINDOW)
                with _as_it_may():
                    until(lambda: len(tallied(plain_notes)) > before, deadline=PLAIN_DEADLINE)  # noqa: B023
                if kill in BROKER:
                    (own_broker.kill if kill == KILLED else own_broker.stop)()
                    own_broker.start()
                else:
                    plain.lose(kill, number)
            for each in (publishing, plain_publishing):
                each.publish_to(SENT)
                each.finish()
        say(
            ", ".join(
                f"{kill} killed at {point}" if kill not in BROKER else f"{kill} at {point}" for kill, point in kills
            )
        )

        until(lambda: missing() == set(), deadline=DEADLINE, what="every job to end, or be in review")
        # Stopped and started until nothing is left: so what a worker holds is counted, too.
        _let_finish(settings, ours, [JOBS, DEAD, UNROUTED, *(tier for tier, _ in RETRY_TIERS)], DEADLINE)
        with _as_it_may():
            _let_finish(settings, plain, [PLAIN_QUEUE], PLAIN_DEADLINE)
        reviewed = _in_review(engine)
        assert missing() == set()

    runs, plain_runs = tallied(notes), tallied(plain_notes)
    dead = sum(reason.startswith("its process died") for reason in reviewed.values())
    say(f"Ackline: {_told(runs)}; {len(reviewed)} in review, {dead} of them whose process died; none missing")
    say(f"plain Celery: {_told(plain_runs)}; {len(expected(SENT, plain_runs) - plain_runs.keys())} lost")
    assert dead <= sum(kill == PROCESS for kill, _ in kills)


def _kills(chance: random.Random) -> list[tuple[str, int]]:
    """What is killed, and when so many jobs are over."""
    killed = [*PARTS[:KILLS], *chance.choices(PARTS, k=max(KILLS - len(PARTS), 0)), *BROKER[:RESTARTS]]
    chance.shuffle(killed)
    return list(zip(killed, sorted(chance.sample(range(1, SENT - WINDOW), len(killed))), strict=True))


# --- who publishes ----------------------------------------------------------------------------------------------------

Send = Callable[[str, int], None]


@contextmanager
def _ours(settings: Settings) -> Iterator[Send]:
    app = Jobs("sending", set_as_current=False)
    app.conf.update(configuration(settings))
    try:
        yield lambda id_, number: _send(app, id_, number, PublishError)
    finally:
        app.amqp.send_task_message.publisher.close()


@contextmanager
def _plain(settings: Settings) -> Iterator[Send]:
    with Celery("plain", broker=settings.broker, set_as_current=False) as app:
        # While the broker comes and goes, py-amqp's own errors get through, too.
        yield lambda id_, number: _send(app, id_, number, Exception)


def _send(app: Any, id_: str, number: int, failure: type[Exception]) -> None:
    """Publish it, again and again under the same id for as long as that is said to have failed."""
    while True:
        try:
            app.send_task("tally", (number,), task_id=id_)
        except failure:
            continue
        return


class Publishing:
    """Publishes jobs on a thread of its own, as far as it is told to."""

    def __init__(self, sending: AbstractContextManager[Send]) -> None:
        self._sending = sending
        self._to: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="publishing", daemon=True)
        self._sent = 0

    def publish_to(self, number: int) -> None:
        """Go on until so many are published."""
        self._to.put(number)

    def finish(self) -> None:
        """Wait until it has done what it was told."""
        self._to.put(None)
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), f"published {self._sent}"

    def _run(self) -> None:
        with self._sending as send:
            while (to := self._to.get()) is not None:
                for number in range(self._sent, to):
                    send(f"tally-{number}", number)
                    self._sent = number + 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._to.put(None)


# --- what became of them ----------------------------------------------------------------------------------------------


def _in_review(engine: Engine) -> dict[str, str]:
    """Why jobs are in review, by id."""
    letters = dead_letters.c
    with database.reading(engine) as connection:
        rows = connection.execute(
            select(letters.message_id, letters.reason).where(letters.state == DeadLetterState.IN_REVIEW)
        )
        return {row.message_id: row.reason for row in rows}


@contextmanager
def _as_it_may() -> Iterator[None]:
    """What plain Celery does not do is said at the end, by what it lacks, and is no failure."""
    with contextlib.suppress(AssertionError):
        yield


def _let_finish(settings: Settings, worker: Worker, queues: list[str], deadline: float) -> None:
    """Have *worker* finish what is in *queues*, held by it or not, and stop it. deadline: seconds for all of it."""
    end = time.monotonic() + deadline

    def left() -> int:
        with Client(settings.broker) as client:
            return sum(map(client.ready, queues))

    while True:
        until(lambda: left() == 0, deadline=max(end - time.monotonic(), 0.0), what=f"{queues} to be empty")
        worker.stop()
        if (returned := left()) == 0:
            return
        assert time.monotonic() < end, f"stopping returned {returned}, again and again"
        worker.start()


def _told(runs: Counter[str]) -> str:
    twice = sum(runs.values()) - len(runs)
    return f"{len(runs)} of {len(expected(SENT, runs))} jobs ended, {twice} of them once more"


@contextmanager
def _killed_at_the_end(worker: Worker) -> Iterator[None]:
    try:
        yield
    finally:
        worker.kill()
