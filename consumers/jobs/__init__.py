"""Jobs: slow function calls, which Celery runs in processes of their own, under Ackline's guarantees.

    from ackline.consumers.jobs import job

    @job(retry=exponential(attempts=5), time_limit="10m")
    def render(video: str) -> str: ...

    render.delay("a.mp4")             # returns when RabbitMQ has it; raises a `PublishError` when it has not

`job` is Celery's `app.task` with other defaults, and what it returns is a Celery task: `delay`, `apply_async`, chains,
groups, chords, `self.retry`, `shared_task` and `AsyncResult` are Celery's own. What differs from plain Celery:

- a job is published as every message: persistent, mandatory, with a confirm and a deadline (`publishing`);
- it is acked when it is over, and a failure never acks it away: it goes to review with its traceback (`ending`);
- a countdown, an ETA or a retry waits in the broker and never in a worker's memory (`publishing`, `consumer`);
- deliveries come by Ackline's own connection (`taking`); Celery's carries remote control and events only.
"""

from ackline.consumers.jobs.adoption import adopt
from ackline.consumers.jobs.app import app
from ackline.consumers.jobs.job import Job, job

__all__ = ["Job", "adopt", "app", "job"]
