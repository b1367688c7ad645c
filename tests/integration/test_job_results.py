"""Results of jobs: what `AsyncResult` says, from a worker's processes to who asks, in each database and in Redis."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import states
from celery.app.task import Context
from celery.backends.filesystem import FilesystemBackend
from celery.exceptions import TimeoutError as NotInTime
from kombu.exceptions import EncodeError
from sqlalchemy import Engine, func, select

from ackline.consumers.jobs import database as jobs_database
from ackline.consumers.jobs import unique
from ackline.consumers.jobs.chords import with_chords
from ackline.consumers.jobs.results import find, forget, started
from ackline.consumers.jobs.status import JobStatus, State
from ackline.infra import database
from ackline.infra.errors import ConfigurationError
from ackline.infra.names import DEAD
from ackline.infra.settings import Settings
from ackline.infra.tables import job_groups, job_results, outbox, unique_jobs
from ackline.infra.wire import now, uuid7
from tests.amqp import Client
from tests.asking import FOLDER, asking
from tests.broker import Vhost
from tests.roles import role, run
from tests.waiting import until

APP = "tests.result_app"


# --- the backend, in each database ------------------------------------------------------------------------------------


@pytest.fixture
def app(engine: Engine, tmp_path: Path) -> Iterator[Any]:
    """A Celery app with its results in the engine's database."""
    url = engine.url.render_as_string(hide_password=False)
    configured = Settings(amqp_url="amqp://127.0.0.1:1", database_url=url, data_dir=tmp_path)
    with asking(configured) as app:
        yield app
        jobs_database.engine().dispose()


def request(id_: str = "j-1", retries: int = 0, **more: Any) -> Context:
    """The request of a job, in the process that runs it."""
    return Context({"id": id_, "task": "render", "retries": retries, "hostname": "host:1", **more})


def status(app: Any, engine: Engine, id_: str = "j-1") -> JobStatus:
    with database.reading(engine) as connection:
        return find(app, connection, [id_])[id_]


def test_the_last_end_counts_and_the_first_success_stays(app: Any, engine: Engine) -> None:
    backend, result = app.backend, app.AsyncResult("j-1")
    assert (result.state, result.result) == ("PENDING", None)
    backend.mark_as_retry("j-1", ValueError("again"), "a traceback", request=request())
    assert (result.state, repr(result.result), result.traceback) == ("RETRY", "ValueError('again')", "a traceback")
    backend.mark_as_failure("j-1", ValueError("over"), request=request(retries=1))
    assert (result.state, repr(result.result), result.retries) == ("FAILURE", "ValueError('over')", 1)
    with pytest.raises(ValueError, match="over"):
        result.get(timeout=0)
    backend.mark_as_done("j-1", {"a": [1, None]}, request=request(retries=2))
    backend.mark_as_failure("j-1", ValueError("a late duplicate"), request=request())
    result = app.AsyncResult("j-1")  # for one keeps the end that it has seen
    assert (result.state, result.get(timeout=0), result.name, result.worker) == (
        *("SUCCESS", {"a": [1, None]}),
        *("render", "host:1"),
    )
    known = status(app, engine)
    assert (known.state, known.result, known.attempts, known.error) == (State.SUCCEEDED, {"a": [1, None]}, 3, None)
    result.forget()
    assert app.AsyncResult("j-1").state == "PENDING"


def test_a_result_that_is_no_json_is_not_stored(app: Any) -> None:
    with pytest.raises(EncodeError):
        app.backend.mark_as_done("j-1", object(), request=request())
    assert app.AsyncResult("j-1").state == "PENDING"


def test_a_retry_that_is_published_holds_though_it_cannot_be_written_down(app: Any, tmp_path: Path) -> None:
    """Celery would have failed the job: it would be in review, and be tried again."""
    folder = tmp_path / "results"
    folder.mkdir()
    backend = with_chords(FilesystemBackend)(app=app, url=f"file://{folder}")
    folder.rmdir()
    assert backend.mark_as_retry("j-1", ValueError("not yet"), request=request()) is None
    with pytest.raises(FileNotFoundError):
        backend.mark_as_done("j-1", 1, request=request())


def test_an_error_of_any_text_is_stored(app: Any, engine: Engine) -> None:
    app.backend.mark_as_failure("j-1", ValueError("caf\udce9"), "in caf\udce9\x00", request=request())
    assert status(app, engine).error == "ValueError: caf\udce9"
    assert app.AsyncResult("j-1").traceback == "in caf\\udce9\\x00"


