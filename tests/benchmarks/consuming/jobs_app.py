"""The jobs of Ackline under test, with its defaults; of one kind the results are kept. See `job_work`."""

from __future__ import annotations

from ackline.consumers.jobs import app, job
from ackline.consumers.jobs.queues import topology
from ackline.infra.settings import settings
from ackline.infra.topology import declare
from tests.benchmarks.consuming import job_work

JOBS = {
    "bench.place": job(name="bench.place", ignore_result=True)(job_work.place),
    "bench.ping": job(name="bench.ping", ignore_result=True)(job_work.ping),
}

if __name__ == "__main__":
    declare(settings().broker, topology(app))
    job_work.main(lambda name, arguments: JOBS[name].delay(**arguments))
