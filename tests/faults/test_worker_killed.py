"""The worker is killed in the middle of its work (issue: every id handled, none lost, few duplicates)."""

from __future__ import annotations

from pathlib import Path

import pytest

from ackline.infra.management import Management
from ackline.infra.names import DEAD, UNROUTED
from ackline.infra.settings import Settings
from ackline.producer import Publisher
from tests import counting
from tests.counting import CONSUMERS, Counted, handled
from tests.roles import role
from tests.waiting import until

MESSAGES = 10_000
KILL_AT = (2_000, 4_500, 7_000)
PREFETCH = 100

pytestmark = pytest.mark.faults


def test_a_worker_killed_three_times_among_10_000_messages_loses_none(
    ackline_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ackline_settings.model_copy(update={"app": ("tests.counting",)})

    def slowest() -> int:
        return min(counting.lines(tmp_path, name) for name in CONSUMERS)

    with role(settings, "worker", "--prefetch", str(PREFETCH), **{counting.FOLDER: str(tmp_path)}) as worker:
        with Publisher.connect(settings) as publisher:
            confirms = [publisher.submit(Counted(number=number), timeout=60) for number in range(MESSAGES)]
        assert all(confirm.exception() is None for confirm in confirms)
        killed_at = []
        for at in KILL_AT:
            until(lambda at=at: slowest() >= at, deadline=60, what=f"{at} handled messages")  # type: ignore[misc]
            worker.kill()
            killed_at.append(slowest())
            worker.start()
        until(lambda: slowest() >= MESSAGES and _all_handled(tmp_path), deadline=120, what="every message handled")
        until(lambda: _messages(settings) == dict.fromkeys((*CONSUMERS, DEAD, UNROUTED), 0), what="empty queues")
        assert worker.stop() == 0

    duplicates = sum(sum(handled(tmp_path, name).values()) - MESSAGES for name in CONSUMERS)
    bound = PREFETCH * len(KILL_AT) * len(CONSUMERS)
    with capsys.disabled():
        print(f"\n  killed at {killed_at} of {MESSAGES}; {duplicates} duplicates over both consumers, bound {bound}")
    assert killed_at[-1] < MESSAGES, "the last kill came after the work; nothing was shown"
    assert duplicates <= bound


def _all_handled(folder: Path) -> bool:
    return all(handled(folder, name).keys() == set(range(MESSAGES)) for name in CONSUMERS)


def _messages(settings: Settings) -> dict[str, int]:
    """Messages in each queue that matters here, unacked ones included."""
    with Management(settings) as management:
        found = {queue["name"]: queue.get("messages", -1) for queue in management.get("queues/{vhost}")}
    return {name: found[name] for name in (*CONSUMERS, DEAD, UNROUTED)}
