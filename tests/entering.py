"""Commands of `ackline` entered in this process: a hundred of them in the time of one that starts a process."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from click.testing import CliRunner

from ackline.infra.cli import cli
from ackline.infra.errors import AcklineError
from ackline.infra.settings import Settings
from ackline.infra.settings import settings as configured
from tests.roles import environment

#: Who enters them.
ACTOR = "ada"


@dataclass(frozen=True)
class Entered:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def enter(settings: Settings, *arguments: str, given: str | None = None, **more: str) -> Entered:
    """Enter `ackline` with *arguments* in an environment that has *settings* and *more*, in a pipe; given: its standard
    input.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(settings, ACKLINE_ACTOR=ACTOR, **more).items():
            patch.setenv(name, value)
        configured.cache_clear()
        try:
            done = CliRunner().invoke(cli, arguments, input=given, prog_name="ackline")
        finally:
            configured.cache_clear()
    if isinstance(done.exception, AcklineError):  # as `ackline.infra.cli.main` tells it
        return Entered(done.exception.exit_code, done.stdout, f"{done.stderr}ackline: {done.exception}\n")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Entered(done.exit_code, done.stdout, done.stderr)
