"""What a person sends back of a payload that they saw masked: where the mask still stands, the secret stays.

A secret is only ever put back where it was. In a list whose items were moved, an item is known again by what was shown
of it; where that does not tell which one it is, the person has to write the secret itself.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ackline.consumers.masking import MASK
from ackline.consumers.shape import Shape
from ackline.dlq import document
from ackline.dlq.condition import ABSENT, spelled
from ackline.dlq.errors import Fault

_Path = tuple[str | int, ...]
_NOTHING = "it is masked, and there is no secret to keep: write the value"
_WHICH = "the list has changed, and it is not clear which secret to keep here: write the value"


def unmasked(edited: Any, original: Any, shape: Shape) -> tuple[Any, list[Fault]]:
    """*edited* with the secrets of *original* where it has `MASK` for them; and where there is none to put.

    original: `ABSENT` when there is none.
    """
    faults: list[Fault] = []
    return _unmasked(edited, original, shape, (), faults), faults


def _unmasked(edited: Any, original: Any, shape: Shape, path: _Path, faults: list[Fault]) -> Any:
    if isinstance(edited, dict):
        known = original if isinstance(original, dict) else {}
        return {
            name: _unmasked(inner, known.get(name, ABSENT), shape.at(name), (*path, name), faults)
            for name, inner in edited.items()
        }
    if isinstance(edited, list):
        return _items(edited, original if isinstance(original, list) else [], shape.item, path, faults)
    if edited != MASK or shape.shows_text:
        return edited
    if original is not ABSENT and original is not None and shape.shown(original) == MASK:
        return original
    faults.append(Fault(spelled(path), _NOTHING))
    return edited


def _items(edited: list[Any], original: list[Any], shape: Shape, path: _Path, faults: list[Fault]) -> list[Any]:
    if not any(map(_holds_mask, edited)):
        return edited
    before, after = [_looks(shape.shown(item)) for item in original], [_looks(item) for item in edited]
    places: dict[str, list[int]] = defaultdict(list)
    for number, looks in enumerate(before):
        places[looks].append(number)
    stayed = set(after)
    items = []
    for index, item in enumerate(edited):
        place = _place(index, after, before, places, stayed)
        if place is None and _holds_mask(item):
            faults.append(Fault(spelled((*path, index)), _WHICH if original else _NOTHING))
            items.append(item)
        else:
            items.append(_unmasked(item, ABSENT if place is None else original[place], shape, (*path, index), faults))
    return items


def _place(
    index: int, after: Sequence[str], before: Sequence[str], places: dict[str, list[int]], stayed: set[str]
) -> int | None:
    """Which original item the edited one at *index* is; None when that cannot be told."""
    alike = places.get(after[index], [])
    if len(after) == len(before) and (index in alike or (not alike and before[index] not in stayed)):
        return index
    return alike[0] if len(alike) == 1 else None


def _looks(shown: Any) -> str:
    return json.dumps(document.plain(shown), sort_keys=True)


def _holds_mask(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_mask, value.values()))
    return any(map(_holds_mask, value)) if isinstance(value, list) else bool(value == MASK)
