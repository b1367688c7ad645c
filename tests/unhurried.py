"""An application for tests: its gateway waits for a confirm, however slow the broker is (see `tests.doors`)."""

from __future__ import annotations

from ackline.producer.gateway import acceptance

acceptance.CONFIRM_SECONDS = 60.0
