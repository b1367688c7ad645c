"""The command `ackline`: a root whose subcommands come from the entry points `ackline.commands`.

Only the entry point of the command that runs is loaded, so `ackline publish` does not import FastAPI.
"""

from __future__ import annotations

import errno
import logging
import sys
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path

import click

from ackline.infra.errors import AcklineError


class _Commands(click.Group):
    """Loads a subcommand when it is asked for."""

    def _entry_points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group="ackline.commands")}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._entry_points())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        point = self._entry_points().get(cmd_name)
        if point is None:
            return None
        try:
            command = point.load()
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("ackline"):
                raise
            return _needs(cmd_name, error.name)
        assert isinstance(command, click.Command)  # noqa: S101
        return command


def _needs(name: str, package: str | None) -> click.Command:
    """Stands in the list for a command whose extra is not installed, and says so when it is run."""

    def run() -> None:
        raise AcklineError(
            f"`ackline {name}` needs the package {package}: pip install 'ackline[all]' brings everything."
        )

    return click.Command(name, callback=run, short_help=f"Needs the package {package}.")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("ackline"), prog_name="ackline")
def cli() -> None:
    """A message pipeline on RabbitMQ for teams that cannot lose a message."""


def main() -> None:
    """Run the command line. A user's mistake is one sentence on standard error, never a stack trace."""
    # Roles configure their log; any other command says what there is to say in its own words.
    logging.getLogger("ackline").addHandler(logging.NullHandler())
    try:
        cli()
    except AcklineError as error:
        print(f"ackline: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `ackline dlq list | head`
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        named = isinstance(error.filename, str)
        where = str(Path(error.filename).parent) if named else "A file system, that of ACKLINE_DATA_DIR or of a log,"
        print(f"ackline: {where} is full: free space there and try again.", file=sys.stderr)
        sys.exit(1)
