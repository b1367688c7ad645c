"""A job that failed, at the desk: it is sent again, and what becomes of it is known from its worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ackline.infra import database
from ackline.infra.settings import Settings
from ackline.infra.tables import dead_letters
from tests.jobs import Sending
from tests.roles import role, run
from tests.waiting import until


@pytest.fixture
def sending(ackline_settings: Settings, tmp_path: Path) -> Iterator[Sending]:
    service = Sending(ackline_settings, tmp_path / "notes")
    yield service
    service.close()


def test_a_job_that_was_mended_is_handled_when_it_is_sent_again(sending: Sending, tmp_path: Path) -> None:
    with role(sending.settings, "reviewer"), sending.worker():
        id_ = sending.send("fail-often", "boom", countdown=1, expires=3600)
        engine = database.connect(sending.settings.database)

        def states() -> list[str]:
            with database.reading(engine) as connection:
                rows = connection.execute(dead_letters.select().where(dead_letters.c.message_id == id_))
                return [str(row.state) for row in rows]

        try:
            until(lambda: states() == ["in review"], what="it to be in review")
            shown = run(sending.settings, "dlq", "show", "1", "--json")
            task = json.loads(shown.stdout)["payload"]["task"]
            assert (task["name"], task["args"], task["kwargs"]) == ("fail-often", ["boom"], {})
            again = run(sending.settings, "dlq", "retry", "1")
            assert again.returncode != 0, again.stdout
            assert states() == ["in review"]
            (tmp_path / "mended").touch()
            again = run(sending.settings, "dlq", "retry", "1")
            assert again.returncode == 0, again.stdout + again.stderr
            assert states() == ["handled"]
        finally:
            engine.dispose()
    tries = [f"fail-often boom {retries}" for retries in (0, 1, 2)]
    assert sending.seen == [*tries, *tries, tries[0]], "a redrive begins anew"
