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
