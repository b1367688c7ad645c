"""The mail sink's rules."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ackline.infra.errors import AcklineError
from ackline.infra.refusals import Refusal, Refusals


def test_a_rule_with_a_count_refuses_exactly_so_many_deliveries(tmp_path: Path) -> None:
    rules = Refusals(tmp_path)
    rules.refuse(Refusal("ada@example.test", 451, "busy", times=2))
    assert [rules.take("ada@example.test") is not None for _ in range(4)] == [True, True, False, False]
    assert rules.all() == []


def test_a_rule_without_a_count_holds_until_the_address_is_accepted(tmp_path: Path) -> None:
    rules = Refusals(tmp_path)
    rules.refuse(Refusal("ada@example.test", 550, "gone"))
    assert all(rules.take("ada@example.test") for _ in range(5))
    assert rules.accept("ada@example.test")
    assert rules.take("ada@example.test") is None
    assert not rules.accept("ada@example.test")


def test_an_address_is_refused_however_it_is_capitalised(tmp_path: Path) -> None:
    rules = Refusals(tmp_path)
    rules.refuse(Refusal(" Ada@Example.Test", 550, "gone"))
    assert rules.take("ADA@example.test") is not None


def test_a_rule_written_by_one_process_is_seen_by_another_at_its_next_delivery(tmp_path: Path) -> None:
    writing, running = Refusals(tmp_path), Refusals(tmp_path)
    assert running.take("ada@example.test") is None
    writing.refuse(Refusal("ada@example.test", 451, "busy", times=1))
    assert running.take("ada@example.test") is not None
    assert writing.all() == []


def test_deliveries_at_the_same_time_never_share_a_count(tmp_path: Path) -> None:
    Refusals(tmp_path).refuse(Refusal("ada@example.test", 451, "busy", times=30))
    refused: list[bool] = []

    def deliver() -> None:
        own = Refusals(tmp_path)
        refused.extend(own.take("ada@example.test") is not None for _ in range(10))

    threads = [threading.Thread(target=deliver) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(refused) == 30


def test_a_file_that_is_no_json_is_told_in_a_sentence_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "rules.json").write_text("{")
    with pytest.raises(AcklineError, match="delete the file to accept all mail"):
        Refusals(tmp_path).all()
