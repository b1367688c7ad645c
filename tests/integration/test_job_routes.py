"""Jobs over HTTP: from the 202 to the result, asked for and watched, and what `AsyncResult` says meanwhile."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from ackline.consumers.jobs import database as jobs_database
from ackline.consumers.jobs.status import CELERY, State
from ackline.infra import database
from ackline.infra.names import JOBS, MESSAGES
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from ackline.infra.wire import now, uuid7
from tests.amqp import Client
from tests.asking import FOLDER, asking
from tests.broker import fresh_vhost, settings_for
from tests.doors import gateway, problem
from tests.review import Review
from tests.roles import role, run
from tests.waiting import until


@dataclass(frozen=True)
class Stack:
    """A gateway with the roles beside it, and a service that asks for results."""

    settings: Settings
    client: httpx.Client
    folder: Path
    app: Any

    def submit(
        self, name: str, query: str = "", headers: dict[str, str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Submit a job over HTTP; what the 202 says."""
        answer = self.client.post(f"/v1/jobs/{name}{query}", json=kwargs, headers=headers)
        assert answer.status_code == 202, answer.text
        accepted: dict[str, Any] = answer.json()
        assert accepted["name"] == name
        return accepted

    def status(self, accepted: dict[str, Any]) -> dict[str, Any]:
        """What its status_url answers."""
        answer = self.client.get(accepted["status_url"])
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        assert [found[name] for name in ("id", "name", "status_url")] == [
            accepted[name] for name in ("id", "name", "status_url")
        ]
        return found

    def reaches(self, accepted: dict[str, Any], state: State) -> dict[str, Any]:
        """The status as soon as the job is in *state*, in which `AsyncResult` agrees that it is."""

        def there() -> dict[str, Any] | None:
            found = self.status(accepted)
            return found if found["state"] == state else None

        found = until(there, what=f"{accepted['id']} to be {state!r}")
        told = self.app.AsyncResult(accepted["id"]).state
        assert told == ("PROGRESS" if found["progress"] is not None else CELERY[state])
        return found

    def make(self, file: str) -> None:
        (self.folder / file).touch()

    @contextmanager
    def review(self) -> Iterator[Review]:
        with database.opened(self.settings.database) as engine:
            yield Review(engine)

    def dead_letter(self, accepted: dict[str, Any]) -> int:
        """The number of its dead letter, as soon as it is there."""
        with self.review() as review:
            return until(
                lambda: next((row.id for row in review.page(limit=1000) if row.message_id == accepted["id"]), None),
                what="the dead letter",
            )

    def ackline(self, *arguments: str) -> str:
        """Run a command that succeeds; what it prints."""
        done = run(self.settings, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def stack(settings: Settings, folder: Path, *roles: str, **variables: str) -> Iterator[Stack]:
    """A gateway, and *roles* beside it."""
    configured = settings.model_copy(update={"app": ("tests.result_app",)})
    folder.mkdir(exist_ok=True)
    with ExitStack() as running:
        client = running.enter_context(gateway(configured, **variables))
        for name in roles:
            running.enter_context(role(configured, name, ACKLINE_JOB_CONCURRENCY="2", **{FOLDER: str(folder)}))
        app = running.enter_context(asking(configured))
        running.callback(lambda: jobs_database.engine().dispose())
        yield Stack(configured, client, folder, app)


@pytest.fixture(scope="module")
def shared(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for all tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("jobs")
    with fresh_vhost(broker) as vhost:
        settings = settings_for(vhost.amqp_url, vhost.management_url, folder / "data")
        with stack(settings, folder / "files", "jobs", "reviewer", "relay") as running:
            yield running


# --- a job's life -----------------------------------------------------------------------------------------------------


def test_right_after_the_202_a_status_is_waiting_though_nobody_runs_jobs(
    ackline_settings: Settings, tmp_path: Path
) -> None:
    with stack(ackline_settings, tmp_path / "files") as running:
        accepted = running.submit("double", number=1)
        assert (accepted["state"], accepted["repeated"]) == ("waiting", False)
        status = running.reaches(accepted, State.WAITING)
        assert datetime.fromisoformat(status["submitted_at"]) <= now()
        assert (status["is_final"], status["attempts"], status["started_at"]) == (False, 0, None)
        found = problem(running.client.get(f"/v1/jobs/{accepted['id']}"), 404)
        assert "ask with its status_url" in found["detail"]
        problem(running.client.get(accepted["status_url"].replace(accepted["id"], uuid7())), 403)
        problem(running.client.get(f"/v1/jobs/{uuid7()}/events"), 404)
        problem(running.client.delete(f"/v1/jobs/{uuid7()}"), 404)


def test_a_job_succeeds_and_its_result_is_there(shared: Stack) -> None:
    accepted = shared.submit("double", number="21")
    status = shared.reaches(accepted, State.SUCCEEDED)
    assert (status["result"], status["is_final"], status["attempts"], status["error"]) == (42, True, 1, None)
    times = [datetime.fromisoformat(status[name]) for name in ("submitted_at", "started_at", "finished_at")]
    assert times == sorted(times)
    assert shared.client.get(f"/v1/jobs/{accepted['id']}").json() == status  # without the signature, too
    assert shared.app.AsyncResult(accepted["id"]).get(timeout=0) == 42
    assert shared.reaches(shared.submit("price"), State.SUCCEEDED)["result"] == {"amount": "9.50", "text": "a\x00b ü"}
    assert shared.reaches(shared.submit("area", size={"width": 2, "height": 3}), State.SUCCEEDED)["result"] == 6


def test_a_job_that_was_submitted_in_python_has_a_status_too(shared: Stack) -> None:
    id_ = shared.app.send_task("double", (4,)).id
    until(lambda: shared.client.get(f"/v1/jobs/{id_}").status_code == 200, what="it to be known")
    status = until(
        lambda: (found := shared.client.get(f"/v1/jobs/{id_}").json())["result"] == 8 and found, what="its result"
    )
    assert (status["name"], status["state"]) == ("double", "succeeded")
    assert shared.client.get(status["status_url"]).json() == status
    assert datetime.fromisoformat(status["submitted_at"]) <= datetime.fromisoformat(status["started_at"])
    shared.app.amqp.send_task_message.publisher.close()


def test_what_a_job_tells_of_its_progress_is_shown_while_it_runs(shared: Stack) -> None:
    accepted = shared.submit("tell", file="told")
    status = until(lambda: (found := shared.status(accepted))["progress"] and found, what="its progress")
    assert (status["state"], status["progress"], status["progress_text"]) == ("running", 0.4, "4 of 10 rows")
    assert shared.app.AsyncResult(accepted["id"]).state == "PROGRESS"
    shared.make("told")
    status = shared.reaches(accepted, State.SUCCEEDED)
    assert (status["progress"], status["result"]) == (None, "told")


def test_that_a_job_runs_is_known_while_it_does(shared: Stack) -> None:
    accepted = shared.submit("wait", file="waited")
    status = shared.reaches(accepted, State.RUNNING)
    assert status["started_at"] is not None
    assert status["finished_at"] is None
    shared.make("waited")
    shared.reaches(accepted, State.SUCCEEDED)


def test_a_job_waits_for_a_retry(shared: Stack) -> None:
    status = shared.reaches(shared.submit("retry later"), State.WAITING_FOR_RETRY)
    assert "the shop is closed" in status["error"]
    assert (status["attempts"], status["is_final"], status["finished_at"]) == (1, False, None)


def test_a_job_is_tried_again_and_succeeds(shared: Stack) -> None:
    accepted = shared.submit("retry once", file="tried")

    def runs_again() -> bool:
        found = shared.status(accepted)
        return (found["state"], found["attempts"]) == (State.RUNNING, 2)

    until(runs_again, what="the second try to run")
    shared.make("tried")
    status = shared.reaches(accepted, State.SUCCEEDED)
    assert (status["attempts"], status["result"], status["error"]) == (2, "at the second", None)


def test_a_job_that_fails_is_in_review_and_succeeds_when_it_is_sent_again(shared: Stack) -> None:
    accepted = shared.submit("break", file="mended")
    number = shared.dead_letter(accepted)
    status = shared.reaches(accepted, State.IN_REVIEW)
    assert (status["error"], status["is_final"], status["attempts"]) == ("ValueError: it is broken", False, 1)
    assert status["finished_at"] is not None
    shared.make("mended")
    shared.ackline("dlq", "retry", str(number))
    status = shared.reaches(accepted, State.SUCCEEDED)
    assert (status["result"], status["error"], status["is_final"]) == ("mended", None, True)
    with shared.review() as review:
        until(lambda: review.get(number).state == "handled", what="the dead letter to be handled")
    assert shared.status(accepted)["result"] == "mended"


def test_a_job_that_a_person_discards_is_revoked_for_who_waits(shared: Stack) -> None:
    accepted = shared.submit("refuse")
    shared.reaches(accepted, State.IN_REVIEW)
    with shared.review() as review:
        review.discard(shared.dead_letter(accepted), "nobody wants it")
    status = shared.reaches(accepted, State.DISCARDED)
    assert status["is_final"]


def test_what_never_ran_is_in_review_for_async_result_too(shared: Stack) -> None:
    id_ = uuid7()
    with Client(shared.settings.broker) as client:
        headers = {"task": "unheard-of", "id": id_}
        client.publish(
            *(MESSAGES, JOBS, b"[[], {}, {}]"),
            headers=headers,
            message_id=id_,
            type="unheard-of",
            content_type="application/json",
        )
    status = until(
        lambda: (found := shared.client.get(f"/v1/jobs/{id_}")).status_code == 200 and found.json(), what="it"
    )
    assert (status["name"], status["state"]) == ("unheard-of", "in review")
    result = shared.app.AsyncResult(id_)
    assert result.state == "FAILURE"
    assert type(result.result).__name__ == "InReview"
    assert "no job is named 'unheard-of'" in str(result.result)


def test_a_job_that_keeps_no_result_is_accounted_for(shared: Stack) -> None:
    status = shared.reaches(shared.submit("forgotten"), State.SUCCEEDED)
    assert (status["result"], status["is_final"]) == (None, True)
    accepted = shared.submit("forgotten", "?track=false")
    assert accepted["status_url"] is None


def test_a_message_is_no_job(shared: Stack) -> None:
    id_ = shared.client.post("/v1/messages/noted", json={}).json()["id"]
    until(lambda: shared.client.get(f"/v1/messages/{id_}").status_code == 200, what="the message to be known")
    problem(shared.client.get(f"/v1/jobs/{id_}"), 404)
    problem(shared.client.delete(f"/v1/jobs/{id_}"), 404)


# --- scheduled --------------------------------------------------------------------------------------------------------


def test_a_job_for_later_is_scheduled_and_runs_when_it_is_due(shared: Stack) -> None:
    accepted = shared.submit("double", "?delay=2s", number=1)
    assert accepted["state"] == "accepted"
    status = shared.reaches(accepted, State.SUCCEEDED)
    assert datetime.fromisoformat(status["started_at"]) > datetime.fromisoformat(status["submitted_at"]) + timedelta(
        seconds=1.5
    )


def test_a_scheduled_job_can_be_cancelled(shared: Stack) -> None:
    accepted = shared.submit("double", "?delay=1h", number=1)
    status = shared.reaches(accepted, State.SCHEDULED)
    assert status["due_at"] is not None
    problem(shared.client.delete(accepted["status_url"].replace("signature=", "signature=x")), 403)
    cancelled = shared.client.delete(f"/v1/jobs/{accepted['id']}")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert shared.client.delete(accepted["status_url"]).json() == shared.reaches(accepted, State.CANCELLED)
    over = shared.submit("double", number=1)
    shared.reaches(over, State.SUCCEEDED)
    assert "is succeeded" in problem(shared.client.delete(over["status_url"]), 409)["detail"]


# --- once -------------------------------------------------------------------------------------------------------------


def test_the_same_key_gets_the_same_answer(shared: Stack) -> None:
    key = {"Idempotency-Key": uuid7()}
    first = shared.submit("double", headers=key, number=1)
    again = shared.client.post("/v1/jobs/double", json={"number": 1}, headers=key)
    assert again.json() == first
    assert again.headers["Idempotency-Replayed"] == "true"
    problem(shared.client.post("/v1/jobs/double", json={"number": 2}, headers=key), 422)
    problem(shared.client.post("/v1/jobs/tell", json={"file": "x"}, headers=key), 422)


def test_equal_jobs_at_once_are_one(shared: Stack) -> None:
    answers: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: answers.append(shared.submit("once", text="at once"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer["id"] for answer in answers}) == 1
    assert sorted(answer["repeated"] for answer in answers) == [False] + [True] * 7
    assert shared.reaches(answers[0], State.SUCCEEDED)["result"] == "at once"
    again = shared.submit("once", text="at once", more=1)
    assert (again["id"], again["repeated"], again["state"]) == (answers[0]["id"], True, "succeeded")
    assert not shared.submit("once", text="another")["repeated"]


def test_who_cancels_a_job_may_submit_an_equal_one(shared: Stack) -> None:
    accepted = shared.submit("once", "?delay=1h", text="later")
    assert shared.submit("once", "?delay=1h", text="later")["id"] == accepted["id"]
    assert shared.client.delete(f"/v1/jobs/{accepted['id']}").status_code == 200
    assert shared.submit("once", "?delay=1h", text="later")["id"] != accepted["id"]


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "number"),
        (b'{"number": "many"}', "number"),
        (b'{"number": 1, "other": 2}', "other"),
        (b"[1]", ""),
        (b"{", ""),
        (b"", ""),
    ],
)
def test_arguments_that_the_function_does_not_take_are_refused(shared: Stack, body: bytes, field: str) -> None:
    refused = shared.client.post("/v1/jobs/double", content=body, headers={"Content-Type": "application/json"})
    found = problem(refused, 422)
    assert [error["field"] for error in found["errors"]] == [field]


