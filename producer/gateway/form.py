"""The file in a `multipart/form-data` body (RFC 7578), taken out of it as it arrives."""

from __future__ import annotations

from http import HTTPStatus

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ackline.producer.gateway.problems import Refusal


class Form:
    """A form with one file. Feed it the body; it gives back the file's bytes, and knows its name and type."""

    def __init__(self, content_type: str) -> None:
        """content_type: the header, with the boundary. Raises `Refusal` (400)."""
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not boundary:
            raise _malformed("its Content-Type names no boundary")
        #: The file's name as the client wrote it, and the type that it is said to have; once `is_known`.
        self.name = ""
        self.declared = ""
        #: Whether the file's headers have been read.
        self.is_known = False
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = self._content_type = b""
        self._in_file = False
        self._ended = False
        self._data: list[bytes] = []
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _malformed(str(error)) from None

    def feed(self, chunk: bytes) -> bytes:
        """Read on; returns what of *chunk* belongs to the file. Raises `Refusal` (400, 422)."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed(str(error)) from None
        data = b"".join(self._data)
        self._data.clear()
        return data

    def end(self) -> None:
        """The body is over. Raises `Refusal` (400, 422) unless there was a whole form with a file."""
        if not self._ended:
            raise _malformed("it ends before its last boundary")
        if not self.is_known:
            raise Refusal(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                'The form has no file: a part with Content-Disposition: form-data; name="file"; filename="…".',
            )

    def _on_part_begin(self) -> None:
        self._disposition = self._content_type = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        header = bytes(self._header).lower()
        if header == b"content-disposition":
            self._disposition = bytes(self._value)
        elif header == b"content-type":
            self._content_type = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        filename = parse_options_header(self._disposition)[1].get(b"filename")
        self._in_file = bool(filename)  # browsers send an empty one when no file was chosen
        if not filename:
            return
        if filename.startswith(b'"'):  # a quote that nothing closes: a line break in a name, for one
            raise _malformed("the Content-Disposition of a part is broken off")
        if self.is_known:
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "The form has two files: send each in a request of its own.")
        self.is_known = True
        self.name = _text(filename)
        self.declared = self._content_type.decode("latin-1")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._data.append(data[start:end])

    def _on_end(self) -> None:
        self._ended = True


def _text(name: bytes) -> str:
    """A file's name: UTF-8, as browsers and the RFC have it, else bytes of an older character set."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")


def _malformed(why: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, f"The body is no multipart/form-data: {why.rstrip('.')}.")
