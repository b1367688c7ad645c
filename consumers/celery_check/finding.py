"""What the check says of an app."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """The worst that comes of it, the worst first."""

    LOSES = "loses"  # a task, a result or what is known of a failure is gone
    DUPLICATES = "duplicates"  # a task runs again though it was done, or without end
    DELAYS = "delays"  # a task runs later than it should, or the caller waits
    UNSAFE = "unsafe"  # strangers may run code


@dataclass(frozen=True, slots=True)
class Finding:
    """One setting that is at fault.

    rule: its name in the table. place: the task or the queue that has the setting; None for one of the app.
    value: the setting's, as Python writes it, without passwords. happens: what comes of it, in a sentence. fix: a line.
    """

    rule: str
    severity: Severity
    setting: str
    place: str | None
    value: str
    happens: str
    fix: str
