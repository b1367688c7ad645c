"""`ackline jobs`: the worker; and below it what the application has of jobs, one to run, and what became of it."""

from __future__ import annotations

import inspect
import json
import sys
from typing import Any

import click
from rich import box
from rich.table import Table
from rich.text import Text

from ackline.infra.errors import AcklineError
from ackline.infra.names import job_queue
from ackline.infra.settings import settings
from ackline.infra.terminal import console, line, moment
from ackline.infra.unknown import unknown


class UnknownJob(AcklineError):
    """There is no job of that name or id."""


class WrongArguments(AcklineError):
    """They are not those of the job."""


@click.group(invoke_without_command=True)
@click.option("--queues", help="Run the jobs of these queues only: their names, comma-separated. [all]")
@click.option("--concurrency", type=click.IntRange(1, 256), help="Processes that run jobs. [ACKLINE_JOB_CONCURRENCY]")
@click.pass_context
def jobs(context: click.Context, queues: str | None, concurrency: int | None) -> None:
    """Run the jobs of the application (the modules of ACKLINE_APP).

    SIGTERM or Ctrl-C: takes no more jobs, finishes what runs within ACKLINE_GRACE_SECONDS, gives back the rest, and
    ends. A second one ends at once; nothing is lost by that.
    """
    if context.invoked_subcommand is not None:
        return
    from ackline.consumers.jobs.worker import run

    run(settings(), None if queues is None else [name.strip() for name in queues.split(",")], concurrency)


@jobs.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def list_(as_json: bool) -> None:
    """List the jobs of the application, with their queues and arguments."""
    rows = [
        {"name": name, "queue": job_queue(task.job_queue), "arguments": str(inspect.signature(task.run))}
        for name, task in sorted(_tasks().items())
    ]
    if as_json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return
    if rows:
        table = Table(
            "NAME", "QUEUE", "ARGUMENTS", box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False
        )
        for row in rows:
            table.add_row(*(Text(line(value)) for value in row.values()))
        console().print(table)
    print(f"{len(rows):,} job{'s'[: len(rows) != 1]} in {', '.join(settings().app)}.", file=sys.stderr)


@jobs.command("run")
@click.argument("name")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--delay", type=click.FloatRange(0), metavar="SECONDS", help="How long to wait before it runs.")
def run_(name: str, arguments: tuple[str, ...], delay: float | None) -> None:
    """Submit the job NAME, and print its id.

    KEY=TEXT gives an argument as text, which is taken as the type that the job's function wants; KEY:=JSON one as JSON:

        ackline jobs run render video=a.mp4 'sizes:=[160, 640]'
    """
    from pydantic import ValidationError

    from ackline.consumers.jobs.arguments import read

    tasks = _tasks()
    task = tasks.get(name)
    if task is None:
        raise UnknownJob(unknown("job", name, tasks))
    try:
        kwargs = read(task, json.dumps(dict(map(_argument, arguments))))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'arguments'}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False, include_context=False)
        )
        raise WrongArguments(f"These are not the arguments of {name}: {faults}.") from None
    print(task.apply_async(kwargs=kwargs, countdown=delay).id)


@jobs.command()
@click.argument("job_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="As JSON, as the gateway answers it.")
def status(job_id: str, as_json: bool) -> None:
    """Show what has become of the job ID, and its result."""
    from ackline.consumers.jobs.app import app
    from ackline.consumers.jobs.results import find
    from ackline.infra.app import load_app
    from ackline.infra.database import opened, reading

    configured = settings()
    load_app(configured.app)
    with opened(configured.database) as engine, reading(engine) as connection:
        found = find(app, connection, [job_id]).get(job_id)
    if found is None:
        raise UnknownJob(f"Nothing is known of a job {job_id!r}: it has not begun, or its result is forgotten.")
    if as_json:
        print(found.model_dump_json(exclude={"status_url"}))
        return
    for key, value in found.model_dump(exclude={"is_final", "status_url"}).items():
        if value is not None:
            print(f"{key.replace('_', ' ')}: {_shown(key, value)}")


def _shown(key: str, value: Any) -> str:
    """A field of a status, for people."""
    if key.endswith("_at"):
        return moment(value)
    if key == "progress":
        return f"{value:.0%}"
    return line(json.dumps(value, default=str, ensure_ascii=False) if key == "result" else str(value))


def _tasks() -> dict[str, Any]:
    """The jobs of the application, by name, without Celery's own."""
    from ackline.consumers.jobs.app import app
    from ackline.consumers.jobs.queues import jobs_of
    from ackline.infra.app import load_app

    load_app(settings().app)
    return jobs_of(app)


def _argument(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise WrongArguments(f"{text!r} is no argument: write KEY=VALUE, or KEY:=JSON.")
    if not key.endswith(":"):
        return key, value
    try:
        return key[:-1], json.loads(value)
    except ValueError as error:
        raise WrongArguments(f"{text!r} is no argument: {value!r} is not JSON ({error}).") from None
