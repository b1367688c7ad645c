"""What a message says, for a person, whoever sent it and whatever it holds. Pure, and total: it never raises.

JSON is indented, text is text, what is neither is shown in hexadecimal. What was compressed is shown uncompressed.
A Celery task is told by its headers (protocol 2) or its body (protocol 1). Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ackline.consumers.masking import MASK
from ackline.dlq import document
from ackline.dlq.document import NotJson
from ackline.infra.properties import Properties
from ackline.infra.table import text

#: Characters of a payload that are shown.
PREVIEW = 64 * 1024
#: Bytes of a payload that are read as a document, and that come out of a compressed one, at most.
MAX_READ = 1024 * 1024
#: Bytes that are shown in hexadecimal.
_HEX = 4096
#: What zlib takes for either format: 32 tells it to look which one it is.
_EITHER_FORMAT = zlib.MAX_WBITS | 32
_COMPRESSED = {"gzip": "gzip", "x-gzip": "gzip", "application/x-gzip": "gzip", "deflate": "deflate", "zlib": "deflate"}
_GZIP = b"\x1f\x8b\x08"
#: Half a surrogate pair, which JSON's escapes can write, and UTF-8 cannot.
_HALF = re.compile(r"[\ud800-\udfff]")
#: Control characters that no text has.
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_NO_LATIN_1 = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class Kind(StrEnum):
    """What a payload is."""

    EMPTY = "empty"
    JSON = "json"
    TEXT = "text"
    LATIN_1 = "latin-1"
    BINARY = "binary"
    #: Its contract hides something, and it cannot be shown without that.
    HIDDEN = "hidden"


@dataclass(frozen=True, slots=True)
class Task:
    """A Celery task. args, kwargs: JSON, or as text where Celery's own description is all that can be read."""

    name: str
    id: str
    args: Any
    kwargs: Any
    retries: int | None
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """A payload as a person reads it. size: its bytes as they came."""

    kind: Kind
    text: str
    #: Whether `text` is only its beginning.
    cut: bool
    size: int
    #: gzip or deflate: `text` is what was inside.
    encoding: str | None = None
    #: The JSON value; None when it is none, or too large.
    document: Any = None
    task: Task | None = None


def readable(
    properties: Properties, body: bytes, size: int | None = None, mask: Callable[[bytes], Any] | None = None
) -> Shown:
    """What *body* says.

    size: of the whole, when *body* is only its beginning. mask: what to show of a body of which something is hidden.
    """
    size = len(body) if size is None else size
    plain, is_whole, encoding = _inflated(properties, body, len(body) == size)
    if mask is not None:
        return _masked(mask, plain, is_whole, size, encoding)
    if not plain and is_whole:
        return Shown(Kind.EMPTY, "", False, size, encoding)
    try:
        if not is_whole or len(plain) > MAX_READ:
            raise NotJson
        found = _fit(document.plain(document.read(plain)))
    except NotJson:
        kind, shown, is_cut = _text(plain, is_whole)
        return Shown(kind, shown, is_cut, size, encoding, task=_described(properties))
    return _shown(found, size, encoding, _task(properties, found))


def task_name(properties: Properties, body: bytes) -> str | None:
    """The name of the Celery task that this is; None when it is none."""
    if (described := _described(properties)) is not None:
        return described.name
    if b'"task"' not in body or b'"kwargs"' not in body or len(body) > MAX_READ:
        return None
    try:
        found = _task_of_body(document.read(body))
    except NotJson:
        return None
    return None if found is None else found.name


def _shown(found: Any, size: int, encoding: str | None, task: Task | None = None) -> Shown:
    written = json.dumps(found, indent=2, ensure_ascii=False)
    return Shown(Kind.JSON, written[:PREVIEW], len(written) > PREVIEW, size, encoding, found, task)


