"""Chains, groups and chords, run by `ackline jobs` as a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group

from ackline.infra import wire
from ackline.infra.names import DEAD
from ackline.infra.settings import Settings, settings
from tests.amqp import Client
from tests.jobs import dead
from tests.roles import role
from tests.waiting import until
from tests.workflows import Workflows


@pytest.fixture(params=["sqlite", "postgresql"])
def flows(
    request: pytest.FixtureRequest, ackline_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Workflows]:
    configured = ackline_settings
    if request.param == "postgresql":
        configured = configured.model_copy(update={"database_url": request.getfixturevalue("postgresql_url")})
    monkeypatch.setenv("ACKLINE_DATABASE_URL", configured.database)
    settings.cache_clear()
    service = Workflows(configured, tmp_path / "notes")
    yield service
    service.close()
    settings.cache_clear()


def _ended(flows: Workflows, *collected: Any) -> None:
    """Wait until callbacks have collected exactly this, and no chord is open."""
    until(lambda: flows.collected() == list(collected), what=f"{collected}, having seen {flows.seen}")
    until(lambda: flows.open_chords() == 0, what="no chord to be open")


def test_chains_groups_and_chords(flows: Workflows) -> None:
    s = flows.s
    with flows.worker():
        chain(s("give", 1), s("plus", 2), s("plus", 3)).apply_async()
        flows.wait_for("give 1", "plus 1 2", "plus 3 3")
        flows.forget()
        group(s("give", value) for value in range(20)).apply_async()
        flows.wait_for(*(f"give {value}" for value in range(20)))
        # A chord calls back with the results in order.
        flows.forget()
        chord([s("give", value) for value in range(20)], s("collect")).apply_async()
        _ended(flows, list(range(20)))
        # A group in a chain is a chord.
        flows.forget()
        steps = (s("give", 1), group(s("plus", 10), s("plus", 20)), s("collect"), group(s("collect"), s("collect")))
        chain(*steps).apply_async()
        _ended(flows, [11, 21], [11, 21], [11, 21])
        flows.forget()
        chord([], s("collect"), app=flows.app).apply_async()
        _ended(flows, [])


def test_chords_in_chords_and_of_jobs(flows: Workflows) -> None:
    s = flows.s
    with flows.worker():
        parts = [
            chain(s("give", 1), s("plus", 1)),
            chord([s("give", 3), s("give", 4)], s("collect")),
            chain(s("give", 10), group(s("plus", 1), s("plus", 2))),
            s("give", 5),
        ]
        chord(parts, s("collect")).apply_async()
        _ended(flows, [3, 4], [2, [3, 4], [11, 12], 5])
        # A part may add to its chord, and become another.
        flows.forget()
        chord([s("growing", 1), s("becoming", 5)], s("collect")).apply_async()
        _ended(flows, [5, 6], [1, [5, 6], 2])
        # A job may publish one.
        flows.forget()
        flows.send("spread", [1, 2, 3])
        _ended(flows, [1, 2, 3])


# --- what fails -------------------------------------------------------------------------------------------------------


def test_a_chain_goes_on_when_the_job_that_failed_is_sent_again(flows: Workflows) -> None:
    with role(flows.settings, "reviewer"), flows.worker():
        steps = chain(flows.s("give", 1), flows.s("fragile"), flows.s("plus", 2))
        steps.link_error(flows.s("failed-here"))
        steps.apply_async()
        until(lambda: flows.in_review(), what="what failed in review")
        assert sorted(flows.seen) == ["failed-here ValueError", "fragile 1", "give 1"]
        flows.mend()
        flows.send_again(1)
        flows.wait_for("give 1", "fragile 1", "failed-here ValueError", "fragile 1", "plus 1 2")


@pytest.mark.parametrize("name", ["fragile", "deadly"])
def test_a_chord_calls_back_when_the_parts_that_failed_are_sent_again(flows: Workflows, name: str) -> None:
    with role(flows.settings, "reviewer"), flows.worker(concurrency=1):
        callback = flows.s("collect")
        callback.link_error(flows.s("failed"))
        parts = [flows.s("give", 1), flows.s(name, 2), chain(flows.s(name, 3), flows.s("plus", 1)), flows.s("give", 5)]
        id_ = chord(parts, callback).apply_async().id
        until(lambda: len(flows.in_review()) == 2, what="two parts in review")

        def callbacks() -> list[str]:
            return [line for line in flows.seen if line.startswith(f"failed {id_} ")]

        until(callbacks, what="the error callback")
        assert flows.collected() == []
        flows.mend()
        flows.send_again(2)
        _ended(flows, [1, 2, 4, 5])
    # Its callback may run twice: when the process dies of the next part before the ack has gone out.
    failed = set(callbacks()) if name == "deadly" else callbacks()
    assert len(failed) == 1, "a chord fails once, if its parts do not fail at the same moment"


def test_a_group_called_back_runs_when_the_part_that_failed_is_sent_again(flows: Workflows) -> None:
    with role(flows.settings, "reviewer"), flows.worker():
        callback = group(flows.s("collect"), flows.s("collect"))
        chord([flows.s("give", 1), flows.s("fragile", 2)], callback).apply_async()
        until(lambda: flows.in_review(), what="a part in review")
        flows.mend()
        flows.send_again(1)
        _ended(flows, [1, 2], [1, 2])


def test_a_part_of_a_chord_in_another_database_is_in_review(
    flows: Workflows, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACKLINE_DATABASE_URL", f"sqlite:///{tmp_path / 'another.db'}")
    settings.cache_clear()
    with flows.worker():
        chord([flows.s("give", 1)], flows.s("collect")).apply_async()
        assert "need the same ACKLINE_DATABASE_URL" in dead(client).headers[wire.REASON]


def test_a_part_whose_result_cannot_be_written_down_is_in_review(flows: Workflows, client: Client) -> None:
    with flows.worker():
        chord([flows.s("give", 1), flows.s("unserialisable")], flows.s("collect")).apply_async()
        letter = dead(client)
    assert letter.headers[wire.REASON].startswith("it ran to its end, but its result cannot be stored:")
    assert client.ready(DEAD) == 0
    assert flows.collected() == []


def test_the_process_that_was_to_publish_the_callback_dies(flows: Workflows) -> None:
    """With Celery's own chords the part is known as successful by then, so it is acked, and nothing calls back."""
    with role(flows.settings, "reviewer"), flows.worker():
        chord([flows.s("give", 1), flows.s("give", 2)], flows.s("collect-deadly")).apply_async()
        until(lambda: flows.in_review(), what="the last part in review")
        assert flows.open_chords() == 1
        flows.mend()
        flows.send_again(1)
        _ended(flows, [1, 2])


# --- results ----------------------------------------------------------------------------------------------------------


def test_results_of_groups_and_chords_can_be_waited_for(flows: Workflows) -> None:
    with role(flows.settings, "reviewer"), flows.worker():
        assert group(flows.s("give", value) for value in (1, 2)).apply_async().get(timeout=90) == [1, 2]
        result = chord([flows.s("give", 1), flows.s("fragile", 2)], flows.s("collect")).apply_async()

        def state() -> str:
            return str(flows.app.AsyncResult(result.id).state)

        until(lambda: state() == "FAILURE", what="the chord to have failed")
        flows.mend()
        flows.send_again(1)
        until(lambda: state() == "SUCCESS", what="the callback to have run")
        assert flows.app.AsyncResult(result.id).get(timeout=90) == [1, 2]