def test_that_a_job_runs_is_not_written_over_anything_that_happened_since(app: Any, engine: Engine) -> None:
    began = now()

    def start(at: float) -> None:
        context = SimpleNamespace(retries=0, submitted_at=began.isoformat())
        running = SimpleNamespace(id="j-1", name="render", hostname="host:1", time_start=at, _context=context)
        with database.writing(engine) as connection:
            started(connection, [running])

    start(began.timestamp())
    known = status(app, engine)
    assert (known.state, known.name, known.attempts, known.started_at) == (State.RUNNING, "render", 1, began)
    assert (known.submitted_at, known.finished_at) == (began, None)
    app.backend.store_result("j-1", {"progress": 0.5, "progress_text": "half"}, "PROGRESS", request=request())
    start(began.timestamp())
    known = status(app, engine)
    assert (known.state, known.progress, known.progress_text) == (State.RUNNING, 0.5, "half")
    assert (app.AsyncResult("j-1").state, app.AsyncResult("j-1").info["progress"]) == ("PROGRESS", 0.5)
    app.backend.mark_as_retry("j-1", ValueError("again"), request=request())
    start(began.timestamp())
    assert status(app, engine).state is State.WAITING_FOR_RETRY
    start(now().timestamp() + 1)  # the next try
    known = status(app, engine)
    assert (known.state, known.error, known.progress) == (State.RUNNING, None, None)
    app.backend.mark_as_done("j-1", 5, request=request())
    start(now().timestamp() + 2)
    assert status(app, engine).state is State.SUCCEEDED


def test_what_follows_a_job_that_failed_has_failed_without_having_run(app: Any, engine: Engine) -> None:
    chain = [{"task": "send", "options": {"task_id": "j-2"}}]
    app.backend.mark_as_failure("j-1", ValueError("boom"), request=request(chain=chain))
    assert status(app, engine, "j-1").state is State.IN_REVIEW
    known = status(app, engine, "j-2")
    assert (known.state, known.name, known.error, known.is_final) == (State.FAILED, "send", "ValueError: boom", False)
    assert app.AsyncResult("j-2").state == "FAILURE"


def test_a_group_is_kept_and_its_results_come_in_order(app: Any) -> None:
    for number in range(3):
        app.backend.mark_as_done(f"j-{number}", number, request=request(f"j-{number}"))
    group = app.GroupResult("g-1", [app.AsyncResult(f"j-{number}") for number in (2, 0, 1)])
    group.save()
    group.save()
    found = app.GroupResult.restore("g-1")
    assert found.get(timeout=0) == [2, 0, 1]
    found.delete()
    assert app.GroupResult.restore("g-1") is None


def test_whoever_waits_for_what_does_not_come_is_told_in_time(app: Any) -> None:
    asked: list[int] = []
    assert list(app.backend.get_many(["j-1"], on_interval=lambda: asked.append(1), max_iterations=3)) == []
    assert len(asked) == 2
    assert len(asked) > 1
    with pytest.raises(NotInTime):
        app.AsyncResult("j-1").get(timeout=0.1)
    with pytest.raises(NotInTime):
        app.GroupResult("g-1", [app.AsyncResult("j-1")]).get(timeout=0.1)


def test_results_are_forgotten_when_they_were_kept_for_long_enough(app: Any, engine: Engine) -> None:
    app.backend.mark_as_done("j-1", 1, request=request())
    app.backend.store_result("j-2", None, states.STARTED, request=request("j-2"))
    app.GroupResult("g-1", [app.AsyncResult("j-1")]).save()

    def left(at: timedelta) -> list[int]:
        with database.writing(engine) as connection:
            assert not forget(connection, now() + at, 100)
            tables = (job_results, job_groups)
            return [connection.execute(select(func.count()).select_from(table)).scalar_one() for table in tables]

    assert left(timedelta(hours=23)) == [2, 1]
    assert left(timedelta(hours=25)) == [1, 1]  # what runs may run for long
    assert left(timedelta(days=31)) == [0, 0]


def test_an_equal_job_is_submitted_once_whoever_submits_it_how(app: Any, engine: Engine) -> None:
    @app.task(name="once", unique_for=3600, shared=False)  # type: ignore[untyped-decorator]
    def once(text: str = "a", more: int = 1) -> None: ...

    first = once.delay("a")
    assert once.delay(text="a", more=1).id == once.apply_async(kwargs={"more": 1}).id == first.id
    other = once.delay("b")
    assert other.id != first.id
    with database.writing(engine) as connection:
        given = once.apply_async(("a",), task_id="as I say", outbox=connection)  # as a group, a chain and a retry do
        assert given.id == "as I say"
        with pytest.raises(ConfigurationError, match="without `outbox=`"):
            once.apply_async(("a",), outbox=connection)
        rows = connection.execute(select(outbox.c.message_id, outbox.c.type).order_by(outbox.c.id)).all()
        assert rows == [(first.id, "ackline.jobs"), (other.id, "ackline.jobs"), ("as I say", "ackline.jobs")]
        unique.release(connection, first.id)
    assert once.delay("a").id != first.id
    with database.writing(engine) as connection:
        connection.execute(unique_jobs.update().values(expires_at=now()))
    assert once.delay("b").id != other.id


# --- from a worker ----------------------------------------------------------------------------------------------------


@pytest.fixture
def configured(ackline_settings: Settings) -> Settings:
    return ackline_settings.model_copy(update={"app": (APP,)})


