"""Tracked jobs in the ledger: each is in one column, whatever became of it."""

from __future__ import annotations

import json
from pathlib import Path

from ackline.infra import wire
from ackline.infra.names import JOBS
from ackline.infra.settings import Settings
from tests.amqp import Client
from tests.jobs import Sending
from tests.roles import role, run
from tests.waiting import until


def test_every_tracked_job_is_in_one_column(ackline_settings: Settings, client: Client, tmp_path: Path) -> None:
    sending = Sending(ackline_settings, tmp_path / "notes")

    def track(name: str, *args: object, **options: object) -> str:
        return sending.send(name, *args, headers={wire.TRACK: True}, **options)

    def account() -> dict[str, int]:
        done = run(sending.settings, "ledger", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        (found,) = json.loads(done.stdout)["accounts"]
        assert found.pop("consumer") == JOBS
        return {name: value for name, value in found.items() if value}

    try:
        with role(sending.settings, "reviewer"):
            with sending.worker() as worker:
                track("add", 1, 1)
                track("fail-often", "twice")
                track("fail", "boom")
                track("die")
                track("nobody-has-it")
                track("add", 2, 2, countdown=3000)  # in a tier, not yet begun
                sending.send("add", 3, 3)  # not tracked
                settled = {"accepted": 6, "handled": 2, "in_review": 3, "waiting": 1}
                until(lambda: account() == settled, what=f"{settled}")
                assert run(sending.settings, "dlq", "discard", "1", "--reason", "of no use").returncode == 0
                assert worker.stop() == 0
            track("add", 4, 4)
            settled |= {"accepted": 7, "in_review": 2, "discarded": 1, "waiting": 2}
            until(lambda: account() == settled, what=f"{settled}")
    finally:
        sending.close()