def test_what_is_no_job_or_no_option_is_refused(shared: Stack) -> None:
    for name in ("unheard-of", "celery.chord_unlock"):
        found = problem(shared.client.post(f"/v1/jobs/{name}", json={}), 404)
        assert found["detail"].startswith(f"There is no job {name!r}. There are: area, ")
    found = problem(shared.client.post("/v1/jobs/double?callback_url=http://a.example/", json={"number": 1}), 422)
    assert found["detail"].endswith("there are delay, deliver_at, track.")
    problem(shared.client.post("/v1/jobs/double", content=b"{}", headers={"Content-Type": "text/plain"}), 415)


def test_a_key_is_for_jobs_by_name_as_for_messages_by_type(ackline_settings: Settings, tmp_path: Path) -> None:
    with stack(ackline_settings, tmp_path / "files", "jobs") as running:
        some = running.ackline("keys", "create", "some", "--type", "dou*").split()[-1]
        every = running.ackline("keys", "create", "every").split()[-1]

        def as_(key: str) -> dict[str, str]:
            return {"Authorization": f"Bearer {key}"}

        def are_known() -> bool:
            asked = [{}, as_(every)]  # while it knows none, everybody may
            answers = [running.client.post("/v1/jobs/double", json={"number": 1}, headers=each) for each in asked]
            return [answer.status_code for answer in answers] == [401, 202]

        until(are_known, what="the keys to be known")
        accepted = running.submit("double", headers=as_(some), number=2)
        problem(running.client.post("/v1/jobs/price", json={}, headers=as_(some)), 403)
        problem(running.client.post("/v1/jobs/double", json={"number": 1}), 401)
        running.reaches(accepted, State.SUCCEEDED)
        other = running.submit("price", headers=as_(every))
        running.reaches(other, State.SUCCEEDED)
        bare = f"/v1/jobs/{other['id']}"
        problem(running.client.get(bare), 401)
        problem(running.client.get(bare, headers=as_(some)), 404)
        assert running.client.get(bare, headers=as_(every)).status_code == 200


