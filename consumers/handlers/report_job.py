"""`report.make`: a report as a job, for one that takes minutes: a process of its own makes it, which can be killed.

What a report is, and what becomes of the file, is as in `ackline.consumers.handlers.reports`. The file is that of the
job's id; the result is a link to it. `pip install 'ackline[handlers,jobs]'`.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from ackline.consumers import Reject, exponential
from ackline.consumers.handlers.reports import ReportRequested, faults, keep_report
from ackline.consumers.jobs import Job, job
from ackline.infra.settings import settings
from ackline.producer.files import link


@job(name="report.make", bind=True, time_limit="30m", retry=exponential())
def make(
    self: Job,
    report: str,
    format: str = "pdf",  # noqa: A002 - as in the message
    parameters: dict[str, Any] | None = None,
) -> str:
    """Keep the report as a file of this job. Returns a link to it. Arguments as those of `report.requested`."""
    asked = {"report": report, "format": format, "parameters": parameters or {}}
    try:
        wanted = ReportRequested.model_validate(asked)
    except ValidationError as error:
        raise Reject(f"the arguments are none of report.make: {faults(error)}") from None
    configured = settings()
    return link(configured, self.request.id, keep_report(configured, self.request.id, wanted))
