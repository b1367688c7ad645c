"""The Django app."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from django.apps import AppConfig
from django.core import checks
from django.db import close_old_connections
from django.utils.module_loading import autodiscover_modules

from ackline.consumers import Context
from ackline.consumers.django.settings import configure_jobs, take_settings, without_effect
from ackline.consumers.middleware import use


class AcklineConfig(AppConfig):  # type: ignore[misc]
    """Takes the settings, and imports what the project's apps declare."""

    name = "ackline.consumers.django"
    label = "ackline"

    def ready(self) -> None:
        """Django calls it once, when all models are there."""
        take_settings()
        if find_spec("celery") is not None:
            configure_jobs()
            checks.register(without_effect)
        use(with_connections)
        autodiscover_modules("messages", "tasks")


@contextmanager
def with_connections(ctx: Context) -> Iterator[None]:
    """Around each handler, as around a request: the connections of its thread may be too old by now, or lost."""
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()
