"""What pytest finds of Ackline by itself (entry point `pytest11`): fixtures for the tests of those who use it.

It is loaded whenever pytest starts where Ackline is installed, so it imports nothing but pytest, and lives here because
`ackline.producer` brings pika and pydantic.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

import pytest


@pytest.fixture
def ackline_publisher() -> Iterator[Any]:
    """An `ackline.producer.testing.FakePublisher` of this test's own, closed after it."""
    [point] = entry_points(group="ackline.testing", name="publisher")
    with point.load()() as publisher:
        yield publisher


@pytest.fixture
def ackline_worker() -> Iterator[Any]:
    """Starts workers on a real broker, in a vhost of this test's own: an `ackline.consumers.testing.StartWorker`.

    Skips the test when no broker is configured.
    """
    from ackline.infra.errors import ConfigurationError
    from ackline.infra.settings import settings

    configured = settings()
    try:
        configured.broker  # noqa: B018
    except ConfigurationError as error:
        pytest.skip(str(error))
    [point] = entry_points(group="ackline.testing", name="worker")
    with point.load()() as start:
        yield start
