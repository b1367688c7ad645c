"""Ackline in a Django project: `"ackline.consumers.django"` in `INSTALLED_APPS`.

- Settings come from Django's: every `ACKLINE_*`, and every `CELERY_*` that leaves jobs their guarantees (`checks`).
- `messages.py` and `tasks.py` of each installed app are imported: contracts, consumers, jobs, `shared_task`.
- `manage.py ackline worker | jobs | relay | …` is the command line, with the project loaded (`project`).
- `manage.py migrate` makes the tables of the outbox; `add` puts jobs into it, `ackline.producer.django.add` messages.
- Handlers and jobs have Django's connections to the database as a request has: none that is too old, or was lost.
"""

from __future__ import annotations

from typing import Any

__all__ = ["add"]


def add(signature: Any, *, using: str = "default", **options: Any) -> Any:
    """Have a job published when the transaction of the connection *using* is committed, and only then.

    signature: `task.s(...)`, or a chain or group of them. options: as of `apply_async`. Returns its result, as
    `apply_async` does.

    Guarantees: published at least once after the commit, by the relay; never after a rollback. What a chord notes of
    its parts is not in that transaction, and stays behind, without effect, when it is rolled back. Raises
    `OutsideTransaction` when there is none, and what `apply_async` raises.
    """
    from ackline.consumers.jobs.publishing import publishing_to
    from ackline.producer.django import put

    with publishing_to(lambda entry: put(entry, using=using)):
        return signature.apply_async(**options)
