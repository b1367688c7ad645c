"""Jobs, from `delay` to their end, run by `ackline jobs` as a process."""

from __future__ import annotations

import json
import signal
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import CeleryError
from kombu.compression import compress
from kombu.exceptions import EncodeError

from ackline.infra import wire
from ackline.infra.names import DEAD, JOBS, MESSAGES, OUTCOMES, RETURN, UNROUTED, job_queue
from ackline.infra.settings import Settings
from ackline.infra.topology import DELIVERY_LIMIT, declare
from ackline.producer.errors import Unroutable
from tests.amqp import Client, Taken
from tests.broker import Vhost
from tests.connections import close, connections
from tests.jobs import Sending, dead
from tests.waiting import until

#: A message that is a job, by another client.
_TASK = {"task": "add", "id": "id-1"}
_BODY = b"[[1, 2], {}, {}]"
_JSON = {"content_type": "application/json", "content_encoding": "utf-8"}


@pytest.fixture
def sending(ackline_settings: Settings, tmp_path: Path) -> Iterator[Sending]:
    service = Sending(ackline_settings, tmp_path / "notes")
    yield service
    service.close()


def _history(letter: Taken) -> list[tuple[int, str, str]]:
    return [(entry["attempt"], entry["error"], entry["message"]) for entry in json.loads(letter.headers[wire.HISTORY])]


def _nothing_is_left(client: Client) -> None:
    until(lambda: client.ready(JOBS) == client.ready(DEAD) == 0, what="the queues to be empty")


def test_jobs_run_and_are_acked(sending: Sending, client: Client) -> None:
    with sending.worker() as worker:
        sending.send("add", 1, 2)
        sending.send("aadd", 3, 4)
        sending.send("shared", "text")
        sending.send("pass-on", "abc")
        sending.send("encode", "film")
        sending.wait_for("add 1 2", "aadd 3 4", "shared text", "pass-on abc", "add 1 3", "encode film")
        assert worker.stop() == 0
    for queue in (JOBS, job_queue("video"), DEAD):
        assert client.ready(queue) == 0


# --- to review --------------------------------------------------------------------------------------------------------


def test_a_job_that_raises_goes_to_review_with_its_traceback(sending: Sending, client: Client) -> None:
    with sending.worker():
        id_ = sending.send("fail", "boom")
        letter = dead(client)
        _nothing_is_left(client)
    assert letter.properties.message_id == id_
    assert letter.properties.type == "fail"
    assert json.loads(letter.body)[0] == ["boom"]
    assert letter.headers[wire.CONSUMER] == JOBS
    assert letter.headers[wire.REASON] == "ValueError: boom"
    assert "raise ValueError(text)" in letter.headers[wire.TRACEBACK]
    assert _history(letter) == [(1, "ValueError", "boom")]
    assert sending.seen == ["fail boom"]


def test_a_job_is_retried_as_its_policy_says_and_then_reviewed(sending: Sending, client: Client) -> None:
    with sending.worker():
        sending.send("fail-often", "boom")
        letter = dead(client)
        _nothing_is_left(client)
    assert sending.seen == ["fail-often boom 0", "fail-often boom 1", "fail-often boom 2"]
    assert letter.headers[wire.REASON] == "failed after 3 attempts: ValueError: boom"
    assert letter.headers["retries"] == 2
    assert _history(letter) == [(attempt, "ValueError", "boom") for attempt in (1, 2, 3)]
    assert letter.headers[wire.ORIGINAL]["exchange"] == MESSAGES


def test_a_job_that_succeeds_in_the_end_is_acked(sending: Sending, client: Client) -> None:
    with sending.worker():
        sending.send("fail-often", "twice")
        sending.send("fail-often", "never again")
        letter = dead(client)
        assert letter.headers[wire.REASON] == "not retried: KeyError: 'never again'"
        sending.wait_for(*[f"fail-often twice {n}" for n in range(3)], "fail-often never again 0")
        _nothing_is_left(client)


