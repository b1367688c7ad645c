"""What is decided about jobs without a broker."""

from __future__ import annotations

import json
import pickle
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celery import exceptions as celery_exceptions
from celery.exceptions import Reject as CeleryReject
from celery.worker import state
from celery.worker.consumer.events import Events
from kombu.exceptions import EncodeError

from ackline.consumers import Reject, RetryLater, RetryPolicy, fixed
from ackline.consumers.decision import InvalidBody, Park
from ackline.consumers.delivery import Delivery
from ackline.consumers.handling import HANDLED
from ackline.consumers.jobs import ending, job
from ackline.consumers.jobs.app import app, route
from ackline.consumers.jobs.consumer import Deliveries
from ackline.consumers.jobs.job import PARKED, Job, policy_of
from ackline.consumers.jobs.message import DELIVERIES, JobMessage
from ackline.consumers.jobs.queues import names
from ackline.consumers.jobs.request import active
from ackline.infra import up, wire
from ackline.infra.names import DEAD, JOBS, MESSAGES, RETURN, tier_within
from ackline.infra.properties import Properties
from ackline.infra.settings import Settings

BODY = b"[[1], {}, {}]"


def _message(
    headers: dict[str, Any] | None = None, exchange: str = MESSAGES, redelivered: bool = False, body: bytes = BODY
) -> JobMessage:
    told = {"task": "add", "id": "id-1", "retries": 7} | (headers or {})
    properties = Properties(message_id="id-1", content_type="application/json", headers=told)
    delivery = Delivery(exchange, JOBS, properties, body, redelivered)
    return JobMessage(delivery, JOBS, "host:1", lambda message, settlement: None)


@pytest.mark.parametrize(
    ("delay", "tier"),
    [(0.1, "1s"), (1, "1s"), (4.4, "1s"), (4.5, "5s"), (5.2, "5s"), (59, "15s"), (3600, "1h"), (86400, "1h")],
)
def test_what_is_not_due_waits_in_the_longest_tier_that_ends_in_time(delay: float, tier: str) -> None:
    assert tier_within(delay) == f"ackline.retry.{tier}"


@pytest.mark.parametrize(
    ("error", "attempt", "policy", "reason"),
    [
        (ValueError("boom"), 1, None, "ValueError: boom"),
        (ValueError(), 1, None, "ValueError"),
        (ValueError("boom"), 3, None, "failed after 3 attempts: ValueError: boom"),
        (ValueError("boom"), 3, fixed(attempts=3), "failed after 3 attempts: ValueError: boom"),
        (KeyError("a"), 1, fixed(attempts=3, retry_on=ValueError), "not retried: KeyError: 'a'"),
        (Reject("the customer is gone"), 1, None, "the customer is gone"),
        (CeleryReject("gone"), 1, None, "rejected: gone"),
        (TimeLimitExceeded(5), 1, None, "it ran for longer than its time limit of 5 s, and was killed"),
        (SoftTimeLimitExceeded(), 1, None, "it ran for longer than its soft time limit"),
        (WorkerLostError("signal 9"), 1, fixed(attempts=3), "its process died while it ran: signal 9"),
        (EncodeError("no JSON"), 1, None, "it ran to its end, but its result cannot be stored: no JSON"),
    ],
)
def test_the_reason_is_one_that_a_person_understands(
    error: BaseException, attempt: int, policy: RetryPolicy | None, reason: str
) -> None:
    assert ending.reason_of(error, attempt, policy) == reason


def test_headers_are_believed_only_on_what_ackline_sent() -> None:
    forged = {wire.ATTEMPT: 3, wire.REDRIVE: "r-1", wire.HISTORY: "[]", DELIVERIES: 9, wire.TRACK: True, "customer": 1}
    new, back = _message(forged), _message(forged, RETURN)
    assert {"customer": 1, wire.TRACK: True}.items() <= new.headers.items()
    assert not {wire.ATTEMPT, wire.REDRIVE, wire.HISTORY, DELIVERIES} & set(new.headers)
    assert (new.headers["retries"], new.trail.redrive, new.came_before) == (0, None, False)
    assert (back.headers["retries"], back.trail.redrive, back.came_before) == (2, "r-1", True)


def test_a_redrive_begins_anew() -> None:
    times = {"eta": "2026-01-01T00:00:00+00:00", "expires": "2026-01-01T00:00:00+00:00"}
    headers = _message(times | {wire.REDRIVE: "r-1"}, RETURN).headers
    assert {"eta": None, "expires": None, "retries": 0}.items() <= headers.items()
    assert _message(times, RETURN).headers["expires"] == times["expires"], "a retry goes on"


def test_only_tracked_and_redriven_jobs_are_reported() -> None:
    assert ending.handled(_message()) is HANDLED
    tracked, redriven = (
        ending.handled(_message({wire.TRACK: True})),
        ending.handled(_message({wire.REDRIVE: "r-1"}, RETURN)),
    )
    for settlement in (tracked, redriven):
        assert settlement.report is not None
        assert json.loads(settlement.report.event)["event"] == "handled"


