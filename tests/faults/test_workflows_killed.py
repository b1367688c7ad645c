"""Chains and chords while SIGKILL takes processes of jobs, and whole workers: every one comes to its end."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from celery import chain, chord

from ackline.infra.settings import Settings, settings
from tests.roles import RoleProcess, role
from tests.waiting import until
from tests.workflows import Workflows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

LONG = bool(os.environ.get("ACKLINE_TEST_LONG"))
FLOWS, KILLS = (300, 40) if LONG else (40, 6)
PARTS = 5


@pytest.fixture
def flows(ackline_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workflows]:
    monkeypatch.setenv("ACKLINE_DATABASE_URL", ackline_settings.database)
    settings.cache_clear()
    service = Workflows(ackline_settings, tmp_path / "notes")
    yield service
    service.close()
    settings.cache_clear()


def _publish(flows: Workflows, number: int) -> list[int]:
    """One that is a chain, a chord, or chords in a chord; what its callback is to collect, all of it together."""
    s, first = flows.s, number * 100
    if number % 3 == 0:
        chain(s("give", first), *(s("plus", 1) for _ in range(PARTS - 1)), s("collect")).apply_async()
        return [first + PARTS - 1]
    if number % 3 == 1:
        chord([s("give", first + part) for part in range(PARTS)], s("collect")).apply_async()
        return [first + part for part in range(PARTS)]
    inner = [chord([s("give", first + part), s("give", first + part + 1)], s("sum")) for part in range(0, 4, 2)]
    chord([*inner, chain(s("give", first), s("plus", 50))], s("collect")).apply_async()
    return [2 * first + 1, 2 * first + 5, first + 50]


def _children(pid: int) -> list[int]:
    asked = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in asked.stdout.split()]


def _kill(worker: RoleProcess, number: int) -> None:
    """A process that runs jobs, or the worker."""
    if number % 3 == 2:
        worker.kill()
        worker.start()
        return
    processes = until(lambda: _children(worker.pid), what="a process of the worker")
    os.kill(processes[number % len(processes)], signal.SIGKILL)


def _is_past(ended: Callable[[], set[str]], least: int) -> bool:
    return len(ended()) >= least


def test_every_chain_and_chord_ends_whoever_is_killed(flows: Workflows, say: Callable[[str], None]) -> None:
    with role(flows.settings, "reviewer"), flows.worker(concurrency=2) as worker:
        expected = {str(_publish(flows, number)) for number in range(FLOWS)}
        reviewed = 0

        def ended() -> set[str]:
            return {str(values if isinstance(values, list) else [values]) for values in flows.collected()}

        for kill in range(KILLS):
            # Spread over the run: each when so many have ended.
            least = FLOWS * kill // (KILLS + 1)
            until(partial(_is_past, ended, least), deadline=300, what=f"{least} to end")
            _kill(worker, kill)
        while ended() != expected or flows.in_review():
            # What was in a process that was killed is in review, though it may have been at its end; the rest goes on
            # by itself.
            until(lambda: ended() == expected or flows.in_review(), deadline=300, what="all to end, or be in review")
            letters = flows.in_review()
            reviewed += len(letters)
            flows.retry(letters)
        until(lambda: flows.open_chords() == 0, what="no chord to be open")
        assert flows.in_review() == []
    calls = Counter(map(str, flows.collected()))
    say(
        f"{FLOWS} chains and chords, {KILLS} kills: all ended; {reviewed} jobs had been in review, "
        f"{sum(calls.values()) - len(calls)} callbacks ran twice."
    )