def test_what_asks_to_be_tried_again_is_bounded(sending: Sending, client: Client) -> None:
    asking: dict[str, tuple[tuple[Any, ...], int, str]] = {
        "retry-itself": ((), 3, "ValueError: not yet"),
        "auto": ((), 2, "ValueError: by itself"),
        "later": ((0.2,), 2, "RetryLater: the other side is busy"),
        "retry-by-hand": ((), 2, "RetryLater: not yet"),
        "retry-by-hand-of-a-class": ((), 2, "RetryLater: not yet"),
    }
    with sending.worker():
        for name, (args, _, _) in asking.items():
            sending.send(name, *args)
        # As it comes back after having asked as often as the broker would deliver it, but for once.
        headers = {"task": "requeue", "id": "r-1", wire.ATTEMPT: DELIVERY_LIMIT}
        client.publish(RETURN, JOBS, b"[[], {}, {}]", headers=headers, message_id="r-1", **_JSON)
        letters = {letter.headers["task"]: letter for letter in [dead(client) for _ in range(6)]}
        _nothing_is_left(client)
    runs_of = Counter(line.split()[0] for line in sending.seen)
    for name, (_, runs, error) in asking.items():
        assert runs_of[name] == runs
        assert letters[name].headers[wire.REASON] == f"failed after {runs} attempts: {error}"
        assert [f"{kind}: {said}" for _, kind, said in _history(letters[name])] == [error] * runs
    assert runs_of["requeue"] == 2
    assert letters["requeue"].headers[wire.REASON] == f"asked to be delivered again {DELIVERY_LIMIT} times"
    assert [attempt for attempt, _, _ in _history(letters["requeue"])] == [DELIVERY_LIMIT, DELIVERY_LIMIT + 1]


#: A job, its arguments, and why it is in review then; a part of the traceback that is there too.
ENDS = [
    ("reject", ("ours",), "the customer is gone", "raise Reject("),
    ("reject", ("celery's",), "rejected: the customer is gone", "raise celery_exceptions.Reject("),
    ("soft", (), "it ran for longer than its soft time limit", "time.sleep(600)"),
    ("hard", (), "it ran for longer than its time limit of 1.0 s, and was killed", ""),
    ("die", (), "its process died while it ran: Worker exited prematurely: signal 9 (SIGKILL)", ""),
]


def test_what_ends_a_job_for_good_goes_to_review_after_one_run(sending: Sending, client: Client) -> None:
    with sending.worker():
        ids = [sending.send(name, *args) for name, args, _, _ in ENDS]
        letters = {letter.properties.message_id: letter for letter in [dead(client) for _ in ENDS]}
        for id_, (_, _, reason, traceback) in zip(ids, ENDS, strict=True):
            assert letters[id_].headers[wire.REASON].startswith(reason)
            assert traceback in letters[id_].headers[wire.TRACEBACK]
        sending.send("add", 1, 1)  # the worker goes on
        sending.wait_for(*(" ".join((name, *args)) for name, args, _, _ in ENDS), "add 1 1")
        _nothing_is_left(client)