def _masked(mask: Callable[[bytes], Any], plain: bytes, is_whole: bool, size: int, encoding: str | None) -> Shown:
    if not is_whole or len(plain) > MAX_READ:
        return Shown(Kind.HIDDEN, "It is too large to be shown without what its contract hides.", True, size, encoding)
    found = _fit(mask(plain))
    if found == MASK:
        return Shown(
            Kind.HIDDEN, "It is no message of its contract, so that all of it is hidden.", True, size, encoding
        )
    return _shown(found, size, encoding)


def _inflated(properties: Properties, body: bytes, is_whole: bool) -> tuple[bytes, bool, str | None]:
    """(what is inside, whether that is all of it, how it was compressed)."""
    said = text(properties.content_encoding or b"").strip().lower()
    encoding = _COMPRESSED.get(said) or _COMPRESSED.get((properties.headers.text("compression") or "").lower())
    if encoding is None and not body.startswith(_GZIP):
        return body, is_whole, None
    inflater = zlib.decompressobj(_EITHER_FORMAT)
    try:
        inside = inflater.decompress(body, MAX_READ + 1)
    except zlib.error:  # it says so, and is not
        return body, is_whole, encoding
    return inside, inflater.eof and len(inside) <= MAX_READ, encoding or "gzip"


def _text(body: bytes, is_whole: bool) -> tuple[Kind, str, bool]:
    """(what it is, as a person reads it, whether that is only the beginning)."""
    is_cut = not is_whole or len(body) > PREVIEW
    head = body[:PREVIEW]
    try:
        found = head.decode()
    except UnicodeDecodeError as error:
        # A character may have been cut in two at the end.
        found = head[: error.start].decode() if is_cut and len(head) - error.start < 4 else ""
    if found and not _CONTROLS.search(found):
        return Kind.TEXT, found, is_cut
    if not _NO_LATIN_1.search(head):
        return Kind.LATIN_1, head.decode("latin-1"), is_cut
    return Kind.BINARY, _hexadecimal(body[:_HEX]), not is_whole or len(body) > _HEX


def _hexadecimal(body: bytes) -> str:
    """Sixteen bytes a line, as `hexdump -C` writes them."""
    lines = []
    for at in range(0, len(body), 16):
        part = body[at : at + 16]
        letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{at:08x}  {part[:8].hex(' '):<23}  {part[8:].hex(' '):<23}  |{letters}|")
    return "\n".join(lines)


def _fit(value: Any) -> Any:
    """*value* with what UTF-8 cannot say shown as escapes."""
    if isinstance(value, str):
        return text(value.encode("utf-8", "backslashreplace")) if _HALF.search(value) else value
    if isinstance(value, list):
        return [_fit(inner) for inner in value]
    if isinstance(value, dict):
        return {_fit(name): _fit(inner) for name, inner in value.items()}
    return value


# --- Celery -----------------------------------------------------------------------------------------------------------


def _described(properties: Properties) -> Task | None:
    """The task that the headers of protocol 2 name, as they describe it."""
    headers = properties.headers
    name, task_id = headers.text("task"), headers.text("id")
    if name is None or task_id is None:
        return None
    described = headers.text("argsrepr") or "", headers.text("kwargsrepr") or ""
    return Task(name, task_id, *described, headers.number("retries"))


def _task(properties: Properties, body: Any) -> Task | None:
    described = _described(properties)
    if described is None:
        return _task_of_body(body)
    if isinstance(body, list) and len(body) == 3 and isinstance(body[0], list) and isinstance(body[1], dict):
        return Task(described.name, described.id, body[0], body[1], described.retries)
    return described


def _task_of_body(body: Any) -> Task | None:
    """The task that a body of protocol 1 is, or the result of one."""
    if not isinstance(body, dict):
        return None
    name, retries = body.get("task"), body.get("retries")
    args, kwargs = body.get("args"), body.get("kwargs")
    if not isinstance(name, str) or not name or not isinstance(args, list) or not isinstance(kwargs, dict):
        return None
    found = body.get("traceback")
    traceback = found if isinstance(found, str) else ""
    count = retries if isinstance(retries, int) and not isinstance(retries, bool) else None
    return Task(name, str(body.get("id") or ""), args, kwargs, count, traceback)
