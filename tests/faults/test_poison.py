"""Two messages that kill whoever handles them, among 5,000 that do not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from ackline.infra import database, tables
from ackline.infra.settings import Settings
from ackline.producer import Publisher, Receipt
from tests import poison
from tests.poison import Dose
from tests.roles import role
from tests.waiting import until

GOOD = 5_000
KILLS, GREEDY = GOOD + 1, GOOD + 2
#: How many good ones are published before each of them.
BEFORE = {1_000: Dose(number=KILLS, deed="kill"), 3_000: Dose(number=GREEDY, deed="greed")}
MEMORY_MB = 400

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.mark.parametrize("processes", [1, 2])
def test_two_poison_messages_among_5_000_good_ones_are_in_review_and_no_others(
    ackline_settings: Settings, tmp_path: Path, say: Callable[[str], None], processes: int
) -> None:
    settings = ackline_settings.model_copy(update={"app": (poison.APP,)})
    options = ["--consumers", "taster", "--prefetch", "200", "--processes", str(processes)]
    with (
        role(settings, "reviewer"),
        role(
            settings, "worker", *options, "--max-memory", f"{MEMORY_MB}MB", **{poison.FOLDER: str(tmp_path)}
        ) as worker,
        Publisher.connect(settings, timeout=60) as publisher,
    ):
        confirms: list[Future[Receipt]] = []
        for number in range(GOOD):
            if number in BEFORE:
                confirms.append(publisher.submit(BEFORE[number], timeout=120))
            confirms.append(publisher.submit(Dose(number=number), timeout=120))
        assert all(confirm.exception() is None for confirm in confirms)
        engine = database.connect(settings.database)
        try:
            until(lambda: len(_reasons(engine)) >= 2, deadline=400, what="both in review")
            until(lambda: len(poison.times(tmp_path, "handled")) == GOOD, deadline=400, what="the good ones handled")
            assert worker.stop() == 0
            reasons = _reasons(engine)
        finally:
            engine.dispose()
    handled, deaths = poison.times(tmp_path, "handled"), poison.times(tmp_path, "begun")
    assert sorted(handled) == list(range(GOOD))
    assert reasons == [
        "crashed the worker: killed by SIGKILL",
        f"crashed the worker: used more than {MEMORY_MB} MB",
    ]
    say(
        f"{processes} processes: {len(handled)} handled, {sum(handled.values()) - GOOD} of them twice; "
        f"2 in review, after {deaths[KILLS]} deaths by SIGKILL and {deaths[GREEDY]} by memory"
    )
    assert all(1 <= deaths[each] <= 3 for each in (KILLS, GREEDY))


def _reasons(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return sorted(connection.scalars(select(tables.dead_letters.c.reason)))
