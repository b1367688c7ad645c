"""The properties of a message, decoded when somebody looks and kept as they came.

Stands where pika has `BasicProperties` (it has what pika asks of one: `INDEX` and `encode`), because pika's decoder
raises on headers that the broker accepts; see `ackline.infra.table`. Texts stay bytes: a message id that is not
UTF-8 is sent on unchanged.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Self

from ackline.infra.table import Table, scan, text

PERSISTENT = 2

#: (name, bit of the property flags, kind) in the order of the wire. AMQP 0-9-1, 4.2.6.1 and the class `basic`.
_FIELDS: tuple[tuple[str, int, str], ...] = (
    ("content_type", 1 << 15, "text"),
    ("content_encoding", 1 << 14, "text"),
    ("headers", 1 << 13, "table"),
    ("delivery_mode", 1 << 12, "octet"),
    ("priority", 1 << 11, "octet"),
    ("correlation_id", 1 << 10, "text"),
    ("reply_to", 1 << 9, "text"),
    ("expiration", 1 << 8, "text"),
    ("message_id", 1 << 7, "text"),
    ("timestamp", 1 << 6, "long"),
    ("type", 1 << 5, "text"),
    ("user_id", 1 << 4, "text"),
    ("app_id", 1 << 3, "text"),
    ("cluster_id", 1 << 2, "text"),
)
_NAMES = tuple(name for name, _, _ in _FIELDS)
_NO_HEADERS = Table()


@lru_cache(maxsize=256)
def _present(flags: int) -> tuple[tuple[str, str], ...]:
    """The fields that these flags announce: (name, kind)."""
    return tuple((name, kind) for name, flag, kind in _FIELDS if flags & flag)


class _Field:
    """A property, for as long as the instance has no value of it: not read yet, or absent."""

    def __init__(self, name: str, absent: Any) -> None:
        self._name = name
        self._absent = absent

    def __get__(self, instance: Properties | None, owner: type) -> Any:
        if instance is None:
            return self
        if instance._unread:
            instance._parse()
        return instance.__dict__.get(self._name, self._absent)


class Properties:
    """Basic properties. Read them as attributes; `copy` changes some of them.

    content_type, content_encoding, correlation_id, reply_to, expiration, message_id, type, user_id, app_id, cluster_id:
    bytes or None. headers: `Table`, empty when absent. delivery_mode, priority: int or None. timestamp: int (UTC
    seconds, any 64 bits) or None.
    """

    #: The AMQP class `basic`; pika writes it into the header frame.
    INDEX = 60

    #: As a header frame carries them; None of those that were made of values.
    _raw: bytes | None
    #: Whether `_raw` has not been read yet.
    _unread: bool
    content_type: bytes | None
    content_encoding: bytes | None
    headers: Table
    delivery_mode: int | None
    priority: int | None
    correlation_id: bytes | None
    reply_to: bytes | None
    expiration: bytes | None
    message_id: bytes | None
    timestamp: int | None
    type: bytes | None
    user_id: bytes | None
    app_id: bytes | None
    cluster_id: bytes | None

    def __init__(self, **fields: Any) -> None:
        """Properties with *fields* set; a str becomes UTF-8 bytes, a mapping of headers a `Table`.

        Raises ValueError for a text longer than the 255 bytes that AMQP allows, TypeError for an unknown field.
        """
        self._raw = None
        self._unread = False
        for name, _, kind in _FIELDS:
            value = fields.pop(name, None)
            if kind == "text" and value is not None:
                value = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
                if len(value) > 255:
                    raise ValueError(f"{name} has {len(value)} bytes; AMQP allows 255")
            elif kind == "table" and not isinstance(value, Table):
                value = Table.of(value or {})
            setattr(self, name, value)
        if fields:
            raise TypeError(f"no such property: {', '.join(fields)}")

    @classmethod
    def from_wire(cls, raw: bytes) -> Self:
        """Properties as a header frame carries them (flags and values). Costs nothing until one is read."""
        self = cls.__new__(cls)
        self._raw = raw
        self._unread = True
        return self

    def _parse(self) -> None:
        """Read every field; those after a place where the bytes end too early are absent. Never raises."""
        raw = self._raw or b""
        flags = int.from_bytes(raw[:2])
        at, size = 2, len(raw)
        more = flags & 1
        while more and at + 2 <= size:  # AMQP allows further flag words; basic has no use for them
            more = raw[at + 1] & 1
            at += 2
        values = self.__dict__
        for name, kind in _present(flags):
            if at >= size:
                break
            if kind == "text":
                end = at + 1 + raw[at]
                values[name] = raw[at + 1 : end]
            elif kind == "table":
                end = at + 4 + int.from_bytes(raw[at : at + 4])
                values[name] = Table.parse(raw[at + 4 : end])
            else:
                end = at + (1 if kind == "octet" else 8)
                values[name] = int.from_bytes(raw[at:end])
            at = end
        self._unread = False

    @property
    def has_headers(self) -> bool:
        """Whether there are any headers; does not look at them."""
        return bool(self._raw[0] & 0x20) if self._raw else len(self.headers) > 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Properties.from_wire, (self.wire,)

    @property
    def wire(self) -> bytes:
        """Flags and values as a header frame carries them."""
        return self._raw if self._raw is not None else b"".join(self.encode())

    @property
    def is_whole(self) -> bool:
        """Whether the broker can read them; it closes the connection on a value that is cut short or of no known kind.

        What is nested within the headers is not looked at.
        """
        raw = self.wire
        flags = int.from_bytes(raw[:2])
        at = 2
        for _, flag, kind in _FIELDS:
            if not flags & flag:
                continue
            flags ^= flag
            if kind == "table":
                end = at + 4 + int.from_bytes(raw[at : at + 4])
                if not scan(raw[at + 4 : end])[1]:
                    return False
                at = end
            elif kind == "text":
                at += 1 + int.from_bytes(raw[at : at + 1])
            else:
                at += 1 if kind == "octet" else 8
        return at == len(raw) and not flags

    def encode(self) -> list[bytes]:
        """Flags and values in pieces, as pika asks for them."""
        if self._raw is not None:
            return [self._raw]
        flags = 0
        pieces = [b""]
        for name, flag, kind in _FIELDS:
            value = getattr(self, name)
            if value is None or (kind == "table" and not len(value)):
                continue
            flags |= flag
            if kind == "text":
                pieces.append(bytes((len(value),)) + value)
            elif kind == "table":
                raw = value.raw
                pieces.append(len(raw).to_bytes(4) + raw)
            else:
                pieces.append(value.to_bytes(1 if kind == "octet" else 8))
        pieces[0] = flags.to_bytes(2)
        return pieces

    def copy(self, **changes: Any) -> Properties:
        """These properties with *changes*; None removes one."""
        return Properties(**{name: getattr(self, name) for name in _NAMES} | changes)

    def decoded(self) -> dict[str, Any]:
        """Those that are set, as Python values for people to read: texts as str. Never raises."""
        shown: dict[str, Any] = {}
        for name, _, kind in _FIELDS:
            value = getattr(self, name)
            if kind == "table":
                value = value.decoded() or None
            elif kind == "text" and value is not None:
                value = text(value)
            if value is not None:
                shown[name] = value
        return shown

    def __repr__(self) -> str:
        return f"Properties({self.decoded()!r})"


for _name, _, _kind in _FIELDS:
    setattr(Properties, _name, _Field(_name, _NO_HEADERS if _kind == "table" else None))
