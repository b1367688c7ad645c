"""Schedules: jobs and messages that are due at certain times, each time once.

    from ackline.consumers.schedules import schedule

    schedule("daily-mail", "0 8 * * *", daily_mail, timezone="Asia/Shanghai")
    schedule("probe", "every 30s", ProbeAsked(host="a"), missed="run once")

What runs is a *tick*: the schedule, and the time for which it was planned. `ackline beat` writes each one into the
database in one transaction: a row for the tick, of which there can be no second, and one in the outbox, which the
relay publishes (`rows`). So neither several beats, nor one that was stopped and woke up, nor a clock that jumps can
double a tick. One beat is active at a time (`leadership`), so that they do not all do the same work.

Declared next to the job, in `ackline.toml`, or by `ackline schedules add`.
"""

from ackline.consumers.schedules.due import Missed
from ackline.consumers.schedules.schedule import Schedule, schedule

__all__ = ["Missed", "Schedule", "schedule"]
