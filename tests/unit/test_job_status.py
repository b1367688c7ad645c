"""The state of a job, from what several tables tell of it, and what `AsyncResult` says then."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import states

from ackline.consumers.jobs.results import InReview, meta
from ackline.consumers.jobs.status import CELERY, JobStatus, State, Stored, combined, from_meta, made_at, said, waiting
from ackline.infra.table import TOO_DEEP
from ackline.infra.wire import uuid7
from ackline.producer.status import Delivery
from ackline.producer.status import State as Message

AT = datetime(2026, 1, 1, tzinfo=UTC)
LATER = AT + timedelta(minutes=1)
BOOM = {"exc_type": "ValueError", "exc_message": ["boom"], "exc_module": "builtins"}


def known(state: str, result: Any = None, at: datetime = AT, worker: str | None = "host:1") -> Stored:
    return Stored("j-1", "render", state, 1, result, worker=worker, changed_at=at)


def delivery(state: Message, error: str | None = None) -> Delivery:
    return Delivery(consumer="ackline.jobs", state=state, attempts=3, changed_at=AT + timedelta(seconds=1), error=error)


@pytest.mark.parametrize(
    ("stored", "told", "state", "celery"),
    [
        (known(states.STARTED), None, State.RUNNING, states.STARTED),
        (known("PROGRESS", {"progress": 0.5}), None, State.RUNNING, "PROGRESS"),
        (known("UPLOADING"), None, State.RUNNING, "UPLOADING"),
        (known(states.RETRY, BOOM), None, State.WAITING_FOR_RETRY, states.RETRY),
        (known(states.SUCCESS, 5), None, State.SUCCEEDED, states.SUCCESS),
        (known(states.FAILURE, BOOM), None, State.IN_REVIEW, states.FAILURE),
        (known(states.FAILURE, BOOM, worker=None), None, State.FAILED, states.FAILURE),
        (known(states.REVOKED), None, State.DISCARDED, states.REVOKED),
        # Of which the backend knows nothing: they never ran, or keep no results.
        (None, delivery(Message.IN_REVIEW, "no job is named so"), State.IN_REVIEW, states.FAILURE),
        (None, delivery(Message.BEING_HANDLED), State.RUNNING, states.STARTED),
        (None, delivery(Message.WAITING_FOR_RETRY), State.WAITING_FOR_RETRY, states.RETRY),
        (None, delivery(Message.HANDLED), State.SUCCEEDED, states.SUCCESS),
        # Of which the reviewer knows more.
        (known(states.STARTED), delivery(Message.IN_REVIEW), State.IN_REVIEW, states.FAILURE),
        (known(states.FAILURE, BOOM), delivery(Message.DISCARDED), State.DISCARDED, states.REVOKED),
        (known(states.FAILURE, BOOM), delivery(Message.REDRIVING), State.REDRIVING, states.RETRY),
        (known(states.STARTED, at=LATER), delivery(Message.REDRIVING), State.RUNNING, states.STARTED),
        (known(states.RETRY, BOOM, LATER), delivery(Message.REDRIVING), State.WAITING_FOR_RETRY, states.RETRY),
        (known(states.FAILURE, BOOM, LATER), delivery(Message.REDRIVING), State.IN_REVIEW, states.FAILURE),
        (known(states.SUCCESS, 5, LATER), delivery(Message.REDRIVING), State.SUCCEEDED, states.SUCCESS),
        (known(states.SUCCESS, 5), delivery(Message.IN_REVIEW), State.SUCCEEDED, states.SUCCESS),
        (known(states.FAILURE, BOOM), delivery(Message.HANDLED), State.SUCCEEDED, states.SUCCESS),
        # What a worker tells of a tracked job arrives after what its process wrote.
        (known(states.RETRY, BOOM, LATER), delivery(Message.BEING_HANDLED), State.WAITING_FOR_RETRY, states.RETRY),
    ],
)
def test_a_job_has_one_state_and_async_result_says_the_same(
    stored: Stored | None, told: Delivery | None, state: State, celery: str
) -> None:
    status = combined("j-1", "render", stored, told)
    assert (status.id, status.name, status.state) == ("j-1", "render", state)
    assert status.is_final == (state in (State.SUCCEEDED, State.DISCARDED))
    assert meta("j-1", stored, status)["status"] == celery


def test_every_state_has_one_of_celerys() -> None:
    assert set(CELERY) == set(State)
    assert meta("j-1", None, None)["status"] == states.PENDING


@pytest.mark.parametrize("state", [State.SCHEDULED, State.ACCEPTED, State.CANCELLED, State.FAILED])
def test_what_is_in_the_outbox_has_a_state_for_async_result_too(state: State) -> None:
    status = JobStatus(id="j-1", name="render", state=state, is_final=False)
    assert meta("j-1", None, status)["status"] == CELERY[state]


def test_what_nobody_stored_as_an_exception_is_told_as_one() -> None:
    status = combined("j-1", "render", None, delivery(Message.IN_REVIEW, "no job is named 'render'"))
    told = meta("j-1", None, status)["result"]
    assert told == {
        "exc_type": "InReview",
        "exc_module": InReview.__module__,
        "exc_message": ["no job is named 'render'"],
    }


def test_a_result_is_shown_when_it_succeeded_and_an_error_when_it_did_not() -> None:
    assert combined("j-1", None, known(states.SUCCESS, {"a": 1}), None).result == {"a": 1}
    failed = combined("j-1", None, known(states.FAILURE, BOOM), None)
    assert (failed.result, failed.error) == (None, "ValueError: boom")
    assert combined("j-1", None, known(states.FAILURE, BOOM), delivery(Message.IN_REVIEW, "why")).error == "why"
    assert combined("j-1", None, known(states.SUCCESS, 5), delivery(Message.IN_REVIEW, "why")).error is None


@pytest.mark.parametrize(
    ("told", "progress", "text"),
    [
        ({"progress": 0.4, "progress_text": "4 of 10"}, 0.4, "4 of 10"),
        ({"progress": 7}, 1.0, None),
        ({"current": 1, "total": 4, "status": "Reticulating"}, 0.25, "Reticulating"),
        ({"current": 1, "total": 0}, None, None),
        ({"current": "one", "total": 4}, None, None),
        ({"progress": True}, None, None),
        (["whatever"], None, None),
        (None, None, None),
    ],
)
def test_progress_is_what_the_job_told_in_any_of_the_usual_ways(
    told: Any, progress: float | None, text: str | None
) -> None:
    status = combined("j-1", None, known("PROGRESS", told), None)
    assert (status.progress, status.progress_text) == (progress, text)


def test_a_result_of_any_kind_can_be_shown_as_json() -> None:
    odd = {"at": AT, "raw": b"\xff", "much": float("inf")}
    shown = combined("j-1", None, known(states.SUCCESS, odd), None)
    assert '"result":{"at":"2026-01-01T00:00:00Z","raw":"_w==","much":null}' in shown.model_dump_json()


def test_what_no_json_holds_is_shown_all_the_same() -> None:
    def shown(result: Any) -> Any:
        status = JobStatus(id="j", name="n", state=State.SUCCEEDED, is_final=True, result=result, error="\ud800")
        told = json.loads(status.model_dump_json())
        assert told["error"] == "\\ud800"
        return told["result"]

    assert shown({"caf\udce9": ["\ud800", float("nan")]}) == {"caf\\udce9": ["\\ud800", None]}
    deep: Any = "x"
    for _ in range(900):
        deep = [deep]
    assert TOO_DEEP in str(shown(deep))


def test_what_another_backend_tells_is_the_same() -> None:
    told = {"status": states.FAILURE, "result": ValueError("boom"), "worker": "host:1", "name": "render", "retries": 2}
    found = from_meta("j-1", told | {"date_done": "2026-01-01T00:00:00+00:00"})
    assert found is not None
    status = combined("j-1", None, found, None)
    assert (status.state, status.name, status.attempts, status.error) == (
        State.IN_REVIEW,
        "render",
        3,
        "ValueError: boom",
    )
    assert status.finished_at == AT
    assert from_meta("j-1", {"status": states.PENDING, "result": None}) is None


def test_an_error_is_told_in_words() -> None:
    assert said({"exc_type": "Odd", "exc_message": []}) == "Odd"
    assert said({"exc_type": "Odd", "exc_message": "as text"}) == "Odd: as text"
    assert said(ValueError()) == "ValueError"
    assert said(None) is None


def test_the_time_of_an_id_that_tells_it() -> None:
    made = made_at(uuid7())
    assert made is not None
    assert abs(made - datetime.now(UTC)) < timedelta(minutes=10)
    assert made_at("5f7d3a52-6b1c-4d9e-8f00-0123456789ab") is made_at("no id") is None
    assert waiting("j-1", "render").state is State.WAITING
