"""The headers of an edit: a person sets the application's, and no others.

Ackline's own, the broker's, and those that would send a message elsewhere (`CC`, `BCC`) stay as they are. The key of a
message and its slot follow from its payload.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from ackline.dlq import document
from ackline.dlq.deadletter import clean
from ackline.dlq.errors import Fault, Invalid
from ackline.infra import wire
from ackline.infra.table import Table, text
from ackline.infra.terminal import plain

_KEYS = (wire.KEY.encode(), wire.SLOT.encode())


def of_application(headers: Table) -> dict[str, Any]:
    """Those of *headers* that an edit may set, by name, as JSON knows them."""
    return dict(sorted(plain(headers.select(_is_application).decoded()).items()))


def with_keys(headers: Table, keys: Mapping[str, Any]) -> Table:
    """*headers* with *keys* in place of the message's key and slot."""
    return headers.select(lambda header: header not in _KEYS).plus(keys)


def _is_application(header: bytes) -> bool:
    return wire.travels(header) and header not in _KEYS


def replaced(headers: Table, wanted: Mapping[str, Any]) -> Table:
    """*headers* with *wanted* in place of the application's. One that is not changed stays as it is on the wire.

    Raises `Invalid`.
    """
    faults = []
    new: dict[str, Any] = {}
    unchanged: set[bytes] = set()
    known = {text(header): header for header in headers.names() if _is_application(header)}
    shown = plain(headers.decoded())
    for header, value in document.plain(dict(wanted)).items():
        if header in known and document.same(shown[header], value):
            unchanged.add(known[header])
        elif fault := _header_fault(header, value):
            faults.append(Fault(f"headers.{clean(header)}", fault))
        else:
            new[header] = value
    if faults:
        told = "; ".join(f"{fault.path} {fault.message}" for fault in faults)
        raise Invalid(f"These headers cannot be set: {told}.", faults)
    return headers.select(lambda header: header in unchanged or not _is_application(header)).plus(new)


def _header_fault(header: str, value: Any) -> str | None:
    """Why a person cannot set it."""
    try:
        raw = header.encode()
        if not 0 < len(raw) <= 255:
            return "has no name of 1 to 255 bytes"
        if not _is_application(raw):
            return "is written by Ackline or by the broker, or would send the message elsewhere"
        Table.of({header: value})
    except (TypeError, ValueError, struct.error, RecursionError):
        return "holds what AMQP does not: it takes texts, numbers of 64 bits, true, false, null, lists and objects"
    return None
