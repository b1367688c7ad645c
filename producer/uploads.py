"""Uploaded files: the message that tells of one, and the storage that keeps it.

A file is kept under an id of our own; nothing that a client wrote becomes part of a path. It is written beside its
place and moved there when it is whole, so a file that can be opened is one that arrived. It stays until a handler
removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import threading
from contextlib import suppress
from typing import IO, Any, BinaryIO, cast

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, Field

from ackline.infra.data_folder import LEAST_FREE_BYTES
from ackline.infra.errors import AcklineError, ConfigurationError
from ackline.infra.settings import Settings
from ackline.infra.wire import uuid7
from ackline.producer.message import message

#: Of the storage's folder: where files are written.
_INCOMING = "incoming"
#: Bytes that are copied at once.
_CHUNK = 256 * 1024
_ID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
#: What an operating system says when a disk, a quota, or a file has no room left.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@message("file.uploaded")
class FileUploaded(BaseModel):
    """A file has been uploaded. Open it with `open_upload`; never by its `name`, which the client chose."""

    upload_id: str = Field(pattern=rf"^{_ID}$", description="UUIDv7")
    name: str = Field(min_length=1, description="what the client calls it, without a path; at most 255 bytes")
    content_type: str = Field(description="MIME type; the contents agree with it")
    size: int = Field(gt=0, description="bytes")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the contents, in hexadecimal")
    url: str = Field(description="where the storage has it, as fsspec writes it")


class UploadNotFound(AcklineError):
    """There is no such upload: it never arrived as a whole, or has been removed."""


class StorageUnavailable(AcklineError):
    """The storage of uploads cannot be written."""


class StorageFull(StorageUnavailable):
    """The storage of uploads has no room left."""


def open_upload(settings: Settings, upload_id: str) -> BinaryIO:
    """The contents of an upload, for reading. The caller closes it. Raises `UploadNotFound`."""
    return Storage(settings.uploads).open(upload_id)


def remove_upload(settings: Settings, upload_id: str) -> None:
    """Remove an upload for good; one that is gone already is no error."""
    Storage(settings.uploads).remove(upload_id)


class Storage:
    """A folder of uploads, on this machine or wherever fsspec reaches. Thread-safe; every call may block."""

    def __init__(self, url: str) -> None:
        """url: as fsspec reads it, `file:///srv/uploads`, `s3://bucket/uploads`. Raises `ConfigurationError`."""
        try:
            found, root = url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ConfigurationError(f"ACKLINE_UPLOADS_URL cannot be used: {error}.") from None
        self.files: Any = found
        self.root = str(root).rstrip("/")
        self.is_local = isinstance(found, LocalFileSystem)

    def remove_orphans(self) -> None:
        """Remove what a crash left half written. Raises `StorageUnavailable`.

        That is known only where files can be locked, on this machine; elsewhere let the storage expire `incoming/`.
        """
        if not self.is_local:
            return
        try:
            for path in self.files.ls(f"{self.root}/{_INCOMING}", detail=False):
                self._remove_orphan(path)
        except FileNotFoundError:  # there was no upload yet
            pass
        except OSError as error:
            raise self.failure(error) from None

    def _remove_orphan(self, path: str) -> None:
        try:
            with self.files.open(path, "rb") as file:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.files.rm_file(path)
        except (BlockingIOError, FileNotFoundError):  # another gateway is writing it; or was just done with it
            pass

    def create(self, upload_id: str) -> Incoming:
        """A file to write an upload to. Nothing is there before the first write."""
        return Incoming(self, f"{self.root}/{_INCOMING}/{_checked(upload_id)}", self.path(upload_id))

    def replace(self, file_id: str, content: IO[bytes]) -> None:
        """Write what *content* still holds, and put it into the place of what may be there, when it is whole.

        Who opens it gets the one or the other; a failure leaves the former one. Raises `StorageUnavailable`.
        """
        # A name of its own: several may replace the same file at once.
        incoming = Incoming(self, f"{self.root}/{_INCOMING}/{uuid7()}", self.path(file_id), replaces=True)
        try:
            while chunk := content.read(_CHUNK):
                incoming.write(chunk)
            incoming.write(b"")  # an empty file is one too
            incoming.keep()
        finally:
            incoming.discard()

    def path(self, upload_id: str) -> str:
        """Where a whole upload is. Raises `UploadNotFound` for what is no id."""
        return f"{self.root}/{_checked(upload_id)}"

    def url(self, upload_id: str) -> str:
        """The same as a URL."""
        return str(self.files.unstrip_protocol(self.path(upload_id)))

    def open(self, upload_id: str) -> BinaryIO:
        """The contents of an upload, for reading. Raises `UploadNotFound`."""
        try:
            return cast(BinaryIO, self.files.open(self.path(upload_id), "rb"))
        except FileNotFoundError:
            raise UploadNotFound(f"There is no upload {upload_id} in {self.root}: it has been removed.") from None

    def remove(self, upload_id: str) -> None:
        """Remove an upload; one that is gone already is no error."""
        with suppress(FileNotFoundError):
            self.files.rm_file(self.path(upload_id))

    def check_room(self) -> None:
        """Raise `StorageFull` while a local disk has so little room that Ackline's own database may soon have none."""
        if self.is_local and shutil.disk_usage(self.root).free < LEAST_FREE_BYTES:
            raise StorageFull("The disk of the uploads is full.")

    def failure(self, error: OSError) -> StorageUnavailable:
        """What *error* means."""
        if error.errno in _FULL:
            return StorageFull("The disk of the uploads is full.")
        return StorageUnavailable(f"The storage of uploads cannot be written: {error.strerror or error}.")


