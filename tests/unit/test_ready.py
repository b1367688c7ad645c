"""How a role says that it is ready."""

from __future__ import annotations

import os

import pytest

from ackline.infra.ready import VARIABLE, ready


def test_the_listener_reads_one_line_and_then_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    readable, writable = os.pipe()
    monkeypatch.setenv(VARIABLE, str(writable))
    ready()
    ready()
    assert os.read(readable, 100) == b"ready\n"
    assert os.read(readable, 100) == b""
    os.close(readable)
    assert VARIABLE not in os.environ


def test_without_a_listener_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    ready()


def test_a_listener_that_is_gone_or_a_wrong_number_is_no_reason_to_die(monkeypatch: pytest.MonkeyPatch) -> None:
    readable, writable = os.pipe()
    os.close(readable)
    for number in (str(writable), "9999", "none"):
        monkeypatch.setenv(VARIABLE, number)
        ready()
