"""What differs between two versions of a message, field by field, for a person to read; secrets masked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from ackline.consumers.shape import Shape
from ackline.dlq import document
from ackline.dlq.condition import ROOT, spelled
from ackline.dlq.deadletter import clean
from ackline.dlq.document import NotJson
from ackline.infra import wire
from ackline.infra.terminal import plain

#: Fields that are listed at most, and bytes of a value.
MAX_FIELDS, MAX_VALUE = 200, 2000

Difference = dict[str, Any]
"""`{path, before, after}`: at *path*, such as `payload.total` or `headers.tenant`, was *before* and is *after*.

Without *before* there was nothing, without *after* there is nothing. `{more: true}` at the end: there are others.
"""

_OPEN = Shape([Any])


def of_payloads(before: bytes, after: bytes, shape: Shape | None) -> list[Difference]:
    """Where two payloads differ; one that is no JSON is one field. shape: what is masked of both."""
    if before == after:
        return []
    shape = shape or _OPEN
    try:
        documents = document.read(before), document.read(after)
    except NotJson:
        told = [shape.shown(clean(payload[: MAX_VALUE + 1])) for payload in (before, after)]
        return [{"path": ROOT, "before": _cut(told[0]), "after": _cut(told[1])}]
    return bounded(_between(*documents, shape, ()))


def of_headers(before: dict[str, Any], after: dict[str, Any]) -> list[Difference]:
    """Where two sets of decoded headers differ."""
    differences = _between(plain(before), plain(after), _OPEN, ())
    return bounded({**found, "path": f"headers{found['path'].removeprefix(ROOT)}"} for found in differences)


def bounded(differences: Iterator[Difference]) -> list[Difference]:
    """The first `MAX_FIELDS` of them, and whether there are more."""
    found = list(islice(differences, MAX_FIELDS))
    return [*found, {"more": True}] if next(differences, None) is not None else found


def _between(before: Any, after: Any, shape: Shape, path: tuple[str | int, ...]) -> Iterator[Difference]:
    if isinstance(before, dict) and isinstance(after, dict) and not shape.is_hidden:
        for name in before | after:
            inner, at = shape.at(name), (*path, name)
            if name not in after:
                yield _told(at, inner, before=before[name])
            elif name not in before:
                yield _told(at, inner, after=after[name])
            else:
                yield from _between(before[name], after[name], inner, at)
    elif isinstance(before, list) and isinstance(after, list) and not shape.is_hidden:
        for index, (one, other) in enumerate(zip(before, after, strict=False)):
            yield from _between(one, other, shape.item, (*path, index))
        for index in range(len(after), len(before)):
            yield _told((*path, index), shape.item, before=before[index])
        for index in range(len(before), len(after)):
            yield _told((*path, index), shape.item, after=after[index])
    elif not document.same(before, after):
        yield _told(path, shape, before=before, after=after)


def _told(path: tuple[str | int, ...], shape: Shape, **values: Any) -> Difference:
    shown = {when: _cut(document.plain(shape.shown(value))) for when, value in values.items()}
    return {"path": clean(spelled(path)), **shown}


def _cut(value: Any) -> Any:
    """*value*; the beginning of it, as text, when it is long."""
    written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return value if len(written.encode()) <= MAX_VALUE else wire.cut(written, MAX_VALUE)
