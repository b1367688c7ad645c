"""How dead letters look on a terminal, in a pipe, and as JSON. What strangers wrote cannot steer the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from ackline.dlq.deadletter import time
from ackline.dlq.view import Detail, Summary
from ackline.infra import wire
from ackline.infra.terminal import line, moment, plain, printable

#: Columns from which on the list has one line per dead letter.
_WIDE = 180
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
    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    if width < _WIDE:
        for name in ("ID", "STATE", "TYPE\nCONSUMER", "ATTEMPTS"):
            table.add_column(name, no_wrap=name != "TYPE\nCONSUMER", justify=_justified(name))
        table.add_column("ERROR\nMESSAGE ID", ratio=1, overflow="fold")
        table.add_column("FIRST FAILED\nRECEIVED", no_wrap=True)
        for row in rows:
            number, state, type_, consumer, attempts, said, failed, received, message_id = _cells(row)
            about = Text("\n").join([said, message_id])
            table.add_row(number, state, Text("\n").join([type_, consumer]), attempts, about, f"{failed}\n{received}")
        return table
    for name in ("ID", "STATE", "TYPE", "CONSUMER", "ATTEMPTS"):
        table.add_column(name, no_wrap=True, justify=_justified(name))
    table.add_column("ERROR", ratio=1, overflow="fold")
    for name in ("FIRST FAILED", "RECEIVED", "MESSAGE ID"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _justified(name: str) -> JustifyMethod:
    return "right" if name in ("ID", "ATTEMPTS") else "left"


def _cells(row: Summary) -> tuple[str, Text, Text, Text, str, Text, str, str, Text]:
    return (
        str(row.id),
        Text(row.state, style=_STYLES.get(row.state, "")),
        Text(line(row.type)),
        Text(line(row.consumer) or "-"),
        str(row.attempts),
        Text(error(row)),
        moment(row.first_failed_at),
        moment(row.received_at),
        Text(line(row.message_id), style="dim"),
    )


def show(to: Console, detail: Detail) -> None:
    """Print everything that is known of a dead letter."""
    to.print(Text(f"Dead letter {detail.id}: {detail.state}", style="bold"))
    _fields(to, _facts(detail))
    _section(to, "Flags", [printable(flag) for flag in detail.flags])
    _section(to, "Attempts", _history(detail))
    _section(to, "Traceback", [printable(detail.traceback)] if detail.traceback else [])
    _section(to, "What was done", [_action(found) for found in detail.actions])
    headers = detail.properties.get("headers", {})
    said = [_pair(name, value) for name, value in detail.properties.items() if name != "headers"]
    _section(to, "Properties", said)
    _section(to, "Headers", [_pair(name, value) for name, value in headers.items() if name not in _TOLD_ELSEWHERE])
    _section(to, f"Payload ({detail.payload.size:,} bytes)", _payload(detail), indent="")


def _facts(detail: Detail) -> dict[str, str]:
    redrives = f"{detail.redrive_count} failed" if detail.redrive_count else ""
    discarded = f"{moment(detail.discarded_at)} by {detail.discarded_by}: {detail.discard_reason}"
    return {
        "reason": detail.reason,
        "error": f"{detail.error_type}: {detail.error_message}" if detail.error_type else "",
        "last redrive": detail.send_error or "",
        "consumer": detail.consumer or "(none)",
        "type": detail.type,
        "message id": detail.message_id,
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


def _fields(to: Console, facts: Mapping[str, str]) -> None:
    for name, value in facts.items():
        if value:
            to.print(Text(f"  {name:<13} ", style="dim") + Text(line(value)))


def _section(to: Console, title: str, lines: Sequence[str], indent: str = "  ") -> None:
    if lines:
        to.print()
        to.print(Text(title, style="bold"))
        for entry in lines:
            to.print(Text("\n".join(indent + part for part in entry.splitlines() or [""])))


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


def _action(found: Any) -> str:
    why = f": {found.reason}" if found.reason else ""
    return line(f"{moment(found.at)}  {found.actor}: {found.action} ({found.state_before} -> {found.state_after}){why}")


def _pair(name: str, value: Any) -> str:
    shown = value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)
    return f"{line(name)} = {line(shown)}"


def _payload(detail: Detail) -> list[str]:
    shown = [printable(detail.payload.text)]
    if detail.payload.cut:
        shown.append(f"… (the first part of it; all of it: ackline dlq show {detail.id} --payload)")
    return shown


# --- JSON ---------------------------------------------------------------------------------------------------------


def summary_json(row: Summary) -> dict[str, Any]:
    """A row of `list --json`."""
    found = plain(asdict(row))
    assert isinstance(found, dict)  # noqa: S101
    return found


def detail_json(detail: Detail, payload: bytes) -> dict[str, Any]:
    """The document of `show --json`, with the whole payload: as text if it is UTF-8, else in base64."""
    found = summary_json(detail)
    found["payload"], found["payload_base64"] = _payload_json(payload)
    return found


def _payload_json(payload: bytes) -> tuple[str | None, str | None]:
    from base64 import b64encode

    try:
        return payload.decode(), None
    except UnicodeDecodeError:
        return None, b64encode(payload).decode()
