"""How soon a connection that is half open is noticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ackline.infra.connection import Heartbeats

SECONDS = 15


class Clockwork:
    """What a checker knows of its connection; time passes when the test says so."""

    bytes_received = bytes_sent = 0

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.given_up: float | None = None

    def _adapter_call_later(self, seconds: float, function: Callable[[], None]) -> None:
        self.timers.append((self.now + seconds, function))

    def _send_frame(self, frame: Any) -> None:
        self.bytes_sent += 8

    def _terminate_stream(self, error: Exception) -> None:
        self.given_up = self.now

    def run(self, until: float) -> None:
        while self.given_up is None and min(due for due, _ in self.timers) <= until:
            self.timers.sort(key=lambda timer: timer[0])
            self.now, function = self.timers.pop(0)
            function()


def test_silence_is_noticed_within_two_heartbeats_whenever_it_begins() -> None:
    for silent_from in (1.0, 14.9, 15.1, 22.0, 29.9, 30.1):
        connection = Clockwork()
        make: Any = Heartbeats
        make(connection, SECONDS)
        for beat in range(1, int(silent_from / (SECONDS / 2)) + 1):
            connection.run(beat * SECONDS / 2 - 0.1)
            connection.bytes_received += 8
        connection.run(1000)
        assert connection.given_up is not None
        assert connection.given_up - silent_from <= 2 * SECONDS


def test_a_broker_that_beats_late_by_less_than_half_a_period_is_not_given_up() -> None:
    connection = Clockwork()
    make: Any = Heartbeats
    make(connection, SECONDS)
    for beat in range(1, 100):
        connection.run(beat * SECONDS / 2 + SECONDS * 0.45)
        connection.bytes_received += 8
    assert connection.given_up is None