# --- watched ----------------------------------------------------------------------------------------------------------


def test_the_events_tell_of_a_job_until_it_is_final(shared: Stack) -> None:
    accepted = shared.submit("tell", file="watched")
    seen: list[dict[str, Any]] = []
    last = ""
    path, _, query = accepted["status_url"].partition("?")
    with shared.client.stream("GET", f"{path}/events?{query}") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("id: "):
                last = line.removeprefix("id: ")
            if line.startswith("data: "):
                seen.append(json.loads(line.removeprefix("data: ")))
                if seen[-1]["progress"] is not None:
                    shared.make("watched")
    assert seen[-1] == shared.status(accepted)
    assert (seen[-1]["state"], seen[-1]["result"]) == ("succeeded", "told")
    assert [found["progress_text"] for found in seen if found["progress"] is not None] == ["4 of 10 rows"]
    over = shared.client.get(f"{path}/events?{query}", headers={"Last-Event-ID": last})
    assert over.status_code == 204


def test_a_gateway_of_an_application_without_jobs_has_no_such_routes(ackline_settings: Settings) -> None:
    with gateway(ackline_settings) as client:
        assert client.post("/v1/jobs/double", json={"number": 1}).status_code == 404
        assert not [path for path in client.get("/openapi.json").json()["paths"] if path.startswith("/v1/jobs")]
