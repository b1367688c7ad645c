"""`ackline dlq edit | revert | patch`: mending the data of one dead letter, and of many alike."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import IO, Any

import click
from rich.text import Text

from ackline.dlq import condition, difference, document
from ackline.dlq.cli import completing, letter_view, redrive_view
from ackline.dlq.cli.letters import reason
from ackline.dlq.cli.redriving import pace
from ackline.dlq.cli.references import one
from ackline.dlq.cli.seat import FAILED, Seat, seated
from ackline.dlq.cli.selecting import Filtering, selecting
from ackline.dlq.cli.tables import as_json, print_json
from ackline.dlq.cli.waiting import spinner
from ackline.dlq.condition import ROOT, parse_path, spelled
from ackline.dlq.difference import Difference
from ackline.dlq.document import NotJson
from ackline.dlq.edits import Preview, Version
from ackline.dlq.errors import Invalid
from ackline.dlq.selection import Selection
from ackline.infra.tables import DeadLetterState
from ackline.infra.terminal import console, line

#: Dead letters that a preview shows.
_SAMPLE = 5
#: A path that begins as it does in a condition; else it begins inside the payload.
_ROOTED = re.compile(rf"{ROOT}(?=[.\[])")


def _assignments(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> list[tuple[str, str]]:
    """`NAME=VALUE` as name and value."""
    parted = [written.partition("=") for written in values]
    for name, equals, value in parted:
        if not name or not equals:
            raise click.BadParameter(f"{name + equals + value!r} is not NAME=VALUE.", ctx, param)
    return [(name, value) for name, _, value in parted]


@click.command()
@one
@click.option("--file", type=click.File("rb"), help="Take the whole payload from this file; `-` is standard input.")
@click.option("--set", "sets", multiple=True, metavar="PATH=VALUE", callback=_assignments, help="Set one field.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", callback=_assignments, help="Set a header.")
@click.option("--drop-header", "drops", multiple=True, metavar="NAME", help="Take a header away.")
@reason
@click.option("--yes", is_flag=True, help="Do not ask whether that is what was meant.")
@as_json
@seated
def edit(
    at: Seat,
    reference: str,
    file: IO[bytes] | None,
    sets: list[tuple[str, str]],
    headers: list[tuple[str, str]],
    drops: tuple[str, ...],
    reason: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Change the payload of a dead letter, or its headers.

    In $EDITOR, unless the options say what to change. The original is kept, and each edit is a version of it. A message
    that its contract would refuse is not saved. Secrets are masked; a mask that is left as it is keeps the secret.
    VALUE is a text where there is one now, else JSON.

    \b
    ackline dlq edit 17 --set country=GB --reason "UK is not in ISO 3166"
    ackline dlq edit 17 --set payload.items[0].count=2 --reason "asked the customer"
    """
    if file is not None and sets:
        raise click.UsageError("Say either --file or --set.")
    [row_id] = at.ids([reference])
    detail = at.desk.letters.get(at.who, row_id)
    shape = at.contracts.shape(detail.type)
    shown = at.desk.letters.payload(at.who, row_id)
    wanted = {name: value for name, value in detail.headers.items() if name not in drops}
    wanted |= {name: _meant(value, wanted.get(name)) for name, value in headers}

    def save(payload: bytes | None) -> Version:
        diff = [] if payload is None else difference.of_payloads(shown, payload, shape)
        diff += difference.of_headers(detail.headers, wanted)
        if not diff:
            raise Invalid("That changes nothing.")
        if not as_json:
            _show_diff(diff)
        if by_hand and not yes:
            click.confirm("Save this?", default=True, abort=True, err=True)
        chosen = wanted if headers or drops else None
        return at.desk.edits.edit(
            at.who, row_id, payload, headers=chosen, reason=reason, expected_version=detail.version
        )

    by_hand = not (file or sets or headers or drops)
    if by_hand:
        made = _by_hand(shown, save)
    elif file is not None:
        made = save(file.read())
    else:
        made = save(document.write(_with(_read(shown), sets)) if sets else None)
    if as_json:
        print_json(made)
    else:
        _tell(row_id, made)


@click.command()
@one
@click.argument("version", type=click.IntRange(0))
@reason
@as_json
@seated
def revert(at: Seat, reference: str, version: int, reason: str, as_json: bool) -> None:
    """Bring back an earlier VERSION of a dead letter.

    It becomes the next version; 0 is the message as it came.
    """
    [row_id] = at.ids([reference])
    now = at.desk.letters.get(at.who, row_id).version
    made = at.desk.edits.revert(at.who, row_id, version, reason=reason, expected_version=now)
    if as_json:
        print_json(made)
    else:
        _show_diff(made.diff)
        _tell(row_id, made)


