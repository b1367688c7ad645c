"""The examples of the page for handler authors, run as they stand, without a broker: retries, time limits, context."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from ackline.consumers import registered
from ackline.consumers.calling import way_of
from ackline.consumers.consumer import Consumer
from ackline.consumers.delivery import Delivery
from ackline.consumers.handling import Report, Settlement, handle
from ackline.consumers.stopping import Stopping
from ackline.infra import wire
from ackline.infra.names import DEAD, MESSAGES
from ackline.infra.properties import Properties
from ackline.producer.message import type_of
from tests.documented import write_files


def _example(section: str, name: str, consumer: str, folder: Path) -> Consumer:
    """The consumer in a file of a section."""
    write_files("handlers.md", section, folder)
    spec = importlib.util.spec_from_file_location(f"documented_{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return registered()[consumer]


def _deliver(consumer: Consumer, attempt: int = 1, *, track: bool = False, **payload: Any) -> Delivery:
    (model,) = [model for model in consumer.types.values() if model is not None]
    headers: dict[str, Any] = {wire.TRACK: True} if track else {}
    given = Properties(message_id="m-1", type=type_of(model), headers=headers)
    return Delivery(MESSAGES, type_of(model), Properties.from_wire(given.wire), json.dumps(payload).encode())


def _goes_to(settlement: Settlement) -> str:
    (outgoing,) = settlement.outgoing
    return outgoing.exchange


@pytest.mark.parametrize(
    ("status", "goes_to"),
    [(201, None), (410, {DEAD}), (429, {"ackline.retry.1m"}), (503, {"ackline.retry.1s", "ackline.retry.5s"})],
)
def test_the_documented_retries(
    status: int, goes_to: set[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def post(url: str, **_: Any) -> httpx.Response:
        return httpx.Response(status, headers={"Retry-After": "30"}, request=httpx.Request("POST", url))

    monkeypatch.setattr(httpx, "post", post)
    payments = _example("Retries", "payments", "payments", tmp_path)
    settlement = handle(way_of(payments, "host:1"), _deliver(payments, iban="DE89 3704"))
    if goes_to is None:
        assert settlement == Settlement()
    else:
        assert _goes_to(settlement) in goes_to


def test_the_documented_time_limit(tmp_path: Path) -> None:
    reports = _example("Time limits", "reports", "reports", tmp_path)
    assert reports.time_limit == 30
    assert handle(way_of(reports, "host:1"), _deliver(reports, month="May")) == Settlement()
    impatient = way_of(replace(reports, time_limit=0.1), "host:1")
    assert _goes_to(handle(impatient, _deliver(reports, month="the longest"))) == "ackline.retry.1m"


def test_the_documented_context(tmp_path: Path) -> None:
    imports = _example("Context", "imports", "imports", tmp_path)
    stopping = Stopping()
    told: list[dict[str, Any]] = []

    def tell(_: Delivery, report: Callable[[], Report]) -> None:
        told.append(json.loads(report().event))

    way = way_of(imports, "host:1", stopping=stopping, tell=tell)
    settlement = handle(way, _deliver(imports, track=True, rows=4))
    assert [found["progress_text"] for found in told] == [f"{row} of 4 rows" for row in range(4)]
    assert (_goes_to(settlement), settlement.outgoing[0].routing_key) == (MESSAGES, "import.finished")
    stopping.set()
    parked = handle(way, _deliver(imports, rows=4))
    assert _goes_to(parked) == "ackline.retry.1s"
    assert wire.ATTEMPT not in parked.outgoing[0].properties.headers.decoded()
