"""The Django app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from importlib.util import find_spec

from asgiref.sync import sync_to_async
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


def with_connections(ctx: Context) -> AbstractContextManager[None] | AbstractAsyncContextManager[None]:
    """Around each handler, as around a request: the connections of its thread may be too old by now, or lost."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _of_this_thread()
    return _of_coroutines()


@contextmanager
def _of_this_thread() -> Iterator[None]:
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()


@asynccontextmanager
async def _of_coroutines() -> AsyncIterator[None]:
    """Those of the thread in which Django runs the queries of all coroutines."""
    close = sync_to_async(close_old_connections)
    await close()
    try:
        yield
    finally:
        await close()
