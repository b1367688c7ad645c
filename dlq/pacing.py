"""How many messages of a redrive may be sent now, and when it stops by itself. Pure: facts in, a step out.

**Canary.** A run begins with one message, then five, then 25, then 125, and then all others. The next ones are sent
only when all before have been handled, so of a bug that is not fixed at most six messages learn. Any failure in these
stages stops the run; after them, the failure that a message was in review for does, when it returns.

**Rate.** What is due is counted from `paced_at`, so that a rate of 0.1 a second works as well as one of 1,000. What
could not be sent in time (the reviewer was down, the queue too long) is not caught up with beyond one second's worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

#: What each canary stage sends, all before it included.
STAGES = (1, 6, 31, 156)
#: The stage in which all may be sent.
ALL = 0
#: A queue with more messages than this holds, or this many seconds' worth at the redrive's rate, gets no more of it
#: until half of that is gone.
FULL, FULL_SECONDS = 1000, 10.0
#: The same for a redrive that has no rate.
FULL_UNPACED = 5000


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a running redrive.

    sent: in all; run_from: of them, before this run; paced_from: before `paced_at`. planned: whether there are more.
    unanswered: whether what this run sent has all been answered. trouble: why it has to stop, if so. full: why it has
    to wait, if so.
    """

    rate: float | None
    paced_at: datetime
    paced_from: int
    sent: int
    run_from: int
    stage: int
    planned: bool
    unanswered: bool
    trouble: str | None = None
    full: str | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Send up to *limit* more, in that *stage*. pace: the rate counts anew from so many sent, a second ago."""

    limit: int
    stage: int
    pace_anew: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now; *why*, where a person would ask."""

    why: str | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """A person is to look first."""

    why: str


Step: TypeAlias = Send | Wait | Stop


def next_step(facts: Facts, now: datetime, most: int) -> Step:
    """What is to be done now. most: messages to be sent in one step."""
    if facts.trouble:
        return Stop(facts.trouble)
    if not facts.planned:
        return Wait()
    stage, sent = facts.stage, facts.sent - facts.run_from
    if stage != ALL and sent >= stage:
        if facts.unanswered:
            return Wait(f"canary: waits for what becomes of the first {sent}" if sent > 1 else _FIRST)
        stage = following(stage)
    if facts.full:
        return Wait(facts.full)
    limit = most if stage == ALL else min(most, stage - sent)
    if facts.rate is None:
        return Send(limit, stage)
    due = int((now - facts.paced_at).total_seconds() * facts.rate) + 1 - (facts.sent - facts.paced_from)
    burst = max(int(facts.rate), 1)
    limit = min(limit, due, burst)
    return Send(limit, stage, pace_anew=due > burst) if limit > 0 else Wait()


_FIRST = "canary: waits for what becomes of the first message"


def following(stage: int) -> int:
    """The stage after *stage*."""
    later = [reached for reached in STAGES if reached > stage]
    return later[0] if later else ALL


def full_at(rate: float | None) -> int:
    """The number of messages in a queue at which a redrive with that *rate* waits."""
    return FULL_UNPACED if rate is None else max(FULL, int(rate * FULL_SECONDS))


def seconds_for(messages: int, rate: float | None, unpaced: float) -> float:
    """How long *messages* take at *rate*; *unpaced* is what can be expected of one that has none."""
    return messages / (rate or unpaced)


#: How far back the pace begins anew: a second's worth is due at once then.
ANEW = timedelta(seconds=1)
