"""Files in. They are written as they arrive, checked, and told of by a message of type `file.uploaded`."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from ackline.infra.settings import Settings
from ackline.infra.wire import uuid7
from ackline.producer.gateway import file_name, parameters
from ackline.producer.gateway.content import HEAD, Content
from ackline.producer.gateway.form import Form
from ackline.producer.gateway.messages import Accepted, accepted, answer, entry_of
from ackline.producer.gateway.parameters import Options
from ackline.producer.gateway.problems import Refusal, documented
from ackline.producer.gateway.service import Service, service
from ackline.producer.message import type_of
from ackline.producer.uploads import FileUploaded, Incoming

router = APIRouter()

TYPE = type_of(FileUploaded)
#: The name of a file without one.
_UNNAMED = "unnamed"
#: Bytes that are handed to the disk at once; an upload holds about twice as many in memory.
_CHUNK = 256 * 1024
#: Bytes of a form beside its file: boundaries, headers, other fields.
_FORM_BYTES = 64 * 1024
#: Seconds without a byte, and seconds in all, after which an upload is given up.
SILENCE_SECONDS, UPLOAD_SECONDS = 30.0, 3600.0
#: Of a body that is refused, how much is still read, and for how many seconds, so that its sender comes to read the
#: answer: a connection that is closed while it sends is reset, and the answer with it (RFC 9112, 9.6).
_LINGER_BYTES, _LINGER_SECONDS = 64 * 1024 * 1024, 5.0


class AcceptedUpload(Accepted):
    """The file is stored, and the message that tells of it is durable."""

    upload: FileUploaded


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
_UPLOAD: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}, "*/*": _BINARY}},
    "parameters": [
        {
            "name": "name",
            "in": "query",
            "description": "The file's name, where the body is the file itself.",
            "schema": {"type": "string"},
        },
        parameters.IDEMPOTENCY_KEY,
        *parameters.TRAVELLING,
    ],
}


@router.post(
    "/v1/uploads",
    status_code=202,
    response_model=AcceptedUpload,
    summary="Upload one file",
    openapi_extra=_UPLOAD,
    responses=documented(400, 408, 409, 507),
)
async def upload(request: Request) -> Response:
    """Store the file, publish `file.uploaded`, and answer when both are durable.

    The body is multipart/form-data with one file, or the file itself with its Content-Type and `?name=`.
    """
    body = _body(request)
    try:
        return await _upload(request, body)
    except Refusal as refusal:
        # Who waits for "100 Continue" has sent nothing yet, and need not.
        if "expect" in request.headers or not await _is_soon_over(body):
            refusal.headers["Connection"] = "close"
        raise


async def _upload(request: Request, body: AsyncIterator[bytes]) -> Response:
    served = service(request)
    caller = served.keys.caller(request)
    caller.require(TYPE)
    _check_origin(request, served.settings)
    travelling = parameters.travelling(request)
    incoming = served.uploads.storage.create(upload_id := uuid7())
    try:
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                file = await _Reception(request, served, incoming, upload_id).read(body)
        except TimeoutError:
            raise _too_slow(f"took more than {UPLOAD_SECONDS / 60:g} minutes") from None

        async def work(message_id: str, again: bool = False) -> dict[str, Any]:
            await served.uploads.do(incoming.keep)
            try:
                entry = entry_of(served, file, message_id, travelling, Options())
                state = await served.acceptance.accept(entry)
            except Refusal:  # nothing tells of it
                await served.uploads.do(served.uploads.storage.remove, upload_id)
                raise
            return accepted(served, entry, state, tracked=served.stamps.of(file).track) | {"upload": file.model_dump()}

        key = request.headers.get("idempotency-key")
        if key is None:
            return answer(await work(uuid7()))
        asked = json.dumps([TYPE, file.name, file.content_type, file.sha256, travelling.get("correlation_id")]).encode()
        return answer(*await served.idempotency.once(caller.name, key, asked, work))
    finally:
        # Shielded: a request that is cancelled, when the gateway stops, leaves nothing behind either.
        await asyncio.shield(served.uploads.do(incoming.discard))


class _Reception:
    """One file while it arrives."""

    def __init__(self, request: Request, served: Service, incoming: Incoming, upload_id: str) -> None:
        self._served = served
        self._settings = served.settings
        self._incoming = incoming
        self._upload_id = upload_id
        self._content_type = request.headers.get("content-type", "")
        self._form = Form(self._content_type) if parameters.content_type(request) == "multipart/form-data" else None
        self._length = request.headers.get("content-length", "")
        self._given_name = request.query_params.get("name", "")
        self._name = ""
        self._content: Content | None = None
        self._buffer = bytearray()
        self._size = 0
        self._hash = hashlib.sha256()
        self._has_begun = False

    async def read(self, body: AsyncIterator[bytes]) -> FileUploaded:
        """All of it. Raises `Refusal`."""
        most = self._settings.max_upload_bytes + (_FORM_BYTES if self._form else 0)
        if self._length.isdecimal() and int(self._length) > most:
            raise self._too_large()
        if self._form is None:
            self._learn(self._given_name, self._content_type)
        read = 0
        async for chunk in body:
            read += len(chunk)
            if read > most:
                raise self._too_large()
            await self._take(chunk if self._form is None else self._form.feed(chunk))
        if self._form is not None:
            self._form.end()
        if not self._size:
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "The file is empty.")
        await self._served.uploads.do(self._write, bytes(self._buffer), last=True)
        assert self._content is not None  # noqa: S101 - there were bytes
        return FileUploaded(
            upload_id=self._upload_id,
            name=self._name,
            content_type=self._content.kind,
            size=self._size,
            sha256=self._hash.hexdigest(),
            url=self._served.uploads.storage.url(self._upload_id),
        )

    def _learn(self, name: str, declared: str) -> None:
        self._name = file_name.checked(name) if name else _UNNAMED
        self._content = Content(declared, self._settings.upload_types)

    async def _take(self, data: bytes) -> None:
        if self._form is not None and self._form.is_known and self._content is None:
            self._learn(self._form.name, self._form.declared)
        self._size += len(data)
        if self._size > self._settings.max_upload_bytes:
            raise self._too_large()
        self._buffer += data
        if len(self._buffer) >= _CHUNK:
            written, self._buffer = bytes(self._buffer), bytearray()
            await self._served.uploads.do(self._write, written)

    def _write(self, data: bytes, *, last: bool = False) -> None:
        """Check and store, in a thread: a file that is not what it is said to be never touches the disk."""
        assert self._content is not None  # noqa: S101 - the headers come before the data
        if not self._has_begun:
            self._has_begun = True
            self._content.begin(data[:HEAD])
        self._content.check(data, last=last)
        self._hash.update(data)
        self._incoming.write(data)

    def _too_large(self) -> Refusal:
        return Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The file has more than {self._settings.max_upload_bytes:,} bytes (ACKLINE_MAX_UPLOAD_BYTES).",
        )


async def _body(request: Request) -> AsyncIterator[bytes]:
    """The body as it arrives. Raises `Refusal` when its sender falls silent or goes away."""
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise _too_slow(f"stopped for {SILENCE_SECONDS:g} seconds") from None
        except ClientDisconnect:
            raise Refusal(HTTPStatus.BAD_REQUEST, "The body was not sent to its end.") from None
        if chunk is None:
            return
        yield chunk


def _too_slow(why: str) -> Refusal:
    return Refusal(HTTPStatus.REQUEST_TIMEOUT, f"The upload {why}: it was given up.")


async def _is_soon_over(body: AsyncIterator[bytes]) -> bool:
    """Read on and throw away, within bounds; whether that was all."""
    read = 0
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            async for chunk in body:
                read += len(chunk)
                if read > _LINGER_BYTES:
                    return False
    except (TimeoutError, Refusal):
        return False
    return True


def _check_origin(request: Request, settings: Settings) -> None:
    """Refuse pages of other origins than those that are named.

    Browsers ask CORS before they send JSON, but not before they send a form or a text: without this, any page could
    upload to a gateway that takes calls without a key.
    """
    origin = request.headers.get("origin")
    if origin is None or origin in settings.cors_origins or urlsplit(origin).netloc == request.headers.get("host"):
        return
    raise Refusal(
        HTTPStatus.FORBIDDEN,
        f"Pages of {origin[:200]!r} may not upload here: their origin is not in ACKLINE_CORS_ORIGINS.",
    )
