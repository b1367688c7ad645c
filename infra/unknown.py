"""What is said of a name that the application does not have."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: Characters of an unknown name, and names beside it, that an answer repeats: whoever asks may be hostile.
_SHOWN, _LISTED = 80, 10


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """That there is no *kind* called *name*, in a sentence, with the likeliest of those that there are."""
    shown = repr(name[:_SHOWN])  # which may be ten times as long
    shown = shown if len(shown) <= _SHOWN + 2 and len(name) <= _SHOWN else shown[:_SHOWN] + "…"
    names = sorted(known)
    if not names:
        return f"There is no {kind} {shown}: ACKLINE_APP names no module that has any."
    near = difflib.get_close_matches(name, names) if len(name) <= 255 else []
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"There is no {kind} {shown}.{meant} There are: {', '.join(names[:_LISTED])}{more}."
