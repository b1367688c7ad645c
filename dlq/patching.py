"""A JSON Patch (RFC 6902) that is applied to many payloads.

It comes from a person and is applied to what strangers wrote, so it is bounded: in operations, in size, and in what
`copy` makes grow. What it says of a failure holds no value of the payload. Who may not see what a contract hides may
set it, but has no `test`, `copy` or `move` of it, which would tell it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from jsonpatch import (
    InvalidJsonPatch,
    JsonPatch,
    JsonPatchPathNotFound,
    JsonPatchTestFailed,
    JsonPointer,
    JsonPointerException,
    PatchOperation,
)

from ackline.consumers.shape import Shape
from ackline.dlq import document
from ackline.dlq.document import NotJson
from ackline.dlq.errors import Fault, Invalid

#: Operations of a patch, and bytes of it, at most.
MAX_OPERATIONS, MAX_PATCH = 100, 256 * 1024
#: Bytes of a payload that a patch has made grow: what RabbitMQ 4 takes by default (`max_message_size`).
MAX_PAYLOAD = 16 * 1024 * 1024
#: Characters of a pointer that a sentence repeats.
_SHOWN = 100

#: What an operation needs besides `op` and `path`.
_NEEDS = {"add": "value", "replace": "value", "test": "value", "move": "from", "copy": "from", "remove": None}


class _Step(NamedTuple):
    """One operation. reads: what it tells or takes elsewhere, if it does."""

    name: str
    operation: PatchOperation
    reads: JsonPointer | None


class Patch:
    """A patch that can be applied. Made by `prepare`; safe on any thread."""

    def __init__(self, steps: list[_Step]) -> None:
        self._steps = steps

    def apply(self, payload: bytes, shape: Shape | None = None) -> bytes:
        """*payload* after the patch. Pure.

        shape: what of it whoever patches must not read; None: nothing. Raises `Invalid` when *payload* is no JSON, an
        operation does not apply to it or would read what is hidden, or it becomes too large.
        """
        try:
            changed = document.read(payload)
        except NotJson as error:
            raise Invalid(f"The payload is not JSON: {error}.") from None
        for number, step in enumerate(self._steps):
            why = None if shape is None else _tells(step, changed, shape)
            if why is None:
                try:
                    changed = step.operation.apply(changed)
                except Exception as error:  # whatever the library stumbles over, it is about this payload
                    why = _why(error)
                else:
                    why = _overgrown(step, changed)
            if why is not None:
                raise _invalid("The patch does not apply", number, f"{_shown(step)}: {why}")
        return document.write(changed)


def prepare(patch: Any) -> Patch:
    """A patch of what JSON knows: an array of operations. Raises `Invalid`, with a fault for each operation."""
    try:
        written = json.dumps(patch).encode()
        operations = document.read(written)
    except (TypeError, ValueError, RecursionError):
        operations, written = None, b""
    if not isinstance(operations, list) or not operations:
        raise Invalid('A patch is a JSON array of operations, such as [{"op": "remove", "path": "/total"}] (RFC 6902).')
    if len(operations) > MAX_OPERATIONS or len(written) > MAX_PATCH:
        raise Invalid(
            f"A patch has at most {MAX_OPERATIONS} operations and {MAX_PATCH:,} bytes; "
            f"this one has {len(operations):,} and {len(written):,}."
        )
    steps, faults = [], []
    for number, operation in enumerate(operations):
        try:
            steps.append(_step(operation))
        except (ValueError, InvalidJsonPatch, JsonPointerException) as error:
            faults.append(Fault(f"patch[{number}]", str(error)))
    if faults:
        raise Invalid(f"The patch cannot be used: {'; '.join(f'{at}: {why}' for at, why in faults)}.", faults)
    return Patch(steps)


def _step(operation: Any) -> _Step:
    name = operation.get("op") if isinstance(operation, Mapping) else None
    if not isinstance(name, str) or name not in _NEEDS:
        raise ValueError(f"it needs an op, one of {', '.join(_NEEDS)}")
    for needed in ("path", _NEEDS[name]):
        if needed is not None and needed not in operation:
            raise ValueError(f"{name} needs {needed!r}")
        if needed in ("path", "from") and not isinstance(operation[needed], str):
            raise ValueError(f"{needed} is a JSON Pointer, such as /total or /items/0")
    made = JsonPatch.operations[name](operation)
    read = {"test": "path", "move": "from", "copy": "from"}.get(name)
    return _Step(name, made, None if read is None else JsonPointer(operation[read]))


def _tells(step: _Step, payload: Any, shape: Shape) -> str | None:
    """Why *step* must not be carried out by whoever may only see what *shape* shows of *payload*."""
    if step.reads is None:
        return None
    try:
        found = step.reads.resolve(payload)
    except JsonPointerException:  # then there is nothing to tell
        return None
    there = _at(shape, step.operation.pointer)
    shown = _at(shape, step.reads).shown(found)
    stays = step.name != "test" and (there.is_hidden or document.same(there.shown(found), shown))
    if stays or document.same(found, shown):
        return None
    return f"{_cut(step.reads.path) or 'the whole payload'} is masked, and your role may set it, not read it"


def _at(shape: Shape, pointer: JsonPointer) -> Shape:
    for part in pointer.parts:
        shape = shape.at(part)
    return shape


def _overgrown(step: _Step, payload: Any) -> str | None:
    if step.name in ("test", "remove"):
        return None
    if document.is_too_deep(payload):
        return f"the payload would be nested more than {document.MAX_DEPTH} levels deep"
    if step.name == "copy" and len(document.write(payload)) > MAX_PAYLOAD:
        return f"the payload would be larger than {MAX_PAYLOAD:,} bytes"
    return None


def _why(error: Exception) -> str:
    """What went wrong, without the values that the library quotes."""
    if isinstance(error, JsonPatchTestFailed):
        return "something else is there, or nothing"
    if isinstance(error, (JsonPatchPathNotFound, JsonPointerException)):
        return "there is no such place"
    return "it is not possible there"


def _shown(step: _Step) -> str:
    return f"{step.name} {_cut(step.operation.location)}".rstrip()


def _cut(pointer: str) -> str:
    return pointer if len(pointer) <= _SHOWN else f"{pointer[:_SHOWN]}…"


def _invalid(what: str, number: int, why: str) -> Invalid:
    return Invalid(f"{what}: operation {number + 1}, {why}.", [Fault(f"patch[{number}]", why)])