def test_results_get_from_a_worker_to_who_asks(configured: Settings, tmp_path: Path, client: Client) -> None:
    with role(configured, "jobs", "--concurrency", "2", **{FOLDER: str(tmp_path)}), asking(configured) as app:
        double = app.send_task("double", (21,))
        price = app.send_task("price")
        refused, slow, odd = (app.send_task(name) for name in ("refuse", "slow", "odd"))
        assert double.get(timeout=90) == 42
        assert str(price.get(timeout=90)["amount"]) == "9.50"
        assert (double.state, double.name, double.retries) == ("SUCCESS", "double", 0)
        for failed, error in ((refused, "Reject"), (slow, "TimeLimitExceeded"), (odd, "EncodeError")):
            until(partial(_has_failed, failed), what=f"{error} to be known")
            assert type(failed.result).__name__ == error
        until(lambda: client.ready(DEAD) == 3, what="those that failed to be on their way to review")
        assert app.send_task("forgotten").state == "PENDING"
        app.amqp.send_task_message.publisher.close()
        jobs_database.engine().dispose()


def _has_failed(result: Any) -> bool:
    return bool(result.state == "FAILURE")


def test_results_are_in_redis_where_its_url_is_given(configured: Settings, tmp_path: Path, redis_url: str) -> None:
    settings = configured.model_copy(update={"results_url": redis_url})
    variables = {FOLDER: str(tmp_path), "ACKLINE_RESULTS_URL": redis_url}
    with role(settings, "jobs", "--concurrency", "2", **variables), asking(settings) as app:
        double, broken = app.send_task("double", (21,)), app.send_task("break", ("never",))
        tell = app.send_task("tell", ("gate",))
        assert double.get(timeout=90) == 42
        with pytest.raises(ValueError, match="it is broken"):
            broken.get(timeout=90)
        until(lambda: tell.state == "PROGRESS", what="it to tell how far it is")
        with database.opened(settings.database) as engine:
            assert status(app, engine, double.id).result == 42
            known = status(app, engine, tell.id)
            assert (known.state, known.progress, known.name) == (State.RUNNING, 0.4, "tell")
            with database.reading(engine) as connection:
                assert connection.execute(select(func.count()).select_from(job_results)).scalar_one() == 0
        (tmp_path / "gate").touch()
        assert tell.get(timeout=90) == "told"
        app.amqp.send_task_message.publisher.close()
        app.backend.client.close()


def test_a_job_whose_result_cannot_be_stored_is_in_review(
    configured: Settings, tmp_path: Path, client: Client, vhost: Vhost
) -> None:
    blocked = configured.model_copy(update={"database_url": f"sqlite:///{tmp_path / 'results.db'}"})
    database.upgrade(blocked.database)
    with role(blocked, "jobs", "--concurrency", "1", **{FOLDER: str(tmp_path)}), asking(blocked) as app:
        with database.opened(blocked.database) as engine, database.writing(engine):  # nobody else can write
            double = app.send_task("double", (1,))
            letter = until(lambda: client.take(DEAD), deadline=250, what="the dead letter")
        assert letter.properties.message_id == double.id
        assert letter.headers["ackline-reason"].startswith("it ran to its end, but its result cannot be stored")
        app.amqp.send_task_message.publisher.close()
        jobs_database.engine().dispose()


# --- on the command line ----------------------------------------------------------------------------------------------


def test_jobs_are_listed_run_and_asked_for_on_the_command_line(configured: Settings, tmp_path: Path) -> None:
    listed = run(configured, "jobs", "list")
    assert listed.returncode == 0, listed.stderr
    assert "(number: int, times: int = 1) -> int" in listed.stdout.replace("'", "")
    assert "celery." not in listed.stdout
    with role(configured, "jobs", "--concurrency", "1", **{FOLDER: str(tmp_path)}):
        submitted = run(configured, "jobs", "run", "double", "number=21", "times:=2")
        assert submitted.returncode == 0, submitted.stderr
        id_ = submitted.stdout.strip()

        def succeeded() -> str | None:
            asked = run(configured, "jobs", "status", id_)
            return asked.stdout if "state: succeeded" in asked.stdout else None

        told = until(succeeded, what="it to be over")
    assert f"id: {id_}\nname: double\n" in told
    assert "result: 84\n" in told
    for arguments, said in (
        (("run", "unheard-of"), "There is no job 'unheard-of'. There are: area, "),
        (
            ("run", "double", "number=x"),
            "These are not the arguments of double: number: Input should be a valid integer",
        ),
        (("run", "double", "21"), "'21' is no argument: write KEY=VALUE"),
        (("run", "double", "number:=]"), "is not JSON"),
        (("status", uuid7()), "Nothing is known of a job"),
    ):
        refused = run(configured, "jobs", *arguments)
        assert refused.returncode == 1
        assert said in refused.stderr
        assert "Traceback" not in refused.stderr
