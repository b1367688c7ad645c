"""AMQP field tables, decoded totally and kept as they came.

Any header that the broker accepts may arrive, and none may kill a role: pika's own decoder raises ValueError on a
timestamp of 10^13 and RecursionError on a table 3,000 deep, at every redelivery. So a table is *scanned* here, without
recursion, into names and raw values; a raw value is decoded only when somebody looks at it, to a bounded depth, and
what is sent on is the raw value, unchanged.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Self

#: Nested tables and arrays are shown to this depth; a person reads no deeper, and the stack stays small.
MAX_DEPTH = 16
TOO_DEEP = "…(nested too deep to show)"

#: Size in bytes of the values of a fixed size, by the octet that names their kind.
_FIXED = {
    **dict.fromkeys(b"V", 0),
    **dict.fromkeys(b"tbB", 1),
    **dict.fromkeys(b"sUu", 2),
    **dict.fromkeys(b"Iif", 4),
    **dict.fromkeys(b"D", 5),
    **dict.fromkeys(b"LldT", 8),
}
_SIZED = frozenset(b"SxAF")
_FORMATS = ("b", "B", ">h", ">h", ">H", ">i", ">I", ">q", ">q", ">f", ">d")
_NUMBERS = {kind: struct.Struct(form) for kind, form in zip(b"bBsUuIiLlfd", _FORMATS, strict=True)}


def text(raw: bytes) -> str:
    """Bytes that should be UTF-8, as text that any database and terminal takes: what is not shows as `\\xNN`."""
    return raw.decode("utf-8", "backslashreplace").replace("\x00", "\\x00")


def scan(raw: bytes) -> tuple[list[tuple[bytes, bytes]], bool]:
    """Split the inside of a table into (name, raw value) pairs, where a raw value begins with its kind's octet.

    Returns the pairs up to the first octet that is not AMQP, and whether all of *raw* was read. Never raises.
    """
    pairs: list[tuple[bytes, bytes]] = []
    at, end = 0, len(raw)
    while at < end:
        name_end = at + 1 + raw[at]
        value_end = _value_end(raw, name_end)
        if value_end is None:
            return pairs, False
        pairs.append((raw[at + 1 : name_end], raw[name_end:value_end]))
        at = value_end
    return pairs, True


def _value_end(raw: bytes, at: int) -> int | None:
    """Where the value that begins at *at* ends; None when it is cut short or of no known kind."""
    if at >= len(raw):
        return None
    kind = raw[at]
    if kind in _SIZED:
        if at + 5 > len(raw):
            return None
        end = at + 5 + int.from_bytes(raw[at + 1 : at + 5])
    elif kind in _FIXED:
        end = at + 1 + _FIXED[kind]
    else:
        return None
    return end if end <= len(raw) else None


def decode(value: bytes, depth: int = MAX_DEPTH) -> Any:
    """A raw value as Python: str, int, float, bool, None, Decimal, datetime, bytes, list or dict. Never raises.

    A time that no calendar holds stays an int (seconds); what lies deeper than *depth* becomes a sentence.
    """
    kind, data = value[0], value[1:]
    if kind == 0x53:  # S
        return text(data[4:])
    if kind in _NUMBERS:
        return _NUMBERS[kind].unpack(data)[0]
    if kind == 0x74:  # t
        return data != b"\x00"
    if kind == 0x78:  # x
        return data[4:]
    if kind == 0x54:  # T
        return _time(int.from_bytes(data))
    if kind == 0x44:  # D
        return Decimal(int.from_bytes(data[1:], signed=True)).scaleb(-data[0])
    if kind == 0x56:  # V
        return None
    if depth <= 0:
        return TOO_DEEP
    if kind == 0x46:  # F
        return {text(name): decode(inner, depth - 1) for name, inner in scan(data[4:])[0]}
    return [decode(inner, depth - 1) for inner in _items(data[4:])]


def _items(raw: bytes) -> Iterable[bytes]:
    at = 0
    while (end := _value_end(raw, at)) is not None:
        yield raw[at:end]
        at = end


def _time(seconds: int) -> datetime | int:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return seconds


def encode(value: Any) -> bytes:
    """A Python value as a raw value.

    Takes str, bool, int of 64 bits, float, bytes, None, datetime (to the second), Decimal, lists, and mappings with str
    names. A `Table` goes in as it is.
    Raises TypeError for anything else, struct.error for an int beyond 64 bits.
    """
    if isinstance(value, str):
        return _sized(b"S", value.encode("utf-8", "surrogateescape"))
    if isinstance(value, bool):
        return b"t\x01" if value else b"t\x00"
    if isinstance(value, int):
        return struct.pack(">cq", b"l", value)
    if isinstance(value, float):
        return struct.pack(">cd", b"d", value)
    if isinstance(value, bytes):
        return _sized(b"x", value)
    if value is None:
        return b"V"
    if isinstance(value, Table):
        return _sized(b"F", value.raw)
    if isinstance(value, Mapping):
        return _sized(b"F", Table.of(value).raw)
    if isinstance(value, datetime):
        return struct.pack(">cQ", b"T", int(value.timestamp()))
    if isinstance(value, Decimal):
        scale = max(-int(value.as_tuple().exponent), 0)
        return struct.pack(">cBi", b"D", scale, int(value.scaleb(scale)))
    if isinstance(value, list):
        return _sized(b"A", b"".join(map(encode, value)))
    raise TypeError(f"an AMQP header cannot hold a {type(value).__name__}")


def _sized(kind: bytes, data: bytes) -> bytes:
    return kind + len(data).to_bytes(4) + data


class Table:
    """An AMQP field table that is kept raw. Immutable; what changes it returns another one.

    A name that occurs twice is kept twice and read as its first occurrence, as RabbitMQ reads it.
    """

    __slots__ = ("_pairs", "complete")

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]] = (), complete: bool = True) -> None:
        self._pairs = tuple(pairs)
        #: False when the table on the wire held something that is not AMQP, from there on dropped.
        self.complete = complete

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """The inside of a table as it came from the wire. Never raises."""
        return cls(*scan(raw))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """A table of Python values; see `encode` for what it takes."""
        return cls((name.encode()[:255], encode(value)) for name, value in values.items())

    @property
    def raw(self) -> bytes:
        """The inside of the table as it goes on the wire."""
        return b"".join([bytes((len(name),)) + name + value for name, value in self._pairs])

    def __len__(self) -> int:
        return len(self._pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self._pairs == other._pairs

    def __hash__(self) -> int:
        return hash(self._pairs)

    def __repr__(self) -> str:
        return f"Table({self.decoded()!r})"

    def __contains__(self, name: str) -> bool:
        return self.raw_value(name) is not None

    def names(self) -> list[bytes]:
        """The names, as they came."""
        return [name for name, _ in self._pairs]

    def raw_value(self, name: str) -> bytes | None:
        """The raw value of *name*, None when the table lacks it."""
        wanted = name.encode()
        for found, value in self._pairs:
            if found == wanted:
                return value
        return None

    def get(self, name: str) -> Any:
        """The decoded value of *name*, None when the table lacks it. Never raises."""
        value = self.raw_value(name)
        return None if value is None else decode(value)

    def text(self, name: str) -> str | None:
        """The value of *name* if it is a non-empty text, else None: for headers that may lie."""
        value = self.get(name)
        return value if isinstance(value, str) and value else None

    def number(self, name: str) -> int | None:
        """The value of *name* if it is a whole number, else None: for headers that may lie."""
        value = self.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def flag(self, name: str) -> bool:
        """Whether *name* holds a boolean true."""
        return self.get(name) is True

    def table(self, name: str) -> Table:
        """The table that *name* holds; an empty one when it holds none."""
        value = self.raw_value(name)
        return Table.parse(value[5:]) if value is not None and value[:1] == b"F" else Table()

    def decoded(self) -> dict[str, Any]:
        """All of it as Python values, for people to read. Never raises."""
        return {text(name): decode(value) for name, value in reversed(self._pairs)}

    def select(self, keep: Any) -> Table:
        """The pairs whose name (bytes) *keep* accepts."""
        return Table(pair for pair in self._pairs if keep(pair[0]))

    def plus(self, values: Mapping[str, Any]) -> Table:
        """This table with *values* set, replacing those of the same names."""
        replaced = {name.encode() for name in values}
        kept = (pair for pair in self._pairs if pair[0] not in replaced)
        return Table((*kept, *Table.of(values)._pairs))

    def filled(self, other: Table) -> Table:
        """This table followed by the raw pairs of *other* whose names it lacks."""
        known = self.names()
        return Table((*self._pairs, *(pair for pair in other._pairs if pair[0] not in known))) if other else self
