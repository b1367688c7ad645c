"""How dead letters look on a terminal, in a pipe, and as JSON. What strangers wrote cannot steer the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ackline.dlq.cli.tables import ago, counted, print_facts, stacked, table
from ackline.dlq.deadletter import time
from ackline.dlq.difference import Difference
from ackline.dlq.edits import Version
from ackline.dlq.view import Action, Detail, GroupOf, Note, Related, Sent, Summary
from ackline.infra import wire
from ackline.infra.terminal import line, moment, plain, printable

#: Columns from which on the list has one line per dead letter, and what is in them.
_WIDE = 180
_COLUMNS = ("ID", "STATE", "TYPE", "CONSUMER", "ATTEMPTS", "ERROR", "FIRST FAILED", "RECEIVED", "MESSAGE ID")
#: Characters of an error in the narrow list.
_SHOWN = 300
#: Headers that `show` has in better places.
_TOLD_ELSEWHERE = {wire.HISTORY, wire.TRACEBACK, wire.REASON}
_STYLES = {"in review": "yellow", "redriving": "cyan", "handled": "green", "discarded": "dim"}


def error(row: Summary) -> str:
    """What went wrong, in the words of whoever said it."""
    if row.send_error:
        return line(row.send_error)
    return line(f"{row.error_type}: {row.error_message}" if row.error_type else row.reason)


def listing(rows: Sequence[Summary], width: int) -> Table:
    """The table of `ackline dlq list` for *width* columns: what does not fit beside each other is stacked."""
    if width >= _WIDE:
        drawn = table(*_COLUMNS, flexible="ERROR", right=("ID", "ATTEMPTS"))
        for row in rows:
            drawn.add_row(
                str(row.id),
                _state(row),
                Text(line(row.type)),
                Text(line(row.consumer) or "-"),
                str(row.attempts),
                Text(error(row)),
                moment(row.first_failed_at),
                moment(row.received_at),
                Text(line(row.message_id), style="dim"),
            )
        return drawn
    drawn = table("ID", "STATE", "DEAD LETTER", "AGE", flexible="DEAD LETTER", right=("ID",))
    for row in rows:
        what = f"{line(row.type)} for {line(row.consumer) or 'nobody'}, {counted(row.attempts, 'attempt')}"
        about = stacked(Text(what, style="bold"), _cut(error(row)), Text(line(row.message_id), style="dim"))
        drawn.add_row(str(row.id), _state(row), about, ago(row.received_at))
    return drawn


def _state(row: Summary) -> Text:
    return Text(row.state, style=_STYLES.get(row.state, ""))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def show(to: Console, detail: Detail) -> None:
    """Print everything that is known of a dead letter."""
    to.print(Text(f"Dead letter {detail.id}: {detail.state}", style="bold"))
    print_facts(to, _facts(detail))
    _section(to, "Notes", [f"{_by(note)}: {printable(note.text)}" for note in detail.notes])
    _section(to, "Flags", [printable(flag) for flag in detail.flags])
    _section(to, "Attempts", _history(detail))
    _section(to, "Traceback", [printable(detail.traceback)] if detail.traceback else [], fold=False)
    _section(to, _payload_title(detail), _payload(detail), indent="", fold=False)
    _section(to, "Edits", [_edit(version) for version in detail.edits])
    _section(to, "Redrives", [_sent(sent) for sent in detail.redrives])
    _section(to, "What was done", [_action(found) for found in detail.actions])
    _section(to, "Related", [_related(other) for other in detail.related])
    properties = {name: value for name, value in detail.properties.items() if name != "headers"}
    _section(to, "Properties", [_pair(name, value) for name, value in properties.items()])
    # In an order of their own: brokers have another each.
    headers = dict(sorted(detail.properties.get("headers", {}).items()))
    _section(to, "Headers", [_pair(name, value) for name, value in headers.items() if name not in _TOLD_ELSEWHERE])


def differences(diff: Sequence[Difference]) -> list[Text]:
    """What differs between two versions, a field in each line."""
    return [_difference(found) if "path" in found else Text("… and more", style="dim") for found in diff]


def _difference(found: Difference) -> Text:
    before, after = (_value(found[when]) if when in found else "nothing" for when in ("before", "after"))
    return Text.assemble(f"{line(found['path'])}: ", (before, "red"), " → ", (after, "green"))


def _value(value: Any) -> str:
    return line(json.dumps(value, ensure_ascii=False))


def _facts(detail: Detail) -> dict[str, str]:
    redrives = f"{detail.redrive_count} failed" if detail.redrive_count else ""
    discarded = f"{moment(detail.discarded_at)} by {detail.discarded_by}: {detail.discard_reason}"
    return {
        "group": _group(detail.group) if detail.group else "",
        "reason": detail.reason,
        "error": f"{detail.error_type}: {detail.error_message}" if detail.error_type else "",
        "last redrive": detail.send_error or "",
        "consumer": detail.consumer or "(none)",
        "type": detail.type,
        "message id": detail.message_id,
        "key": detail.ordering_key or "",
        "correlation": detail.correlation_id or "",
        "published": " ".join(
            filter(None, [moment(detail.published_at), f"by {detail.app_id}" if detail.app_id else ""])
        ),
        "went to": f"{detail.exchange or '(default exchange)'}, routing key {detail.routing_key}",
        "first failed": moment(detail.first_failed_at),
        "received": moment(detail.received_at),
        "last seen": moment(detail.last_seen_at),
        "attempts": str(detail.attempts),
        "redrives": redrives,
        "duplicates": str(detail.duplicates) if detail.duplicates else "",
        "handled": moment(detail.handled_at),
        "discarded": discarded if detail.discarded_at else "",
    }


def _group(group: GroupOf) -> str:
    status = f"resolved in {group.resolved_in}" if group.resolved_in else group.status
    seen = f"{counted(group.arrivals, 'failure')} since {moment(group.first_seen)}"
    told = filter(None, [seen, status, group.owner, group.note, group.runbook])
    return f"{group.fingerprint}: {', '.join(told)}"


def _section(to: Console, title: str, lines: Sequence[str], indent: str = "  ", fold: bool = True) -> None:
    """fold: break long lines between words; else they are a terminal's to break, and can be copied whole."""
    if lines:
        to.print()
        to.print(Text(title, style="bold"))
        for entry in lines:
            to.print(Text("\n".join(indent + part for part in entry.splitlines() or [""])), soft_wrap=not fold)


