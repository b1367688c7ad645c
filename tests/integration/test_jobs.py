"""Jobs, from `delay` to their end, run by `ackline jobs` as a process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ackline.infra import wire
from ackline.infra.names import DEAD, JOBS
from ackline.infra.settings import Settings
from tests.amqp import Client
from tests.jobs import Sending, dead


@pytest.fixture
def sending(ackline_settings: Settings, tmp_path: Path) -> Iterator[Sending]:
    service = Sending(ackline_settings, tmp_path / "notes")
    yield service
    service.close()


def test_a_job_runs_and_is_acked(sending: Sending, client: Client) -> None:
    with sending.worker() as worker:
        sending.send("add", 1, 2)
        sending.wait_for("add 1 2")
        assert worker.stop() == 0
    assert client.ready(JOBS) == 0
    assert client.ready(DEAD) == 0


def test_a_job_that_raises_goes_to_review_with_its_traceback(sending: Sending, client: Client) -> None:
    with sending.worker():
        id_ = sending.send("fail", "boom")
        letter = dead(client)
    assert letter.properties.message_id == id_
    assert letter.properties.type == "fail"
    assert json.loads(letter.body)[0] == ["boom"]
    assert letter.headers[wire.CONSUMER] == JOBS
    assert letter.headers[wire.REASON] == "ValueError: boom"
    assert "raise ValueError(text)" in letter.headers[wire.TRACEBACK]
    (attempt,) = json.loads(letter.headers[wire.HISTORY])
    assert (attempt["attempt"], attempt["error"], attempt["message"]) == (1, "ValueError", "boom")
    assert client.ready(JOBS) == 0
    assert sending.seen == ["fail boom"]
