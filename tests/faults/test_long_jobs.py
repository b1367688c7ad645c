"""A job of twelve minutes where RabbitMQ waits for five, in real time: only in the long form.

`tests/integration/test_jobs_long.py` has the same in seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ackline.infra.names import DEAD, JOBS
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from tests.amqp import Client
from tests.jobs import Sending
from tests.patience import limit_deliveries
from tests.waiting import until

TIMEOUT, SECONDS = 5 * 60, 12 * 60

pytestmark = [pytest.mark.faults, pytest.mark.timeout(SECONDS + 600)]


@pytest.mark.skipif(not os.environ.get("ACKLINE_TEST_LONG"), reason="takes twelve minutes: ACKLINE_TEST_LONG=1")
def test_a_job_of_twelve_minutes_is_handled_once_where_deliveries_have_five(
    own_broker: Broker, own_broker_settings: Settings, tmp_path: Path, say: Callable[[str], None]
) -> None:
    limit_deliveries(own_broker, TIMEOUT)
    sending = Sending(own_broker_settings, tmp_path / "notes")
    try:
        with sending.worker() as worker:
            sending.send("nap", SECONDS)
            until(lambda: sending.seen == ["nap"], what="it to be run")
            until(lambda: sending.seen != ["nap"], deadline=SECONDS + 120, what="it to end")
            sending.send("add", 1, 1)
            until(lambda: "add 1 1" in sending.seen)
            assert sending.seen == ["nap", "awake", "add 1 1"]
            assert worker.stop() == 0
            with Client(sending.settings.broker) as client:
                assert client.ready(JOBS) == client.ready(DEAD) == 0
            assert sending.seen == ["nap", "awake", "add 1 1"]
            timed_out = worker.log.read_text().count("delivery acknowledgement on channel")
            say(f"{own_broker.description}: a job of {SECONDS} s ran once; deliveries timed out {timed_out} times")
    finally:
        sending.close()
