"""`ackline celery check | adopt`."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections import Counter
from dataclasses import asdict

import click

from ackline.consumers.celery_check import Finding, Severity, check, load
from ackline.infra.terminal import line


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
    width = min(shutil.get_terminal_size((120, 24)).columns, 120)
    for finding in found:
        print(json.dumps(asdict(finding), ensure_ascii=False) if as_json else _told(finding, width))
    print(_summary(app, found), file=sys.stderr)
    sys.exit(1 if found else 0)


def _told(finding: Finding, width: int) -> str:
    """A finding as lines: its setting, what happens, and what to write instead. Only sentences are broken."""
    place = f"{line(finding.place)}: " if finding.place else ""
    happens = textwrap.fill(finding.happens, width, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return (
        f"{finding.severity:<{len(_INDENT)}}{place}{line(finding.setting)} = {line(finding.value)}\n"
        f"{happens}\n"
        f"{_INDENT}{line(finding.fix)}\n"
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
