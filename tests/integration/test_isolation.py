"""Suspects are handled apart: what ends the process goes to review, and what does not is answered like any other."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ackline.consumers.calling import way_of
from ackline.consumers.consumer import registered
from ackline.consumers.delivery import Delivery
from ackline.consumers.handling import Report, Settlement, Way
from ackline.consumers.isolation import Isolation
from ackline.consumers.journal import Journal, key_of, private_journal
from ackline.infra import wire
from ackline.infra.names import DEAD, MESSAGES
from ackline.infra.properties import Properties
from ackline.infra.settings import Settings
from tests import poison
from tests.amqp import Client
from tests.broker import Vhost
from tests.connections import close, connections
from tests.documented import write_files
from tests.poison import begun
from tests.processes import alive
from tests.roles import ROOT, RoleProcess, role
from tests.waiting import until

#: What the process for suspects says when it begins.
SAID = "handling suspects apart"
TYPES = {
    "taster": "test.poison",
    "async-taster": "test.poison.async",
    "batch-taster": "test.poison.batch",
    "limited-taster": "test.poison.limited",
}
#: A plain, an async and a batch handler.
KINDS = list(TYPES)[:3]


# --- the process for suspects, without a broker ------------------------------------------------------------


@pytest.fixture
def journal() -> Journal:
    return private_journal()


@pytest.fixture
def isolation(tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Iterator[Isolation]:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ACKLINE_APP", poison.APP)
    monkeypatch.setenv(poison.FOLDER, str(tmp_path))
    found = Isolation(journal, max_memory=300 << 20)
    yield found
    found.close()


def way(consumer: str = "taster", **more: Any) -> Way:
    return way_of(registered()[consumer], "host:1")._replace(**more)


def delivery(deed: str, consumer: str = "taster", number: int = 1, headers: dict[str, Any] | None = None) -> Delivery:
    body = json.dumps({"number": number, "deed": deed}).encode()
    properties = Properties(message_id=f"m-{number}", type=TYPES[consumer], headers=headers)
    return Delivery(MESSAGES, TYPES[consumer], properties, body, redelivered=True)


def dead(settlement: Settlement) -> tuple[str, list[dict[str, Any]]]:
    """The reason and the history of what is sent to review."""
    [outgoing] = settlement.outgoing
    assert outgoing.exchange == DEAD
    headers = outgoing.properties.headers.decoded()
    return headers[wire.REASON], json.loads(headers[wire.HISTORY])


@pytest.mark.parametrize("consumer", KINDS)
@pytest.mark.parametrize(
    ("deed", "how"), [("kill", "killed by SIGKILL"), ("exit", "exit code 3"), ("greed", "used more than 300 MB")]
)
def test_what_ends_the_process_goes_to_review_with_how_it_ended(
    isolation: Isolation, consumer: str, deed: str, how: str
) -> None:
    reason, history = dead(isolation.handle(way(consumer), delivery(deed, consumer)))
    assert reason == f"crashed the worker: {how}"
    assert [(entry["attempt"], entry["error"], entry["message"]) for entry in history] == [(1, "CrashedWorker", reason)]


@pytest.mark.parametrize("consumer", KINDS)
def test_what_does_not_end_it_is_answered_like_any_other(isolation: Isolation, consumer: str, tmp_path: Path) -> None:
    settlement = isolation.handle(way(consumer), delivery("good", consumer))
    assert begun(tmp_path, "handled") == [1]
    published = [outgoing.routing_key for outgoing in settlement.outgoing]
    assert published == (["test.poison.answer"] if consumer == "async-taster" else [])
    assert not settlement.reject


def test_one_that_fails_is_retried_by_its_policy(isolation: Isolation) -> None:
    [outgoing] = isolation.handle(way(), delivery("fails")).outgoing
    assert outgoing.exchange == "ackline.retry.1s"


def test_one_that_hangs_where_no_time_limit_ends_it_is_killed_and_retried(isolation: Isolation) -> None:
    [outgoing] = isolation.handle(way("limited-taster"), delivery("hangs", "limited-taster")).outgoing
    assert outgoing.exchange == "ackline.retry.1s"
    [failure] = json.loads(outgoing.properties.headers.decoded()[wire.HISTORY])
    assert failure["error"] == "TimeLimitExceeded"
    assert failure["message"] == "the handler did not end at its time limit of 1s"


def test_what_it_publishes_and_can_never_be_sent_ends_in_review(isolation: Isolation) -> None:
    fallback = isolation.handle(way("async-taster"), delivery("good", "async-taster")).fallback
    assert fallback is not None
    reason, _ = dead(fallback(ValueError("too large")))
    assert reason == "the handler succeeded, but a message that it published cannot be sent: too large"


def test_it_tells_of_its_progress(isolation: Isolation) -> None:
    told: list[bytes] = []

    def tell(_delivery: Delivery, report: Callable[[], Report]) -> None:
        told.append(report().event)

    isolation.handle(way(tell=tell), delivery("progress", headers={wire.TRACK: True}))
    assert [json.loads(event)["progress"] for event in told] == [0.5]


def test_the_next_suspect_is_handled_after_one_that_was_poison(isolation: Isolation, tmp_path: Path) -> None:
    dead(isolation.handle(way(), delivery("exit", number=1)))
    isolation.handle(way(), delivery("good", number=2))
    dead(isolation.handle(way(), delivery("exit", number=3)))
    assert begun(tmp_path, "handled") == [2]


def test_several_suspects_are_handled_by_one_process(isolation: Isolation, tmp_path: Path) -> None:
    for number in range(3):
        isolation.handle(way(), delivery("tells", number=number))
    assert len(set(begun(tmp_path, "process"))) == 1


def test_the_end_of_an_idle_process_convicts_nobody(isolation: Isolation, tmp_path: Path) -> None:
    isolation.handle(way(), delivery("tells", number=1))
    [pid] = begun(tmp_path, "process")
    os.kill(pid, signal.SIGKILL)
    isolation.handle(way(), delivery("good", number=2))
    assert begun(tmp_path, "handled") == [1, 2]


def test_the_end_of_a_process_whose_children_live_on_is_noticed(isolation: Isolation, tmp_path: Path) -> None:
    reason, _ = dead(isolation.handle(way(), delivery("forks")))
    for pid in begun(tmp_path, "child"):
        os.kill(pid, signal.SIGKILL)
    assert reason == "crashed the worker: exit code 3"


def test_a_suspect_is_none_any_more_when_it_is_innocent(isolation: Isolation, journal: Journal) -> None:
    for deed, remains in (("good", False), ("fails", False), ("exit", True)):
        suspect = delivery(deed)
        key = key_of("taster", suspect.properties, suspect.body)
        journal.own.enter(key)
        journal.accuse(1)
        assert isolation.suspects("taster", suspect)
        isolation.handle(way(), suspect)
        assert isolation.suspects("taster", suspect) is remains


def test_what_was_delivered_twice_without_an_answer_is_a_suspect(isolation: Isolation) -> None:
    counted = [delivery("good", headers={"x-delivery-count": count}) for count in range(4)]
    assert [isolation.suspects("taster", each) for each in counted] == [False, False, True, True]


# --- the worker -------------------------------------------------------------------------------------------


@pytest.fixture
def start(ackline_settings: Settings, tmp_path: Path) -> Iterator[Callable[..., RoleProcess]]:
    started: list[RoleProcess] = []

    def begin(*options: str, grace: float = 600.0) -> RoleProcess:
        settings = ackline_settings.model_copy(update={"app": (poison.APP,), "grace_seconds": grace})
        started.append(RoleProcess(settings, "worker", *options, **{poison.FOLDER: str(tmp_path)}))
        started[-1].start()
        return started[-1]

    yield begin
    for each in started:
        each.kill()


Start = Callable[..., RoleProcess]


def publish(client: Client, deed: str, number: int = 1, consumer: str = "taster", **more: Any) -> None:
    body = json.dumps({"number": number, "deed": deed}).encode()
    client.publish(MESSAGES, TYPES[consumer], body, type=TYPES[consumer], message_id=f"m-{number}", **more)


def reviewed(client: Client) -> str:
    """The reason of the next message that is to be reviewed."""
    taken = until(lambda: client.take(DEAD), what="a message in review")
    return str(taken.headers[wire.REASON])


@pytest.mark.parametrize("consumer", KINDS)
def test_poison_costs_two_deaths_and_no_other_message(
    start: Start, client: Client, tmp_path: Path, consumer: str
) -> None:
    start()
    for number, deed in enumerate(("good", "good", "kill", "good", "good")):
        publish(client, deed, number, consumer)
    assert reviewed(client) == "crashed the worker: killed by SIGKILL"
    until(lambda: set(begun(tmp_path, "handled")) == {0, 1, 3, 4}, what="the others handled")
    assert client.take(DEAD) is None
    assert begun(tmp_path, "begun") == [2, 2]


def test_what_was_in_a_handler_beside_it_is_handled_and_not_reviewed(
    start: Start, client: Client, tmp_path: Path
) -> None:
    worker = start()
    publish(client, "slow", 1)
    publish(client, "slow", 2)
    until(lambda: sorted(begun(tmp_path, "begun")) == [1, 2], what="both to be in handlers")
    publish(client, "exit", 3)
    until(lambda: 3 in begun(tmp_path, "begun"), what="the third in its handler")
    # Not before: the two could end beside it.
    until(lambda: not alive(begun(tmp_path, "process")[0]), what="the death")
    (tmp_path / "open").touch()
    assert reviewed(client) == "crashed the worker: exit code 3"
    until(lambda: sorted(set(begun(tmp_path, "handled"))) == [1, 2], what="both handled")
    assert client.take(DEAD) is None
    assert sorted(begun(tmp_path, "begun")) == [1, 1, 2, 2, 3, 3]
    assert "ended: exit code 3; 3 messages were in a handler, handled apart from now on." in worker.log.read_text()


def test_where_no_journal_can_tell_poison_costs_three_deaths(start: Start, client: Client, tmp_path: Path) -> None:
    worker = start()
    publish(client, "parent")
    until(lambda: not worker.alive and begun(tmp_path, "begun") == [1], what="all of it to die")
    with contextlib.suppress(AssertionError):  # it may be dead before anybody has seen it ready
        worker.start()
    until(lambda: not worker.alive and begun(tmp_path, "begun") == [1, 1], what="all of it to die again")
    worker.start()
    assert reviewed(client) == "crashed the worker: killed by SIGKILL"
    assert begun(tmp_path, "begun") == [1] * 3


def test_a_restart_makes_no_suspects(start: Start, client: Client, tmp_path: Path) -> None:
    worker = start(grace=0.2)
    publish(client, "slow")
    until(lambda: begun(tmp_path, "begun") == [1], what="the handler to begin")
    worker.stop()  # the handler outlasts the grace
    (tmp_path / "open").touch()
    worker.start()
    until(lambda: begun(tmp_path, "handled") == [1], what="the message handled")
    assert SAID not in worker.log.read_text()


def test_a_lost_connection_makes_no_suspects(start: Start, client: Client, vhost: Vhost, tmp_path: Path) -> None:
    worker = start("--processes", "2")
    publish(client, "slow")
    until(lambda: begun(tmp_path, "begun") == [1], what="the handler to begin")
    [process] = begun(tmp_path, "process")
    # That one alone: were the other process's closed too, the message might have been delivered there meanwhile.
    named = f"worker consumes {socket.gethostname()}:{process}"
    (holder,) = until(lambda: connections(vhost, named), what="the connection that holds the message to be listed")
    close(vhost, [holder])
    until(lambda: begun(tmp_path, "begun") == [1, 1], what="the message to be delivered again")
    (tmp_path / "open").touch()
    until(lambda: begun(tmp_path, "handled") == [1, 1], what="both tries to end")
    assert SAID not in worker.log.read_text()


def test_a_process_that_is_told_twice_to_stop_finishes_what_runs(start: Start, client: Client, tmp_path: Path) -> None:
    # By its parent, and by whoever signals all processes of a service, as systemd does.
    worker = start()
    publish(client, "slow")
    until(lambda: begun(tmp_path, "begun") == [1], what="the handler to begin")
    process = _child_of(worker)
    os.kill(process, signal.SIGTERM)
    # Of the other queue: one that was cancelled with a message unacked still counts as a consumer.
    until(lambda: not client.consumers("async-taster"), what="it to stop taking messages")
    os.kill(process, signal.SIGTERM)
    (tmp_path / "open").touch()
    until(lambda: begun(tmp_path, "handled") == [1], what="the message handled")
    assert worker.stop() == 0
    assert begun(tmp_path, "begun") == [1]
    assert client.take("taster") is None


def test_a_suspect_is_told_that_the_worker_stops(start: Start, client: Client, tmp_path: Path) -> None:
    worker = start()
    publish(client, "lingers")
    until(lambda: begun(tmp_path, "begun") == [1], what="the handler to begin")
    os.kill(_child_of(worker), signal.SIGKILL)
    until(lambda: begun(tmp_path, "begun") == [1, 1], what="the handler to begin apart")
    assert SAID in worker.log.read_text()
    assert worker.stop() == 0
    assert begun(tmp_path, "stopping") == begun(tmp_path, "handled") == [1]
    assert client.take("taster") is None


def test_the_documented_handler_is_found_out(ackline_settings: Settings, client: Client, tmp_path: Path) -> None:
    write_files("handlers.md", "Poison messages", tmp_path)
    settings = ackline_settings.model_copy(update={"app": ("thumbnails",)})
    with role(settings, "worker", PYTHONPATH=str(tmp_path)):
        client.publish(MESSAGES, "image.uploaded", b'{"path": "a.broken"}', type="image.uploaded")
        client.publish(MESSAGES, "image.uploaded", b'{"path": "b.png"}', type="image.uploaded")
        assert reviewed(client) == "crashed the worker: killed by SIGSEGV"
        until(lambda: client.ready("thumbnails") == 0)
    assert client.take(DEAD) is None


def _child_of(worker: RoleProcess) -> int:
    asked = subprocess.run(["ps", "-o", "pid=", "--ppid", str(worker.pid)], capture_output=True, text=True, check=True)
    [pid] = asked.stdout.split()
    return int(pid)
