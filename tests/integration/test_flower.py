"""How Flower hears workers."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from ackline.consumers.jobs import flower
from ackline.consumers.jobs.app import Jobs, configuration
from ackline.infra.settings import Settings
from tests.broker import Vhost
from tests.connections import close, connections
from tests.waiting import until

#: Has a connection that is refused fail, and not wait for some seconds.
AT_ONCE = {"max_retries": 1, "interval_start": 0, "interval_step": 0}


def test_events_are_heard_soon_after_the_broker_was_away_for_many_tries(
    ackline_settings: Settings, vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower, "AGAIN_SECONDS", 0.01)
    app = Jobs("watching", set_as_current=False)
    app.conf.update(configuration(ackline_settings))
    heard: list[str] = []
    tries, away, over = 0, True, False

    connect = app.connection

    def connection() -> Any:
        nonlocal tries
        if over:
            raise SystemExit
        tries += 1
        return connect("amqp://127.0.0.1:1", transport_options=AT_ONCE) if away else connect()

    monkeypatch.setattr(app, "connection", connection)
    events = SimpleNamespace(capp=app, on_event=lambda event: heard.append(event["type"]))

    def listen() -> None:
        with contextlib.suppress(SystemExit):
            flower.listen(events)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    until(lambda: tries >= 20, what="it to try again and again")
    away = False

    def is_heard() -> bool:
        with connect() as speaking, app.events.Dispatcher(speaking) as dispatcher:
            dispatcher.send("worker-online")
        return bool(heard)

    until(is_heard, what="an event to be heard")
    over = True

    def has_ended() -> bool:
        # Its own among those that spoke, which are over, though some may still be listed.
        close(vhost, connections(vhost), missing_ok=True)
        return not thread.is_alive()

    until(has_ended, what="its connection to be closed, and no other to follow")
    assert set(heard) == {"worker-online"}
