"""An outage of the database is told once, however often it is tried."""

from __future__ import annotations

import logging
import threading

import pytest

from ackline.infra.database import DatabaseUnavailable
from ackline.infra.outage import Outage


def test_an_outage_is_told_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stopping = threading.Event()
    stopping.set()  # so that no try has to be waited for
    outage = Outage("taking dead letters", stopping)
    outage.over()
    for _ in range(5):
        outage.wait(DatabaseUnavailable("The database is away."))
    outage.over()
    outage.over()
    outage.wait(DatabaseUnavailable("The database is away again."))
    assert [record.getMessage() for record in caplog.records] == [
        "taking dead letters waits: The database is away. Trying again until it works.",
        "taking dead letters goes on",
        "taking dead letters waits: The database is away again. Trying again until it works.",
    ]
    assert all(record.exc_info is None for record in caplog.records), "a sentence needs no stack"


def test_a_fault_of_ours_is_told_with_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    stopping = threading.Event()
    stopping.set()
    Outage("taking dead letters", stopping).wait(KeyError("x"))
    assert caplog.records[0].exc_info is not None
