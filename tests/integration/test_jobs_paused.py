"""`ackline consumers pause` of the queues of jobs, with a real worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ackline.infra import database
from ackline.infra.names import JOBS, job_queue
from ackline.infra.settings import Settings
from tests.amqp import Client
from tests.broker import Vhost
from tests.connections import close, connections
from tests.jobs import Sending
from tests.roles import run
from tests.waiting import until

VIDEO = job_queue("video")


@pytest.fixture
def sending(ackline_settings: Settings, tmp_path: Path) -> Iterator[Sending]:
    database.upgrade(ackline_settings.database)
    sending = Sending(ackline_settings, tmp_path / "notes")
    yield sending
    sending.close()


def consumers(sending: Sending, *command: str) -> str:
    done = run(sending.settings, "consumers", *command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def states(sending: Sending) -> dict[str, str]:
    rows = [json.loads(line) for line in consumers(sending, "list", "--json").splitlines()]
    return {row["name"]: row["state"] for row in rows}


def test_of_a_paused_queue_nothing_begins_and_the_others_go_on(
    sending: Sending, client: Client, vhost: Vhost, tmp_path: Path
) -> None:
    with sending.worker(concurrency=1) as worker:
        sending.send("wait", "a")
        sending.send("add", 1, 1)
        sending.send("limited", "a")
        until(lambda: sending.seen == ["wait a"] and client.ready(JOBS) == 0, what="all of it to be delivered")
        assert consumers(sending, "pause", JOBS, "--reason", "the bank is closed") == f"{JOBS}: paused\n"
        until(lambda: client.ready(JOBS) == 2, what="what had not begun to be back in its queue")
        (tmp_path / "gate").touch()
        until(lambda: "done a" in sending.seen, what="what runs to end")
        sending.send("encode", "x", queue=VIDEO)
        until(lambda: "encode x" in sending.seen, what="another queue to go on")
        close(vhost, until(lambda: connections(vhost, "jobs consumes"), what="the connection to be listed"))
        until(lambda: worker.log.read_text().count("jobs consumes") >= 3, what="it to be lost and had again")
        sending.send("add", 2, 2)
        sending.send("encode", "y", queue=VIDEO)
        until(lambda: "encode y" in sending.seen)
        assert client.ready(JOBS) == 3
        assert worker.stop() == 0
    with sending.worker():  # one that starts later
        sending.send("encode", "z", queue=VIDEO)
        until(lambda: "encode z" in sending.seen)
        assert client.ready(JOBS) == 3
        until(lambda: states(sending) == {JOBS: "paused", VIDEO: "running"}, what="RabbitMQ to count consumers")
        assert consumers(sending, "resume", "--all") == f"{JOBS}: resumed\n"
        ended = ["wait a", "done a", "encode x", "encode y", "encode z", "add 1 1", "add 2 2", "limited a"]
        sending.wait_for(*ended)
        until(lambda: client.ready(JOBS) == 0)


def test_what_waits_for_its_turn_goes_back_as_well(sending: Sending, client: Client) -> None:
    with sending.worker(concurrency=1) as worker:
        for text in "abc":
            sending.send("rarely", text)  # one in an hour
        until(lambda: sending.seen == ["rarely a"] and client.ready(JOBS) == 0, what="all of it to be delivered")
        consumers(sending, "pause", "--all")
        until(lambda: client.ready(JOBS) == 2, what="the others to be back in their queue")
        consumers(sending, "resume", "--all")
        until(lambda: client.ready(JOBS) == 0, what="them to wait for their turn again")
        assert worker.stop() == 0
    until(lambda: client.ready(JOBS) == 2, what="the others to be back in their queue")
    assert sending.seen == ["rarely a"]
