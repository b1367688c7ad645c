"""`ackline celery check | adopt`."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections import Counter
from dataclasses import asdict

import click
from celery import Celery

from ackline.consumers.celery_check import Finding, Severity, check, load
from ackline.consumers.celery_check.facts import sent_by_celery
from ackline.consumers.celery_check.looking import shown
from ackline.infra.names import job_queue
from ackline.infra.terminal import line, printable


@click.group()
def celery() -> None:
    """See what an existing Celery app risks on RabbitMQ, and give it Ackline's guarantees."""


@celery.command("check")
@click.argument("app")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def check_(app: str, as_json: bool) -> None:
    """Name each setting of APP that can lose, duplicate or hold up its tasks on RabbitMQ.

    APP is what follows `celery -A`: a module, or module:attribute. It is imported; no broker is needed or asked. Ends
    with 0 if nothing is found, with 1 if something is, with 2 if the app cannot be loaded.
    """
    found = check(load(app))
    for finding in found:
        print(json.dumps(asdict(finding), ensure_ascii=False) if as_json else _told(finding, _width()))
    print(_summary(app, found), file=sys.stderr)
    sys.exit(1 if found else 0)


@celery.command("adopt")
@click.argument("app")
def adopt_(app: str) -> None:
    """Print the two lines that give APP Ackline's guarantees, what they change, and what is left to do by hand.

    APP is what follows `celery -A`. Nothing is written, and no broker is asked. Ends with 2 if it cannot be loaded.
    """
    plan = _Plan()
    found = load(app, plan.adopt)
    if not plan.changes:
        print(f"{app} is adopted. `ackline celery check {app}` tells what is left.")
        return
    file, variable = _where(app, found)
    print(f"In {file}, below the configuration of `{variable}`:\n")
    print(f"    from ackline.consumers.jobs import adopt\n    adopt({variable})\n\nThey change:\n")
    width = max(len(setting) for setting, _, _ in plan.changes)
    for setting, former, new in plan.changes:
        print(f"    {setting:<{width}}  {former} -> {new}")
    print(f"\nBy hand:\n\n{_DRAIN.format(queues=', '.join(plan.queues))}")
    for finding in check(found):
        print(_told(finding, _width()))


class _Plan:
    """What adopting an app changes."""

    def __init__(self) -> None:
        self.queues: list[str] = []
        #: Setting, value before, value after.
        self.changes: list[tuple[str, str, str]] = []

    def adopt(self, app: Celery) -> None:
        """Adopt *app*, unless it is, and note what that changed."""
        if not sent_by_celery(app):
            return
        # Only now: it brings a Celery app of its own.
        from ackline.consumers.jobs.adoption import ADOPTED, adopt, names

        former = {name: shown(getattr(app.conf, name)) for name in ADOPTED}
        default, queues = app.conf.task_default_queue, names(app)
        adopt(app)
        new = {name: shown(getattr(app.conf, name)) for name in ADOPTED}
        self.queues = [line(queue) for queue in queues]
        self.changes = [(name, former[name], new[name]) for name in ADOPTED if former[name] != new[name]]
        for queue in queues:
            self.changes.append(("queue", line(queue), job_queue(None if queue == default else line(queue))))


def _where(name: str, app: Celery) -> tuple[str, str]:
    """The file that *app*, which was loaded as *name*, stands in, and the name of its variable."""
    module = name.partition(":")[0]
    for candidate in (module, f"{module}.celery"):
        for variable, value in vars(sys.modules.get(candidate, object)).items():
            if value is app:
                return str(sys.modules[candidate].__file__), variable
    return module, "app"


#: A queue keeps its kind and its arguments for life: RabbitMQ refuses to declare it otherwise.
_DRAIN = """\
- No queue can become another kind of queue, so there are new ones. What waits in the old ones stays there: {queues}.
  Release the two lines to workers first, which create the new queues, then to all that send tasks. Leave a worker of
  the release before running until the old queues are empty, unacked tasks included; then stop it and delete them.
- Have `ackline reviewer` and `ackline desk` run: there you see what failed, and send it again. Countdowns of more than
  an hour wait in a database (ACKLINE_DATABASE_URL), and `ackline relay` sends them.
"""


def _width() -> int:
    """Columns for sentences."""
    return min(shutil.get_terminal_size((120, 24)).columns, 120)


def _told(finding: Finding, width: int) -> str:
    """A finding as lines: its setting, what happens, and what to write instead. Only sentences are broken."""
    place = f"{line(finding.place)}: " if finding.place else ""
    happens = textwrap.fill(finding.happens, width, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return (
        f"{finding.severity:<{len(_INDENT)}}{place}{line(finding.setting)} = {line(finding.value)}\n"
        f"{happens}\n"
        f"{_INDENT}{printable(finding.fix)}\n"
    )


_INDENT = " " * (max(map(len, Severity)) + 2)


def _summary(app: str, found: list[Finding]) -> str:
    if not found:
        return f"{app}: nothing found that can lose, duplicate or hold up a task."
    counts = Counter(finding.severity for finding in found)
    said = ", ".join(f"{counts[severity]} {_SAID[severity]}" for severity in Severity if counts[severity])
    return f"{app}: {len(found)} finding{'s'[: len(found) != 1]}: {said}."


_SAID = {
    Severity.LOSES: "can lose",
    Severity.DUPLICATES: "can duplicate",
    Severity.DELAYS: "can hold up",
    Severity.UNSAFE: "unsafe",
}