def _history(detail: Detail) -> list[str]:
    """One line per attempt: when, how long after the one before, which, where, and what went wrong."""
    lines = []
    before: datetime | None = None
    for entry in detail.history:
        at = time(entry["at"])
        delay = f"+{(at - before).total_seconds():.1f}s" if at and before else ""
        before = at or before
        which = f"attempt {entry['attempt']}" if entry["attempt"] is not None else "the broker"
        after = f" (redrive {entry['redrive']})" if "redrive" in entry else ""
        where = f" on {line(entry['worker'])}" if entry["worker"] else ""
        what = line(f"{entry['error']}: {entry['message']}")
        lines.append(f"{line(entry['at'])} {delay:>9}  {which}{after}{where}: {what}")
    return lines


def _action(found: Action) -> str:
    moved = "" if found.state_before == found.state_after else f" ({found.state_before} → {found.state_after})"
    why = f": {found.reason}" if found.reason else ""
    return f"{_by(found)}: {line(found.action + moved + why)} (action {found.id})"


def _by(found: Action | Note | Version) -> str:
    return f"{moment(found.at)}  {line(found.actor)}"


def _edit(version: Version) -> str:
    unchecked = "" if version.checked else " (no contract was known to check it against)"
    head = f"{_by(version)}: version {version.version}{unchecked}: {line(version.reason)}"
    return "\n".join([head, *(f"  {told.plain}" for told in differences(version.diff))])


def _sent(sent: Sent) -> str:
    when = sent.finished_at or sent.confirmed_at or sent.issued_at
    why = f": {line(sent.error)}" if sent.error else ""
    at = f"{moment(when)}  " if when else ""
    return (
        f"{at}redrive {sent.redrive_id}, version {sent.version} to {line(sent.consumer) or 'nobody'}: {sent.state}{why}"
    )


def _related(other: Related) -> str:
    about = f"{line(other.type)} for {line(other.consumer) or 'nobody'}, {line(other.message_id)}"
    return f"{other.id}: {other.state}, {about}"


def _pair(name: str, value: Any) -> str:
    shown = value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)
    return f"{line(name)} = {line(shown)}"


def _payload_title(detail: Detail) -> str:
    shown = detail.payload
    told = [
        f"{shown.size:,} bytes",
        *filter(None, [shown.encoding, f"version {detail.version}" if detail.version else ""]),
    ]
    if detail.masked:
        told.append("secrets masked")
    return f"Payload ({', '.join(told)})"


def _payload(detail: Detail) -> list[str]:
    shown, task = detail.payload, detail.payload.task
    lines = [printable(shown.text)]
    if shown.cut:
        lines.append(f"… (cut; all of it: ackline dlq show {detail.id} --payload)")
    if task is not None:
        called = f"{line(task.name)}, args {_value(task.args)}, kwargs {_value(task.kwargs)}"
        lines.insert(0, f"Celery task {called}")
        if task.traceback:
            lines.append(printable(task.traceback))
    return lines
