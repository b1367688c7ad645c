"""What in the settings of a Celery app can lose, duplicate or hold up its tasks on RabbitMQ.

It knows settings only: no broker is asked, and no code of a task is read. `rules.py` is the table of all that it knows.
"""

from __future__ import annotations

from ackline.consumers.celery_check.finding import Finding, Severity
from ackline.consumers.celery_check.loading import AppNotLoaded, load
from ackline.consumers.celery_check.rules import RULES, check

__all__ = ["RULES", "AppNotLoaded", "Finding", "Severity", "check", "load"]
