"""Files that handlers make of an upload or a message, fetched from the gateway: `GET /v1/files/{id}/{name}`.

They are in the storage of uploads. A file is known by the id of what it was made of, and a name of its handler's
choice; where it is kept follows from the two. So nothing has to remember it, and a repeated delivery writes the same
file again.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from datetime import datetime, timedelta
from functools import lru_cache
from typing import IO, BinaryIO
from urllib.parse import quote

from ackline.infra.errors import AcklineError
from ackline.infra.settings import Settings
from ackline.infra.wire import now, uuid8
from ackline.producer.uploads import Storage, UploadNotFound

#: Names that mean the same in a path, a header and every file system.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class NoSuchFile(AcklineError):
    """There is no such file: it has not been made, or has been removed."""


def keep_file(settings: Settings, of: str, name: str, content: IO[bytes]) -> None:
    """Keep *content*, from where it stands, as the file *name* of the upload or message whose id is *of*.

    It takes the place of a former one at once, and stays until somebody removes it. name: up to 100 letters, digits,
    dots, dashes and underscores; its ending says what kind of file it is.
    Raises `ValueError` for another name, `StorageUnavailable`.
    """
    Storage(settings.uploads).replace(_id(of, name), content)


def open_file(settings: Settings, of: str, name: str) -> BinaryIO:
    """The contents of a file, for reading. The caller closes it. Raises `NoSuchFile`."""
    try:
        return Storage(settings.uploads).open(_id(of, name))
    except (UploadNotFound, ValueError):
        raise NoSuchFile(f"There is no file {name[:100]!r} of {of[:100]!r}.") from None


def remove_file(settings: Settings, of: str, name: str) -> None:
    """Remove a file for good; one that is gone already is no error. Raises `ValueError` for what is no name."""
    Storage(settings.uploads).remove(_id(of, name))


def _id(of: str, name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} is no name of a file: letters, digits, dots, dashes and underscores, 100 at most.")
    return uuid8(f"file\x00{name}\x00{of}")


def link(settings: Settings, of: str, name: str) -> str:
    """An address under which anybody who has it can fetch the file, for `ACKLINE_LINK_DAYS`.

    It is signed with a secret that is in the gateway's database. Raises `DatabaseUnavailable`.
    """
    expires = now() + timedelta(days=settings.link_days)
    return settings.gateway_url + _links(settings.database).path(of, name, expires)


@lru_cache(maxsize=1)
def _links(database_url: str) -> Links:
    from ackline.infra import database  # only who makes links needs one
    from ackline.infra.secrets import secret

    with database.opened(database_url) as engine:
        return Links(secret(engine, SECRET))


#: Name of the secret that links are signed with.
SECRET = "files"  # noqa: S105


class Links:
    """Signs and checks addresses of files with one secret, which all who use a database share."""

    def __init__(self, secret: bytes) -> None:
        self._keyed = hmac.new(secret, digestmod=hashlib.sha256)

    def path(self, of: str, name: str, expires: datetime) -> str:
        """Where the file is until *expires*, as a path with its proof."""
        until = int(expires.timestamp())
        return f"/v1/files/{quote(of)}/{name}?expires={until}&signature={self._signature(of, name, until)}"

    def prove(self, signature: str, of: str, name: str, until: int) -> bool:
        """Whether *signature* is the one of this file and time, in Unix seconds. That the time is over is not asked."""
        return hmac.compare_digest(signature.encode(), self._signature(of, name, until).encode())

    def _signature(self, of: str, name: str, until: int) -> str:
        mac = self._keyed.copy()
        mac.update(f"{name}\n{until}\n{of}".encode("utf-8", "surrogateescape"))
        return base64.urlsafe_b64encode(mac.digest())[:22].decode()