class Incoming:
    """An upload while it arrives: `write` as often as wanted, then `keep` or `discard`, on any thread."""

    def __init__(self, storage: Storage, temporary: str, place: str, *, replaces: bool = False) -> None:
        """replaces: whether another file may be in that place, which is to stay when this one is discarded."""
        self._storage = storage
        self._replaces = replaces
        self._temporary = temporary
        self._place = place
        self._lock = threading.Lock()
        self._file: Any = None
        self._over = False

    def write(self, data: bytes) -> None:
        """Append. Raises `StorageUnavailable`."""
        with self._lock:
            if self._over:
                raise StorageUnavailable("The upload was given up.")
            try:
                if self._file is None:
                    self._file = self._create()
                self._storage.check_room()
                self._file.write(data)
            except OSError as error:
                raise self._storage.failure(error) from None

    def _create(self) -> Any:
        files = self._storage.files
        if not self._storage.is_local:
            return files.open(self._temporary, "wb")
        files.makedirs(files._parent(self._temporary), exist_ok=True)
        while True:
            file = files.open(self._temporary, "wb")
            # Tells a gateway that starts now that this is no orphan; one that was quicker has removed it.
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                return file
            file.close()

    def keep(self) -> None:
        """Put it into its place, whole and, on this machine, on the disk. Raises `StorageUnavailable`."""
        with self._lock:
            try:
                if self._storage.is_local:
                    self._file.flush()
                    os.fsync(self._file.fileno())
                    self._move()  # before the lock goes
                    self._file.close()
                else:
                    self._file.close()
                    self._move()
            except OSError as error:
                raise self._storage.failure(error) from None
            self._over = True

    def _move(self) -> None:
        self._storage.files.mv(self._temporary, self._place)
        if self._storage.is_local:
            folder = os.open(self._storage.root, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def discard(self) -> None:
        """Leave nothing behind, unless it was kept. Waits for a write that is under way; may be called again."""
        with self._lock:
            if self._over:
                return
            self._over = True
            if self._file is None:
                return
            with suppress(OSError):  # what was buffered does not fit any more
                self._file.close()
            for path in (self._temporary,) if self._replaces else (self._temporary, self._place):
                with suppress(FileNotFoundError):
                    self._storage.files.rm_file(path)


def _checked(upload_id: str) -> str:
    if re.fullmatch(_ID, upload_id) is None:
        raise UploadNotFound(f"{upload_id!r} is no id of an upload.")
    return upload_id