def test_a_job_that_ends_its_worker_over_and_over_goes_to_review() -> None:
    waits = ending.awaiting_another(_message({"x-delivery-count": 2, DELIVERIES: 4}, RETURN, redelivered=True))
    (outgoing,) = waits.outgoing
    assert outgoing.exchange == "ackline.retry.15s"
    assert outgoing.properties.headers.number(DELIVERIES) == 6
    (asked,) = ending.awaiting_another(_message({DELIVERIES: 6}, RETURN)).outgoing
    assert asked.properties.headers.number(DELIVERIES) == 6, "it may ask for as long as another worker runs it"
    ends = ending.awaiting_another(_message({"x-delivery-count": 2, DELIVERIES: 20}, RETURN, redelivered=True))
    (outgoing,) = ends.outgoing
    assert outgoing.exchange == DEAD
    assert outgoing.properties.headers.text(wire.REASON) == "its worker died or lost it 22 times"


def test_a_job_that_comes_back_as_if_it_had_not_been_tried_says_so_to_the_other_process() -> None:
    said = celery_exceptions.Retry(PARKED, exc=Park("1s"), when=1.0, sig=object())
    assert pickle.loads(pickle.dumps(said)).message == PARKED


def test_a_try_is_not_taken_for_another_of_the_same_id() -> None:
    mine = _message({"submitted_at": "a"})
    assert mine.try_ == _message({"submitted_at": "a", "x-delivery-count": 1}, redelivered=True).try_
    parked = _message({"submitted_at": "a", DELIVERIES: 2}, RETURN)
    assert mine.try_ == parked.try_
    others = [
        _message({"submitted_at": "b"}),
        _message({"submitted_at": "a", wire.ATTEMPT: 2}, RETURN),
        _message({"submitted_at": "a", wire.REDRIVE: "r-1"}, RETURN),
        _message({"submitted_at": "a"}, body=b"[[2], {}, {}]"),
    ]
    assert len({mine.try_, *(other.try_ for other in others)}) == 5


def test_what_runs_is_listed_while_another_thread_begins_more() -> None:
    class Running:
        acknowledged = False

    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            running = {Running() for _ in range(20)}
            state.active_requests.update(running)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    other = threading.Thread(target=run)
    other.start()
    try:
        for _ in range(3000):
            active()
    finally:
        over.set()
        other.join()
        sys.setswitchinterval(interval)
        state.active_requests.clear()


@pytest.mark.parametrize("name", ["task", "id"])
def test_a_message_that_is_no_job_says_what_it_lacks(name: str) -> None:
    with pytest.raises(InvalidBody, match=f"its headers lack '{name}'"):
        _message({name: 3}).check()


def test_a_job_without_a_policy_is_retried_only_when_it_asks_for_it() -> None:
    policy = policy_of(app.Task())
    assert policy.attempts == 4, "Celery's max_retries is 3"
    assert not policy.retries(ValueError())
    assert policy.retries(RetryLater("1s"))


def test_a_worker_takes_no_job_before_it_can_announce_what_it_does() -> None:
    """Else Flower would see nothing of it, in some two of five workers: Celery orders steps as their hashes fall."""
    assert Events in Deliveries.requires


def test_a_job_names_its_queue(own_registry: None) -> None:
    @job(name="test-video", queue="video", soft_time_limit="10s", time_limit="1m")
    def encode() -> None: ...

    assert (encode.soft_time_limit, encode.time_limit) == (10.0, 60.0)
    assert route("test-video", (), {}, {}, encode) == {"queue": "video"}
    assert "video" in names(app)


def test_up_runs_jobs_and_their_schedules_where_the_application_has_jobs(tmp_path: Any) -> None:
    settings = Settings(amqp_url="amqp://guest:guest@127.0.0.1:1/", data_dir=tmp_path, app=("tests.job_app",))
    assert {"jobs", "beat"} <= {role.name for role in up._roles(settings, own_sink=False, with_flower=False)}


def test_what_is_told_within_a_second_of_the_last_is_left_out_however_long_that_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, told = [100.0], list[float]()

    def update_state(**given: Any) -> None:
        clock[0] += 5  # the database is slow
        told.append(given["meta"]["progress"])

    telling = Job()
    telling.bind(app)
    telling.update_state = update_state
    monkeypatch.setattr(sys.modules[Job.__module__], "time", SimpleNamespace(monotonic=lambda: clock[0]))
    telling.push_request(id="id-1", called_directly=False)
    try:
        telling.progress(0.1)
        telling.progress(0.2)
        clock[0] += 1
        telling.progress(0.3)
    finally:
        telling.pop_request()
    assert told == [0.1, 0.3]