def test_a_result_that_cannot_be_stored_goes_to_review(sending: Sending, client: Client, tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    with sending.worker(ACKLINE_RESULTS_URL=f"file://{results}"):
        sending.send("unserialisable")
        letter = dead(client)
        _nothing_is_left(client)
    assert letter.headers[wire.REASON].startswith("it ran to its end, but its result cannot be stored:")
    assert sending.seen == ["unserialisable"]


_GZIPPED = _TASK | {"compression": "application/x-gzip"}


def _bomb() -> bytes:
    """200 MiB, in a thousandth of that: a stream that repeats itself, which is quickly written."""
    compressor = zlib.compressobj()
    first, again = (compressor.compress(bytes(1 << 20)) + compressor.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + again * 199


_DEEP = b"[[" + b"[" * 900 + b"]" * 900 + b", 2], {}, {}]"

#: A body, properties beside those of a job, and why that is none.
NO_JOBS: list[tuple[bytes, dict[str, Any], str]] = [
    (b"\xff[", {}, "its body is not JSON"),
    (b"[[1, 2], {", {}, "its body is not JSON"),
    (b'[[{"__type__": "uuid", "__value__": "x"}, 2], {}, {}]', {}, "its body is not JSON"),
    (b'{"a": 1}', {}, "its body is not [args, kwargs, options]"),
    (b"[[1, 2], 3, {}]", {}, "its body is not [args, kwargs, options]"),
    (b'[[1, 2], {}, {"retries": -9}]', {}, "its body has options that are none of Celery's: ['retries']"),
    (_DEEP, {}, "it cannot be begun: RecursionError"),
    (_BODY, {"headers": {}}, "it is no job: its headers lack 'task'"),
    (_BODY, {"headers": {"task": "add"}}, "it is no job: its headers lack 'id'"),
    (_BODY, {"headers": _TASK | {"id": ""}}, "its header 'id' is none of Celery's"),
    (_BODY, {"headers": _TASK | {"id": "i" * 256}}, "its header 'id' is none of Celery's"),
    (_BODY, {"headers": _TASK | {"task": "unheard-of"}}, "no job is named 'unheard-of'"),
    (_BODY, {"headers": _TASK | {"eta": "soon"}}, "its eta 'soon' is no time"),
    (_BODY, {"headers": _TASK | {"expires": ""}}, "its expires '' is no time"),
    (_BODY, {"headers": _TASK | {"expires": "2020-01-01T00:00:00+00:00"}}, "it expired at 2020-01-01"),
    (_BODY, {"headers": _TASK | {"timelimit": ["x", "y"]}}, "its header 'timelimit' is none of Celery's"),
    (_BODY, {"headers": _TASK | {"timelimit": [None, -1]}}, "its header 'timelimit' is none of Celery's"),
    (_BODY, {"headers": _TASK | {"timelimit": 5}}, "its header 'timelimit' is none of Celery's"),
    (_BODY, {"headers": _TASK | {"stamped_headers": 5}}, "its header 'stamped_headers' is none of Celery's"),
    (_BODY, {"headers": _TASK | {"shadow": {"a": 1}}}, "its header 'shadow' is none of Celery's"),
    (_BODY, {"headers": _TASK | {"compression": "unheard-of"}}, "its body cannot be unpacked: 'unheard-of' is none"),
    (_BODY, {"headers": _TASK | {"compression": ["gzip"]}}, "its body cannot be unpacked: ['gzip'] is none of"),
    (_BODY, {"headers": _TASK | {"compression": "gzip"}}, "its body cannot be unpacked: it is no gzip"),
    (_BODY, {"headers": _TASK | {"compression": "bzip2"}}, "its body cannot be unpacked: it is no bzip2"),
    (_BODY, {"headers": _TASK | {"compression": "xz"}}, "its body cannot be unpacked: it is no xz"),
    (zlib.compress(_BODY)[:-1], {"headers": _GZIPPED}, "its body cannot be unpacked: it is cut off"),
    (_bomb(), {"headers": _GZIPPED}, "its body cannot be unpacked: there is more than 128 MiB in it"),
    (b"cos\nsystem\n", {"content_type": "application/x-python-serialize"}, "its body is application/x-py"),
]


def test_what_is_no_job_goes_to_review_with_a_reason_and_the_worker_goes_on(sending: Sending, client: Client) -> None:
    with sending.worker(concurrency=1) as worker:
        for number, (body, properties, _) in enumerate(NO_JOBS):
            client.publish(MESSAGES, JOBS, body, **_JSON | {"headers": _TASK, "message_id": str(number)} | properties)
        letters = [dead(client) for _ in NO_JOBS]
        for letter in letters:
            body, _, reason = NO_JOBS[int(letter.properties.message_id or "")]
            assert letter.headers[wire.REASON].startswith(reason)
            assert letter.body == body
        assert len({letter.properties.message_id for letter in letters}) == len(NO_JOBS)
        sending.send("add", 1, 1)
        sending.wait_for("add 1 1")
        _nothing_is_left(client)
        assert worker.stop() == 0


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "lzma"])
def test_a_job_that_another_client_compressed_is_run(sending: Sending, client: Client, compression: str) -> None:
    body, said = compress(_BODY, compression)
    with sending.worker(concurrency=1):
        client.publish(MESSAGES, JOBS, body, headers=_TASK | {"compression": said}, **_JSON)
        sending.wait_for("add 1 2")
        _nothing_is_left(client)


