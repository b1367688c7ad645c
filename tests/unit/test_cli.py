"""The command line: commands come by entry points, and a user's mistake is one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, version
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ackline.infra import cli
from ackline.infra.errors import AcklineError, ConfigurationError

COMMANDS = {"dlq", "doctor", "gateway", "outbox", "publish", "relay", "reviewer", "sink", "topology", "up", "worker"}


def ackline(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in an empty folder with no settings but *variables*."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ACKLINE_")}
    return subprocess.run(
        [sys.executable, "-m", "ackline.infra", *arguments],
        env=clean | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run_main(monkeypatch: pytest.MonkeyPatch, command: Callable[[], None]) -> int:
    """`main` with one command that does what *command* does; its exit code."""
    monkeypatch.setattr(cli, "cli", command)
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_every_command_of_the_distribution_can_be_loaded_and_says_what_it_does() -> None:
    context = click.Context(cli.cli)
    names = cli.cli.list_commands(context)
    assert set(names) >= COMMANDS
    for name in COMMANDS:
        command = cli.cli.get_command(context, name)
        assert command is not None
        assert command.get_short_help_str(), name


def test_the_version_is_that_of_the_distribution(tmp_path: Path) -> None:
    done = ackline("--version", folder=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, f"ackline, version {version('ackline')}")


def test_a_command_that_does_not_exist_is_refused_without_a_stack_trace(tmp_path: Path) -> None:
    done = ackline("frobnicate", folder=tmp_path)
    assert done.returncode == 2
    assert "No such command 'frobnicate'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_whose_extra_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = EntryPoint("celestial", "no_such_package_at_all:command", "ackline.commands")
    monkeypatch.setattr(cli, "entry_points", lambda group: [absent])
    listed = CliRunner().invoke(cli.cli, ["--help"])
    assert listed.exit_code == 0
    assert "Needs the package no_such_package_at_all." in listed.output
    with pytest.raises(AcklineError, match=r"needs the package no_such_package_at_all: pip install 'ackline\[all\]'"):
        CliRunner().invoke(cli.cli, ["celestial"], catch_exceptions=False)


def test_a_module_of_ours_that_is_missing_is_a_bug_and_not_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = EntryPoint("broken", "ackline.infra.no_such_module:command", "ackline.commands")
    monkeypatch.setattr(cli, "entry_points", lambda group: [absent])
    with pytest.raises(ModuleNotFoundError):
        CliRunner().invoke(cli.cli, ["broken"], catch_exceptions=False)


def test_an_error_of_ours_is_one_line_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ConfigurationError("The queue 'billing' is missing: apply the topology.")

    assert run_main(monkeypatch, fail) == ConfigurationError.exit_code == 2
    assert capsys.readouterr().err == "ackline: The queue 'billing' is missing: apply the topology.\n"


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_main(monkeypatch, fail)


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (
            ["topology", "show"],
            {"ACKLINE_APP": "no_such_app"},
            "The module 'no_such_app' of the application (ACKLINE_APP, ",
        ),
        (["topology", "apply"], {}, "No broker is configured"),
        (["topology", "apply"], {"ACKLINE_AMQP_URL": "http://host"}, "ACKLINE_AMQP_URL cannot be used (http://host)"),
        (
            ["topology", "diff"],
            {"ACKLINE_AMQP_URL": "amqp://a:b@127.0.0.1:1/", "ACKLINE_MANAGEMENT_URL": "nonsense"},
            "management API",
        ),
        (["topology", "export", "--user", "me"], {}, "ACKLINE_EXPORT_PASSWORD"),
        (["publish", "no.such", "{}"], {}, "There is no message type 'no.such'"),
        (["publish", "email.send", "{"], {}, "The payload is no email.send: payload: Invalid JSON"),
        (["publish", "email.send", '{"to": 1}'], {}, "The payload is no email.send: to: "),
        (["publish", "email.send", '{"to": "a@b.c", "subject": "s", "body": "b"}'], {}, "No broker is configured"),
        (["gateway"], {"ACKLINE_GATEWAY_PORT": "eighty"}, "ACKLINE_GATEWAY_PORT"),
        (["gateway"], {"ACKLINE_GATEWAY_HOST": "192.0.2.1"}, "set ACKLINE_API_KEYS"),
        (["worker"], {}, "No broker is configured"),
        (["worker", "--consumers", "nobody"], {}, "There is no consumer nobody; the application has email"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_on_standard_error(
    tmp_path: Path, arguments: list[str], variables: dict[str, str], said: str
) -> None:
    done = ackline(*arguments, folder=tmp_path, **variables)
    assert done.returncode not in (0, None)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr


def test_a_reader_that_stops_reading_is_no_stack_trace(tmp_path: Path) -> None:
    program = f"{sys.executable} -m ackline.infra topology show | head -n 1"
    done = subprocess.run(
        ["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.startswith("exchange ackline.messages")
    assert done.stderr == ""
