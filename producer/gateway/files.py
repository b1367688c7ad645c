"""Files out: what handlers made of an upload or a message (`ackline.producer.files`)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated, BinaryIO

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import StreamingResponse

from ackline.infra.secrets import secret
from ackline.infra.wire import now
from ackline.producer.files import SECRET, Links, NoSuchFile, open_file
from ackline.producer.gateway.problems import Refusal, documented, unavailable
from ackline.producer.gateway.service import Served, Service
from ackline.producer.message import type_of
from ackline.producer.uploads import FileUploaded

log = logging.getLogger(__name__)

#: What is said of a file, by its ending: only kinds that run no code in a browser.
_KINDS = {
    "csv": "text/csv; charset=utf-8",
    "jpg": "image/jpeg",
    "json": "application/json",
    "pdf": "application/pdf",
    "png": "image/png",
    "txt": "text/plain; charset=utf-8",
    "webp": "image/webp",
}
_UNKNOWN = "application/octet-stream"
#: Bytes that are read at once.
_CHUNK = 256 * 1024


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    served: Service = app.state.service
    app.state.links = Links(await asyncio.to_thread(secret, served.engine, SECRET))
    yield


router = APIRouter(lifespan=_lifespan)


@router.get(
    "/v1/files/{id:path}/{name}",
    summary="A file that a handler made",
    response_class=Response,
    responses=documented(401, 403, 404, 410) | {200: {"content": {_UNKNOWN: {}}, "description": "The file"}},
)
async def fetch(
    request: Request,
    served: Served,
    id: str,  # noqa: A002 - the name of the path parameter, which clients see
    name: str,
    expires: Annotated[int | None, Query(description="Of a link: Unix seconds.")] = None,
    signature: Annotated[str | None, Query(description="Of a link: opens this file without a key.")] = None,
) -> StreamingResponse:
    """The file *name* that was made of the upload or the message of that id; 404 until it is there.

    It takes a key that may upload, or a signed link.
    """
    if signature is None:
        served.keys.caller(request).require(type_of(FileUploaded))
    else:
        _check(request.app.state.links, signature, id, name, expires)
    try:
        file, size = await served.uploads.do(_open, served, id, name)
    except NoSuchFile as error:
        raise Refusal(HTTPStatus.NOT_FOUND, f"{error} It may not have been made yet.") from None
    except OSError as error:
        log.error("%s of %s cannot be read: %s", name, id, error)
        raise unavailable("The storage of files cannot be read.") from None
    kind = _KINDS.get(name.rpartition(".")[2], _UNKNOWN)
    shown = "inline" if kind.startswith(("image/", "text/plain")) else "attachment"
    headers = {
        "Content-Length": str(size),
        "Content-Disposition": f'{shown}; filename="{name}"',
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, no-cache",  # it may be made again
    }
    return StreamingResponse(_chunks(file), media_type=kind, headers=headers)


def _check(links: Links, signature: str, id_: str, name: str, expires: int | None) -> None:
    """Raise `Refusal` for what is no link to this file, or one whose time is over."""
    if expires is None or not links.prove(signature, id_, name, expires):
        raise Refusal(HTTPStatus.FORBIDDEN, "The signature is not the one of this file: use the link as it was given.")
    if expires < now().timestamp():
        raise Refusal(HTTPStatus.GONE, "The link has expired: ask for another one.")


def _open(served: Service, id_: str, name: str) -> tuple[BinaryIO, int]:
    file = open_file(served.settings, id_, name)
    size = file.seek(0, 2)
    file.seek(0)
    return file, size


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk
