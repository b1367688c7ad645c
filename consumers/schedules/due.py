"""What a schedule has to run now: a pure function of its ticks, the time, and its rule for missed ones."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from ackline.consumers.schedules.timing import Timing, latest, ticks

#: Ticks that are run in one transaction at most.
BATCH = 100


class Missed(StrEnum):
    """What becomes of ticks that nobody ran within their grace: nothing, or one run in place of all of them."""

    SKIP = "skip"
    RUN_ONCE = "run once"


class Due(NamedTuple):
    """What is to be done at one look.

    run: the ticks to run, in order. skipped: the latest of those that were missed and are not run, if there are any.
    reached: nothing up to that tick is looked at again.
    """

    run: list[datetime]
    skipped: datetime | None
    reached: datetime


def due(timing: Timing, covered_to: datetime, now: datetime, missed: Missed, grace: timedelta) -> Due | None:
    """What is due of the ticks after *covered_to*; None: nothing.

    A tick that is up to *grace* late is run all the same, each one. What is later is missed.
    """
    late = latest(timing, covered_to, now - grace)
    run = [] if late is None or missed == Missed.SKIP else [late]
    run += ticks(timing, late or covered_to, now, BATCH)
    reached = run[-1] if run else late
    if reached is None:
        return None
    return Due(run, late if late not in run else None, reached)
