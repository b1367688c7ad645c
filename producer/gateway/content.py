"""What an uploaded file is: the type that it is said to have, held against its bytes."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Any

import filetype

from ackline.producer.gateway.problems import Refusal

#: Bytes at the beginning of a file in which its signature is.
HEAD = 8192
#: What clients say that do not know.
_UNKNOWN = ("", "application/octet-stream", "binary/octet-stream")
#: Other names of the same type, as clients write them.
_ALIASES = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "application/x-pdf": "application/pdf",
    "application/x-zip-compressed": "application/zip",
    "text/json": "application/json",
}
#: Types whose signature says something narrower.
_NARROWER = {"image/png": ("image/apng",)}
#: Bytes that no text holds: control characters but backspace, tab, line feed, form feed, carriage return and escape.
_NO_TEXT = bytes(set(range(32)) - {8, 9, 10, 12, 13, 27}) + b"\x7f"
#: What a JSON document begins with (RFC 8259), after blanks.
_JSON_BEGINS = tuple(bytes((first,)) for first in b'{["-0123456789tfn')


def is_textual(kind: str) -> bool:
    """Whether files of this type are text."""
    return kind.startswith("text/") or kind == "application/json" or kind.endswith(("+json", "+xml", "/xml"))


class Content:
    """The type of one file, checked while it arrives."""

    def __init__(self, declared: str, allowed: Sequence[str]) -> None:
        """declared: the type that it is said to have. Raises `Refusal` (415) when that is none of those *allowed*."""
        self._allowed = allowed
        named = declared.partition(";")[0].strip().lower()
        #: Its MIME type; empty until its beginning has told.
        self.kind = "" if named in _UNKNOWN else _ALIASES.get(named, named)
        if self.kind:
            self._check_allowed()
        self._decoder: codecs.IncrementalDecoder | None = None

    def begin(self, head: bytes) -> None:
        """Check its first bytes, `HEAD` or more unless it is shorter. Raises `Refusal` (415, 422)."""
        found = _signature(head)
        if not self.kind:
            if found is None:
                raise Refusal(
                    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                    "What kind of file it is was not said, and its contents do not tell: give it a Content-Type. "
                    f"This gateway takes {_listed(self._allowed)}.",
                )
            self.kind = found
            self._check_allowed()
        elif is_textual(self.kind):
            if self.kind == "application/json" or self.kind.endswith("+json"):
                self._decoder = codecs.getincrementaldecoder("utf-8")()
                if not head.lstrip(b" \t\r\n").startswith(_JSON_BEGINS):
                    raise self._mismatch("does not begin like a JSON document")
        elif self.kind in _SIGNED and found != self.kind and not _is_narrower(found, self.kind, head):
            raise self._mismatch(f"looks like {found}" if found else "does not begin like one")

    def check(self, data: bytes, *, last: bool = False) -> None:
        """Check what comes, the first bytes included. last: nothing comes after it. Raises `Refusal` (422)."""
        if is_textual(self.kind) and len(data.translate(None, _NO_TEXT)) != len(data):
            raise self._mismatch("holds bytes that no text holds")
        if self._decoder is not None:
            try:
                self._decoder.decode(data, last)
            except UnicodeDecodeError:
                raise self._mismatch("is not UTF-8") from None

    def _check_allowed(self) -> None:
        if not any(fnmatchcase(self.kind, pattern.lower()) for pattern in self._allowed):
            raise Refusal(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"Files of the type {self.kind[:80]!r} are not taken here; {_listed(self._allowed)} are.",
            )

    def _mismatch(self, why: str) -> Refusal:
        return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"The file is said to be {self.kind}, but its content {why}.")


def _signature(head: bytes) -> str | None:
    """The type that the first bytes tell of."""
    found: Any = filetype.guess(head[:HEAD])
    return None if found is None else str(found.mime)


#: Types that a signature tells.
_SIGNED = frozenset(str(kind.MIME) for kind in filetype.TYPES) - {"application/octet-stream"}


def _is_narrower(found: str | None, kind: str, head: bytes) -> bool:
    if kind == "application/zip":  # office documents, e-books, and what else is a zip archive
        return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))
    return found in _NARROWER.get(kind, ())


def _listed(types: Sequence[str]) -> str:
    return ", ".join(types)
