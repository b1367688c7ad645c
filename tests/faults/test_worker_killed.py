"""The worker is killed in the middle of its work (issue: every id handled, none lost, few duplicates)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from ackline.infra.names import DEAD, UNROUTED
from ackline.infra.settings import Settings
from ackline.producer import Publisher, Receipt
from tests import counting
from tests.counting import CONSUMERS, Counted, handled
from tests.depths import depths
from tests.roles import role
from tests.waiting import until

MESSAGES = 10_000
#: They are sent slice by slice, and the worker is killed when it has handled some of a slice. A kill that came when all
#: of it was handled shows nothing and does not count; the next slice is for another one.
SLICE = 2_000
KILLS, MOST_KILLS = 3, 30
PREFETCH = 100

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def test_a_worker_killed_three_times_among_10_000_messages_loses_none(
    ackline_settings: Settings, tmp_path: Path, say: Callable[[str], None]
) -> None:
    settings = ackline_settings.model_copy(update={"app": ("tests.counting",)})

    confirms: list[Future[Receipt]] = []
    killed_at: list[str] = []
    with (
        role(settings, "worker", "--prefetch", str(PREFETCH), **{counting.FOLDER: str(tmp_path)}) as worker,
        Publisher.connect(settings, timeout=60) as publisher,
    ):

        def send(count: int) -> None:
            for number in range(len(confirms), len(confirms) + count):
                confirms.append(publisher.submit(Counted(number=number), timeout=120))

        kills = 0
        while len(killed_at) < KILLS:
            assert kills < MOST_KILLS, "the kills came after the work; nothing was shown"
            until(lambda: _handled(tmp_path) == len(confirms), deadline=200, what="every message of the slices so far")
            before = len(confirms)
            send(SLICE)
            until(lambda: _handled(tmp_path) > before + SLICE // 4, deadline=200, what="some of the slice")  # noqa: B023
            worker.kill()
            kills += 1
            if (found := _handled(tmp_path)) < len(confirms):
                killed_at.append(f"{found} of {len(confirms)}")
            worker.start()
        send(max(0, MESSAGES - len(confirms)))
        assert all(confirm.exception() is None for confirm in confirms)
        until(lambda: _handled(tmp_path) == len(confirms), deadline=200, what="every message handled")
        empty = dict.fromkeys((*CONSUMERS, DEAD, UNROUTED), 0)
        until(lambda: depths(settings, *empty) == empty, what="empty queues")
        assert worker.stop() == 0

    duplicates = sum(sum(handled(tmp_path, name).values()) - len(confirms) for name in CONSUMERS)
    bound = PREFETCH * kills * len(CONSUMERS)
    say(f"killed at {', '.join(killed_at)}; {duplicates} duplicates over both consumers, bound {bound}")
    assert duplicates <= bound


def _handled(folder: Path) -> int:
    """How many messages the slower of the consumers has handled, each counted once."""
    return min(len(handled(folder, name)) for name in CONSUMERS)
