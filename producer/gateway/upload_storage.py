"""The storage of uploads, for the event loop: what blocks runs in threads of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import ParamSpec, TypeVar

from ackline.infra.settings import Settings
from ackline.producer.gateway.problems import Refusal, unavailable
from ackline.producer.uploads import Storage, StorageFull, StorageUnavailable

log = logging.getLogger(__name__)

#: Writes that are under way at once, for all uploads. A slow disk holds up nothing but uploads.
_WRITERS = 4

P = ParamSpec("P")
R = TypeVar("R")


class UploadStorage:
    """Where the uploads of one gateway go, and the threads that write them."""

    def __init__(self, settings: Settings) -> None:
        """Removes what a crash left half written. Raises `ConfigurationError`."""
        self.storage = Storage(settings.uploads)
        try:
            self.storage.remove_orphans()
        except StorageUnavailable as error:  # messages can be served all the same
            log.warning("half-written uploads cannot be removed: %s", error)
        self._writers = ThreadPoolExecutor(_WRITERS, "uploads")

    async def do(self, step: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a step that blocks. Raises `Refusal` (503, 507) for what the storage cannot do."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._writers, lambda: step(*args, **kwargs))
        except StorageFull as error:
            raise Refusal(HTTPStatus.INSUFFICIENT_STORAGE, f"{error} The file was not stored.") from None
        except StorageUnavailable as error:
            raise unavailable(f"{error} The file was not stored.") from None

    def close(self) -> None:
        """Finish what is being written."""
        self._writers.shutdown()
