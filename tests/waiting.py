"""Waiting in tests: for a condition, with a deadline, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

#: Seconds that a condition gets by default. Generous, since a busy machine is slow; a good run never waits so long.
DEADLINE = 90.0

_STEP = 0.02


def until(condition: Callable[[], Result | None], *, deadline: float = DEADLINE, what: str = "the condition") -> Result:
    """Call *condition* until what it returns is true, and return that.

    Fails with `AssertionError`, naming *what* and the last value, after *deadline* seconds. An `AssertionError` of the
    condition itself counts as "not yet", so that a condition may be a function of assertions (returning true).
    """
    end = time.monotonic() + deadline
    while True:
        last: object
        try:
            last = result = condition()
            if result:
                return result
        except AssertionError as error:
            last = error
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline:g} s for {what}; the last value was {last!r}")
        time.sleep(_STEP)
