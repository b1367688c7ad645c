"""The data folder of `ackline up`: it can be written, has room, and only one `ackline up` works in it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ackline.infra.errors import AcklineError

#: Free space below which nothing is started. RabbitMQ itself stops taking messages at 50 MB.
LEAST_FREE_BYTES = 64 * 1024 * 1024

_LOCK = "up.lock"


class DataFolderUnusable(AcklineError):
    """The data folder cannot be used: says why and what to do."""


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Make *folder* and hold it alone while the block runs.

    Raises `DataFolderUnusable` when it cannot be written, is full, or another `ackline up` holds it. A "disk full" out
    of the block is told in the same way.
    """
    try:
        with _writable(folder) as lock:
            _take(lock, folder)
            yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(folder) from None
        raise


def _writable(folder: Path) -> IO[str]:
    """The lock file of *folder*, open: the proof that something can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(folder)
        return (folder / _LOCK).open("a+")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataFolderUnusable(
            f"The data folder {folder} cannot be written ({error.strerror}): "
            "give its user the right to, or choose another with ACKLINE_DATA_DIR."
        ) from None


def _check_room(folder: Path) -> None:
    if shutil.disk_usage(folder).free < LEAST_FREE_BYTES:
        raise _full(folder)


def _full(folder: Path) -> DataFolderUnusable:
    return DataFolderUnusable(
        f"The disk of the data folder {folder} is full: free at least {LEAST_FREE_BYTES // 2**20} MiB, "
        "or choose another folder with ACKLINE_DATA_DIR."
    )


def _take(lock: IO[str], folder: Path) -> None:
    """Lock the file, and write in it who did."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        pid = lock.read().strip() or "unknown"
        raise DataFolderUnusable(
            f"Another `ackline up` (process {pid}) already runs on the data folder {folder}: "
            "stop it, or choose another folder with ACKLINE_DATA_DIR."
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
