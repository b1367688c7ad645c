"""The names that the whole of Ackline shares with the broker, and so with the management UI.

One vhost is one Ackline, so no name carries a prefix of an application. A reader of the management UI
can tell from each name what the exchange or queue is for.
"""

MESSAGES = "ackline.messages"
"""Topic exchange: where everything enters. Upstream clients may write here, and for tracked messages below."""

TRACKED = "ackline.tracked"
"""Topic exchange: the other way in, for tracked messages. It leads to `ackline.messages`, and a copy to `ACCEPTED`."""

ACCEPTED = "ackline.accepted"
"""Queue: a copy of each message that came by `ackline.tracked`, for the record of what was accepted."""

UNROUTED = "ackline.unrouted"
"""Fanout exchange and queue: what nobody consumes, and what returns to a consumer that is gone."""

RETURN = "ackline.return"
"""Direct exchange: the way back to exactly one consumer, by its name, for retries and redrives."""

DEAD = "ackline.dead"
"""Fanout exchange and queue: what the reviewer takes into review."""

OUTCOMES = "ackline.outcomes"
"""Topic exchange and queue: what became of redriven and tracked messages."""

CONTROL = "ackline.control"
"""Fanout exchange: what running workers are told at once, such as that a consumer is paused."""

JOBS = "ackline.jobs"
"""Queue: jobs, which Celery runs. Further ones are named `ackline.jobs.<name>`."""

BEAT = "ackline.beat"
"""Queue without messages: the beat that consumes it, exclusively, is the active one."""

RESERVED_PREFIX = "ackline."
"""No consumer may have a name that begins so."""

#: Retry tiers: (name of the exchange and of its queue, delay in seconds), shortest first. A delay is rounded up
#: to the next tier; one beyond the last is parked there again on its return, without an attempt.
RETRY_TIERS: tuple[tuple[str, int], ...] = (
    ("ackline.retry.1s", 1),
    ("ackline.retry.5s", 5),
    ("ackline.retry.15s", 15),
    ("ackline.retry.1m", 60),
    ("ackline.retry.5m", 300),
    ("ackline.retry.15m", 900),
    ("ackline.retry.1h", 3600),
)


def job_queue(name: str | None) -> str:
    """The queue of the jobs of that name; None: the one that jobs go to when nothing else is said."""
    return JOBS if name is None else f"{JOBS}.{name}"


def is_job_queue(queue: str) -> bool:
    """Whether it is a queue of jobs."""
    return queue == JOBS or queue.startswith(f"{JOBS}.")


def retry_tier(delay: float) -> tuple[str, int]:
    """The tier that holds a message for *delay* seconds: the shortest that is not shorter, else the longest."""
    for tier in RETRY_TIERS:
        if delay <= tier[1]:
            return tier
    return RETRY_TIERS[-1]


def tier_within(delay: float) -> str:
    """The longest tier that is over in *delay* seconds, or half a second later; else the shortest.

    For what is parked again until it is due, and so is never early and at most about a second late.
    """
    within = [name for name, seconds in RETRY_TIERS if seconds <= delay + 0.5]
    return within[-1] if within else RETRY_TIERS[0][0]