def test_a_header_that_kills_other_clients_harms_nobody(sending: Sending, client: Client) -> None:
    with sending.worker():
        client.publish(MESSAGES, JOBS, _BODY, headers=_TASK, timestamp=10**13, **_JSON)
        sending.wait_for("add 1 2")
        _nothing_is_left(client)


# --- publishing -------------------------------------------------------------------------------------------------------


def test_a_job_that_cannot_be_routed_raises_or_is_kept(sending: Sending, vhost: Vhost, client: Client) -> None:
    with pytest.raises(Unroutable):
        sending.send("add", 1, 2)  # there is no topology yet
    declare(vhost.amqp_url)
    sending.send("add", 1, 2)
    kept = client.take(UNROUTED)
    assert kept is not None
    assert (kept.routing_key, kept.properties.type) == (JOBS, "add")
    with pytest.raises(CeleryError, match="misspelt"):
        sending.send("add", 1, 2, queue="misspelt")
    with pytest.raises(EncodeError):
        sending.send("add", object())


def test_a_job_is_published_for_any_client_to_read(sending: Sending, vhost: Vhost, client: Client) -> None:
    declare(vhost.amqp_url)
    sending.send("add", 1, 2, headers={"customer": "A-1", "ackline-attempt": 7, "ackline-redrive": "forged"})
    kept = client.take(UNROUTED)
    assert kept is not None
    properties = kept.properties
    assert (properties.content_type, properties.delivery_mode, properties.app_id) == ("application/json", 2, "ackline")
    assert properties.message_id == properties.correlation_id == kept.headers["id"]
    assert json.loads(kept.body) == [[1, 2], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    assert kept.headers["customer"] == "A-1"
    assert not [name for name in kept.headers if name.startswith("ackline-")]


# --- time -------------------------------------------------------------------------------------------------------------


def test_a_countdown_waits_in_the_broker_whatever_becomes_of_the_worker(sending: Sending, client: Client) -> None:
    with sending.worker() as worker:
        due = time.time() + 14  # twice in that tier, and then in shorter ones: time enough to see it there
        sending.send("at", countdown=14)
        until(lambda: client.ready(JOBS) == 0 and client.ready("ackline.retry.5s") == 1, what="it to be parked")
        worker.kill()
        worker.start()
        until(lambda: sending.seen, what="it to run")
        _nothing_is_left(client)
    # Twice when the worker was killed after it had parked the job, and before its ack of what it parked.
    assert len(sending.seen) in (1, 2)
    assert all(float(seen.removeprefix("at ")) >= due for seen in sending.seen)


def test_a_job_for_a_distant_time_is_a_row_that_can_be_cancelled(
    sending: Sending, ackline_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ackline.infra import database
    from ackline.infra.settings import settings
    from ackline.producer import outbox

    monkeypatch.setenv("ACKLINE_DATABASE_URL", ackline_settings.database)
    settings.cache_clear()
    try:
        id_ = sending.send("at", countdown=7200)
    finally:
        settings.cache_clear()
    with database.opened(ackline_settings.database) as engine, database.writing(engine) as connection:
        (row,) = outbox.scheduled(connection, 10)
        assert (row.message_id, row.type) == (id_, JOBS)
        assert row.due_at is not None
        assert row.due_at.timestamp() == pytest.approx(time.time() + 7200, abs=300)
        assert outbox.cancel(connection, id_)


# --- losing connections, and stopping ---------------------------------------------------------------------------------


def test_a_job_that_outlives_its_connection_runs_once(
    sending: Sending, vhost: Vhost, client: Client, tmp_path: Path
) -> None:
    with sending.worker() as worker:
        expires = time.time() + 20  # by then it runs
        sending.send("wait", "a", expires=datetime.fromtimestamp(expires, UTC))
        sending.send("wait", "b")
        until(lambda: len(sending.seen) == 2)
        until(lambda: connections(vhost, "jobs consumes"), what="the connection to be listed")
        until(lambda: time.time() > expires, what="it to expire while it runs, which concerns nobody")
        close(vhost, connections(vhost, "jobs consumes"))
        sending.send("add", 1, 1)
        until(lambda: worker.log.read_text().count("jobs consumes") >= 3, what="it to be lost and had again")
        until(lambda: client.consumers(JOBS) == 1)
        (tmp_path / "gate").touch()
        sending.wait_for("wait a", "wait b", "done a", "done b", "add 1 1")
        _nothing_is_left(client)
        assert worker.stop() == 0
    assert client.ready(JOBS) == 0
    assert len(sending.seen) == 5


def test_a_job_that_waits_for_its_turn_outlives_its_connection_too(
    sending: Sending, vhost: Vhost, client: Client
) -> None:
    with sending.worker(concurrency=1) as worker:
        ours = until(lambda: connections(vhost, "jobs consumes"), what="the connection to be listed")
        for text in "abc":
            sending.send("limited", text)  # one in two seconds
        until(lambda: "limited a" in sending.seen)
        close(vhost, ours)
        until(lambda: worker.log.read_text().count("jobs consumes") >= 3, what="it to be lost and had again")
        begun = set(sending.seen)
        until(lambda: "limited c" in sending.seen)
        sending.send("limited", "d")  # behind what would run once more
        until(lambda: "limited d" in sending.seen)
        _nothing_is_left(client)
        assert worker.stop() == 0
    # One that ended while its answer was on its way may run once more: the first, on a slow machine more. Those that
    # wait may not.
    waited = [line for text in "bcd" if (line := f"limited {text}") not in begun]
    assert [seen for seen in sending.seen if seen not in begun] == waited


def test_a_lost_connection_for_remote_control_concerns_no_job(
    sending: Sending, vhost: Vhost, client: Client, tmp_path: Path
) -> None:
    with sending.worker() as worker:
        sending.send("wait", "a")
        until(lambda: sending.seen == ["wait a"])
        with vhost.api() as api:

            def others() -> list[str]:
                listed = api.get(f"/api/vhosts/{vhost.path}/connections").raise_for_status().json()
                ours = ("jobs", "sending")
                return [
                    each["name"]
                    for each in listed
                    if each.get("client_properties", {}).get("product") == "py-amqp"
                    and not str(each["client_properties"].get("connection_name")).startswith(ours)
                ]

            def is_lost() -> bool:
                close(vhost, others(), missing_ok=True)  # some may be over, and still be listed
                return "connection for remote control is lost" in worker.log.read_text()

            until(is_lost, what="the connection for remote control to be listed, and lost")
        sending.send("add", 1, 1)
        until(lambda: "add 1 1" in sending.seen, what="another job, meanwhile")
        (tmp_path / "gate").touch()
        sending.wait_for("wait a", "done a", "add 1 1")
        _nothing_is_left(client)
        assert worker.stop() == 0


def test_a_worker_that_stops_lets_what_runs_end_and_gives_back_the_rest(
    sending: Sending, client: Client, tmp_path: Path
) -> None:
    with sending.worker(concurrency=1, ACKLINE_GRACE_SECONDS="200") as worker:
        for text in "abc":
            sending.send("wait", text)
        until(lambda: sending.seen == ["wait a"])
        assert worker.process is not None
        worker.process.send_signal(signal.SIGTERM)
        until(lambda: client.ready(JOBS) == 2, what="the others to be back")
        (tmp_path / "gate").touch()
        assert worker.process.wait(90) == 0
    assert sending.seen == ["wait a", "done a"]
    assert client.ready(JOBS) == 2
    assert client.ready(DEAD) == 0


def test_what_runs_beyond_the_grace_goes_back_without_an_attempt(
    sending: Sending, client: Client, tmp_path: Path
) -> None:
    with sending.worker(concurrency=1, ACKLINE_GRACE_SECONDS="0.2") as worker:
        sending.send("wait", "a")
        until(lambda: sending.seen == ["wait a"])
        assert worker.stop() == 0
        until(lambda: client.ready(JOBS) == 1, what="it to be back")
        (tmp_path / "gate").touch()
        worker.start()
        sending.wait_for("wait a", "wait a", "done a")
        _nothing_is_left(client)


def test_a_worker_that_is_killed_leaves_its_jobs_to_the_next(sending: Sending, client: Client, tmp_path: Path) -> None:
    with sending.worker() as worker:
        sending.send("wait", "a")
        until(lambda: sending.seen == ["wait a"])
        worker.kill()
        (tmp_path / "gate").touch()
        worker.start()
        sending.wait_for("wait a", "wait a", "done a")
        _nothing_is_left(client)


# --- reports ----------------------------------------------------------------------------------------------------------


def test_a_tracked_job_is_reported_at_each_step(sending: Sending, client: Client) -> None:
    def events() -> list[tuple[str, int, str | None]]:
        while (taken := client.take(OUTCOMES)) is not None:
            told.extend(json.loads(taken.body))
        return [(event["event"], event["attempt"], event.get("error")) for event in told if event["message_id"] == id_]

    told: list[dict[str, Any]] = []
    with sending.worker():
        id_ = sending.send("fail-often", "twice", headers={wire.TRACK: True})
        until(lambda: [event for event, *_ in events()] == ["retried", "retried", "handled"])
        assert events()[0] == ("retried", 1, "ValueError: twice")
        assert events()[2] == ("handled", 3, None)
        assert {event["consumer"] for event in told} == {JOBS}
        id_ = sending.send("fail", "boom", headers={wire.TRACK: True})
        until(lambda: events() == [("dead", 1, "ValueError: boom")])


# --- remote control ---------------------------------------------------------------------------------------------------


# In a process that is forked, kombu shuts down the connection on which its parent replies; the parent replies again.
@pytest.mark.filterwarnings("ignore:Received multiple replies from node name")
def test_celerys_remote_control_works_where_every_deprecated_feature_is_denied(
    sending: Sending, vhost: Vhost, client: Client, tmp_path: Path
) -> None:
    with sending.worker() as worker:
        inspect = sending.app.control.inspect(timeout=1.0)
        ((node, queues),) = until(inspect.active_queues, what="an answer").items()
        assert node.startswith(f"jobs-{worker.pid}@")
        assert [queue["name"] for queue in queues] == [JOBS, job_queue("video")]
        id_ = sending.send("wait", "a")
        until(lambda: [task["id"] for tasks in (inspect.active() or {}).values() for task in tasks] == [id_])
        sending.app.control.revoke(id_, terminate=True, signal="SIGKILL")
        until(lambda: not any((inspect.active() or {"": [1]}).values()), what="it to be ended")
        id_ = sending.send("wait", "b", headers={wire.TRACK: True})
        until(lambda: "wait b" in sending.seen)
        sending.app.control.revoke(id_, terminate=True)
        letter = dead(client)  # for somebody accounts for it
        assert (letter.properties.message_id, letter.headers[wire.REASON]) == (id_, "it was terminated before it ended")
        sending.app.control.revoke("r-1")
        until(lambda: ["r-1"] in [ids[-1:] for ids in (inspect.revoked() or {}).values()], what="it to be revoked")
        headers = _TASK | {"id": "r-1", wire.REDRIVE: "r-1"}
        client.publish(RETURN, JOBS, _BODY, headers=headers, message_id="r-1", **_JSON)
        letter = dead(client)  # so that its redrive ends
        assert (letter.headers[wire.REDRIVE], letter.headers[wire.REASON]) == ("r-1", "it was revoked before it ended")
        with vhost.api() as api:
            listed = api.get(f"/api/queues/{vhost.path}").raise_for_status().json()
        assert all(queue["durable"] or queue["exclusive"] for queue in listed)
        (tmp_path / "gate").touch()
        sending.send("add", 1, 1)
        sending.wait_for("wait a", "wait b", "add 1 1")
