"""The options that say which dead letters are meant: the same for `list`, `plan`, `patch`, `discard` and `export`."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import click

from ackline.dlq.cli import completing
from ackline.dlq.cli.moment import Moment
from ackline.dlq.cli.references import named
from ackline.dlq.cli.seat import Seat, seat
from ackline.dlq.selection import Selection
from ackline.infra.tables import DeadLetterState, Source

#: What `--state` takes besides a state.
ALL_STATES = "all"


def _range(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str | None, str | None] | None:
    """The ends of `3`, `3-`, `-3` or `2-5`."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d*)(-?)(\d*)", value, re.ASCII)
    if match is None or not (match[1] or match[3]):
        raise click.BadParameter(f"{value!r} is no range: write 3, 3- (at least), -3 (at most), or 2-5.", ctx, param)
    return match[1] or None, (match[3] if match[2] else match[1]) or None


_IDS = click.argument("references", metavar="[ID...]", nargs=-1, shell_complete=completing.in_review)
#: Each sets the field of `Selection` that it is called by, but for `attempts`.
_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "states": click.option(
        "--state",
        "states",
        multiple=True,
        type=click.Choice([*(state.value for state in DeadLetterState), ALL_STATES]),
        help="In this state; may be repeated.",
    ),
    "fingerprint": click.option(
        "--group",
        "fingerprint",
        metavar="GROUP",
        shell_complete=completing.groups,
        help="Of this group, as `dlq groups` names it.",
    ),
    "consumer": click.option(
        "--consumer",
        metavar="NAME",
        shell_complete=completing.consumers,
        help="Of this consumer; '' for what no consumer takes.",
    ),
    "type": click.option(
        "--type", "type", metavar="TYPE", shell_complete=completing.types, help="Messages of this type."
    ),
    "source": click.option(
        "--source", type=click.Choice([source.value for source in Source]), help="Given up by this one."
    ),
    "error_type": click.option(
        "--error", "error_type", metavar="TYPE", help="Failed with this type of error, as ValueError."
    ),
    "text": click.option(
        "--text", metavar="WORDS", help="With words that begin so in the error's message or the reason."
    ),
    "where": click.option(
        "--where",
        multiple=True,
        metavar="CONDITION",
        help="""With this in the payload: 'payload.order_id = "A-1"'; may be repeated, and all must hold.""",
    ),
    "received_since": click.option(
        "--since",
        "received_since",
        type=Moment(),
        metavar="TIME",
        help="Received since 2026-01-31T22:15 (UTC), or 2h ago.",
    ),
    "received_until": click.option("--until", "received_until", type=Moment(), help="Received before; as --since."),
    "attempts": click.option(
        "--attempts", metavar="RANGE", callback=_range, help="Tried so often: 3, 3- (at least), -3 (at most), 2-5."
    ),
    "message_id": click.option("--message-id", metavar="ID", help="Of the message with this id."),
    "correlation_id": click.option("--correlation-id", metavar="ID", help="Of messages with this correlation id."),
    "ids": click.option(
        "--id", "ids", multiple=True, metavar="ID", help="This id; may be repeated. `-` reads ids from standard input."
    ),
}


class Filtering(click.Command):
    """A command with these options, which its help has apart from its own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own: list[tuple[str, str]] = []
        filters: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)) is not None:
                (filters if parameter.name in _OPTIONS else own).append(record)
        with formatter.section("Options"):
            formatter.write_dl(own)
        with formatter.section("Which dead letters"):
            formatter.write_dl(filters)


def selecting(
    *default: DeadLetterState, everything: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command the seat, and what these options say as `selection`; ids may be named as arguments, too.

    default: the states that are meant where neither states nor ids are named; none stands for all. everything: whether
    nothing at all needs to be said.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def chosen(references: tuple[str, ...], **options: Any) -> Any:
            said = {name: value for name in _OPTIONS if (value := options.pop(name)) not in (None, ())}
            if references:
                said["ids"] = (*references, *said.get("ids", ()))
            if not everything and not said:
                raise click.UsageError(
                    "Say which dead letters: by id, by `--group`, …; `--state 'in review'` is all of those."
                )
            with seat() as at:
                return command(at, selection=_selection(at, said, default), **options)

        for option in (_IDS, *reversed(_OPTIONS.values())):
            chosen = option(chosen)
        return chosen

    return decorate


def _selection(at: Seat, said: dict[str, Any], default: Sequence[DeadLetterState]) -> Selection:
    for name, value in said.items():
        if value == "" and name != "consumer":  # a variable of a script that was not set, most likely
            raise click.UsageError(f"The option for {name} is empty.")
    if "attempts" in said:
        said["attempts_min"], said["attempts_max"] = said.pop("attempts")
    if "ids" in said:
        said["ids"] = at.ids(named(said["ids"]))
    elif "states" not in said:
        said["states"] = default
    elif ALL_STATES in said["states"]:
        del said["states"]
    return Selection.parse(**said)