@click.command(cls=Filtering)
@click.argument("file", type=click.File("rb"))
@selecting(DeadLetterState.IN_REVIEW)
@click.option("--preview", is_flag=True, help="Only show what it would change; nothing is planned.")
@click.option(
    "--to",
    "destination",
    metavar="CONSUMER",
    shell_complete=completing.consumers,
    help="To this consumer, whoever failed.",
)
@pace
@click.option("--reason", default="", help="Why. It is kept with each edit.")
@as_json
def patch(
    at: Seat,
    selection: Selection,
    file: IO[bytes],
    preview: bool,
    destination: str | None,
    rate: float | None,
    reason: str,
    as_json: bool,
) -> None:
    """Mend many alike, and plan to send them back.

    FILE is a JSON Patch (RFC 6902). It is tried on each; where it does not apply, or the contract would be broken, that
    one is not sent, and the plan says why. Each is edited when it is sent, so that what is not sent stays as it is.

     echo '[{"op": "replace", "path": "/country", "value": "GB"}]' > uk.json ackline dlq patch uk.json --group
    9f86d081884c7d65 --reason "UK is not in ISO 3166"
    """
    try:
        operations = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{file.name} is not JSON: {error}.") from None
    if preview:
        found = at.desk.edits.preview_patch(at.who, selection, operations, _SAMPLE)
        for one in found:
            print_json(one) if as_json else _show_preview(one)
        sys.exit(FAILED if any(one.faults for one in found) else 0)
    with spinner("Planning"):
        planned = at.desk.redrives.plan(
            at.who, selection, consumer=destination, rate=rate, patch=operations, reason=reason
        )
    print_json(planned) if as_json else redrive_view.plan(console(), planned)


# --- how changes look -------------------------------------------------------------------------------------------------


def _show_diff(diff: Sequence[Difference]) -> None:
    for told in letter_view.differences(diff):
        console().print(Text("  ") + told)


def _show_preview(one: Preview) -> None:
    to = console()
    to.print(Text(f"{one.id}: {line(one.type)}", style="bold"))
    _show_diff(one.diff)
    for fault in one.faults:
        to.print(Text(f"  cannot be patched: {line(fault.path)}: {line(fault.message)}", style="red"))
    if not one.diff and not one.faults:
        to.print(Text("  nothing changes"))


def _tell(row_id: int, made: Version) -> None:
    checked = "its contract takes it" if made.checked else "no contract is known to check it against"
    print(f"Dead letter {row_id} has version {made.version}: {checked}. Send it back: ackline dlq retry {row_id}")
    print(f"  Undo: ackline dlq revert {row_id} {made.version - 1} --reason …")


# --- changing a payload -----------------------------------------------------------------------------------------------


def _readable(payload: bytes) -> str:
    """*payload* to be edited: JSON by lines. Raises `Invalid` for what is no text."""
    try:
        return _indented(document.read(payload))
    except NotJson:
        pass
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise Invalid("Its payload is no text: take a whole one from a --file.") from None


def _indented(value: Any, indent: str = "") -> str:
    """JSON by lines, with every number as it was written."""
    inner = f"{indent}  "
    if isinstance(value, dict) and value:
        members = [f"{json.dumps(name, ensure_ascii=False)}: {_indented(one, inner)}" for name, one in value.items()]
        return f"{{\n{inner}" + f",\n{inner}".join(members) + f"\n{indent}}}"
    if isinstance(value, list) and value:
        return f"[\n{inner}" + f",\n{inner}".join(_indented(one, inner) for one in value) + f"\n{indent}]"
    return document.write(value).decode()


def _read(payload: bytes) -> Any:
    try:
        return document.read(payload)
    except NotJson as error:
        raise Invalid(f"Its payload is not JSON ({error}): take a whole one from a --file.") from None


def _with(value: Any, sets: Sequence[tuple[str, str]]) -> Any:
    """The document *value* with these fields set. Raises `Invalid`."""
    for written, new in sets:
        path = parse_path(written if _ROOTED.match(written) else f"{ROOT}.{written}")
        *way, last = path
        place = condition.at(value, tuple(way))
        is_there = isinstance(place, dict) if isinstance(last, str) else isinstance(place, list) and last < len(place)
        if not is_there:
            raise Invalid(f"There is no {spelled(tuple(way))} that {spelled(path)} could be set in.")
        is_known = isinstance(last, int) or last in place
        place[last] = _meant(new, place[last] if is_known else None)
    return value


def _meant(written: str, now: Any) -> Any:
    """What *written* means in place of *now*: a text where there is one, else JSON if it is some."""
    if isinstance(now, str):
        return written
    try:
        return document.read(written.encode("utf-8", "surrogateescape"))
    except NotJson:
        return written


def _by_hand(shown: bytes, save: Callable[[bytes], Version]) -> Version:
    """What *save* makes of *shown* as it is after $EDITOR. What it does not take can be edited again."""
    text = _readable(shown)
    while True:
        # Editors end a file with a line break, which the message has not.
        text = (click.edit(text, extension=".json", require_save=False) or "").rstrip("\n")
        try:
            return save(_compact(text.encode()))
        except Invalid as error:
            if not sys.stdin.isatty():
                raise
            print(f"ackline: {error}", file=sys.stderr)
            click.confirm("Edit it again?", default=True, abort=True, err=True)


def _compact(payload: bytes) -> bytes:
    try:
        return document.write(document.read(payload))
    except NotJson:  # whether it has to be is for its contract to say
        return payload
