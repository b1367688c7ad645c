"""What is wrong when a command starts: one sentence on standard error, an exit code that is not 0, no stack trace."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ackline.infra.settings import Settings
from tests.broker import Vhost
from tests.integration.test_doctor import fill
from tests.integration.test_topology_live import as_user
from tests.roles import ROOT, environment

MAIL = '{"to": "ada@example.test", "subject": "s", "body": "b"}'

#: Every command that needs the broker to begin.
NEED_THE_BROKER = [
    ["publish", "email.send", MAIL],
    ["topology", "apply"],
    ["worker"],
    ["gateway", "--port", "0"],
    ["reviewer"],
    ["relay"],
]


def said_by(settings: Settings, *arguments: str, seconds: float = 120, **variables: str) -> str:
    """The one sentence with which a command refuses to start; log lines of a role before it do not count."""
    done = subprocess.run(
        [sys.executable, "-m", "ackline.infra", *arguments],
        env=environment(settings, **variables),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode not in (0, -15, -9), (done.returncode, done.stderr)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not re.match(r"\d{4}-\d\d-\d\dT", line)]
    [sentence] = lines
    assert sentence.startswith("ackline: ")
    assert sentence[-1] in ".?"
    return sentence.removeprefix("ackline: ")


@pytest.mark.parametrize("command", NEED_THE_BROKER, ids=lambda command: command[0])
def test_a_wrong_password_is_named(ackline_settings: Settings, vhost: Vhost, command: list[str]) -> None:
    said = said_by(ackline_settings, *command, ACKLINE_AMQP_URL=as_user(vhost.amqp_url, vhost.user, "hunter2"))
    assert said.endswith(f"refused the user {vhost.user!r}: wrong user or password in ACKLINE_AMQP_URL.")


@pytest.mark.parametrize("command", NEED_THE_BROKER, ids=lambda command: command[0])
def test_a_vhost_that_does_not_exist_is_named(ackline_settings: Settings, vhost: Vhost, command: list[str]) -> None:
    said = said_by(ackline_settings, *command, ACKLINE_AMQP_URL=vhost.amqp_url + "-missing")
    assert f"refused the vhost '{vhost.name}-missing' to user {vhost.user!r}: create the vhost" in said


@pytest.mark.parametrize("command", NEED_THE_BROKER, ids=lambda command: command[0])
def test_an_address_that_is_none_is_named_without_its_password(ackline_settings: Settings, command: list[str]) -> None:
    said = said_by(ackline_settings, *command, ACKLINE_AMQP_URL="amqp://me:hunter2@host:port/")
    assert "ACKLINE_AMQP_URL cannot be used (amqp://me:…@host:port/)" in said


@pytest.mark.parametrize("command", [["publish", "email.send", MAIL, "--timeout", "3"], ["topology", "apply"]])
def test_a_broker_that_does_not_answer_is_named(ackline_settings: Settings, command: list[str]) -> None:
    said = said_by(ackline_settings, *command, ACKLINE_AMQP_URL="amqp://a:b@127.0.0.1:1/")
    assert "Nothing answers at 127.0.0.1:1: is RabbitMQ running there?" in said


def test_a_port_that_is_taken_is_named_with_the_setting_that_chooses_another(ackline_settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = said_by(ackline_settings, "gateway", "--port", str(port))
    where = f"127.0.0.1:{port}"
    assert said == (
        f"The gateway cannot listen on {where}: Address already in use. Choose another with ACKLINE_GATEWAY_PORT."
    )


def test_a_host_that_is_not_this_ones_is_named(ackline_settings: Settings) -> None:
    said = said_by(ackline_settings, "gateway", "--host", "192.0.2.7", "--port", "0", ACKLINE_API_KEYS="key")
    assert said.startswith("The gateway cannot listen on 192.0.2.7:0: Cannot assign requested address.")
    said = said_by(ackline_settings, "gateway", "--host", "no.such.host.invalid", "--port", "0", ACKLINE_API_KEYS="key")
    assert said.startswith("The gateway cannot listen on no.such.host.invalid:0: ")


NEED_THE_DATABASE = [["reviewer"], ["relay"], ["dlq", "list"], ["outbox", "list"]]


@pytest.mark.parametrize("command", NEED_THE_DATABASE, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:hunter2@127.0.0.1:1/ackline", "Nothing answers as PostgreSQL at 127.0.0.1:1"),
        ("postgresql://u:hunter2@no.such.host.invalid/ackline", "no.such.host.invalid"),
        ("mysql://u:hunter2@host/ackline", "ACKLINE_DATABASE_URL cannot be used"),
        ("sqlite:////proc/no/such/ackline.db", "/proc/no/such"),
    ],
    ids=["nobody listens", "unknown host", "another kind", "no folder"],
)
def test_a_database_that_cannot_be_had_is_named_without_its_password(
    ackline_settings: Settings, command: list[str], url: str, expected: str
) -> None:
    said = said_by(ackline_settings, *command, ACKLINE_DATABASE_URL=url)
    assert expected in said
    assert "hunter2" not in said


@pytest.mark.parametrize("command", NEED_THE_DATABASE, ids=lambda command: command[0])
def test_a_wrong_password_of_postgresql_is_named(
    ackline_settings: Settings, postgresql_url: str, command: list[str]
) -> None:
    wrong = re.sub(r":[^:/@]+@", ":hunter2@", postgresql_url)
    said = said_by(ackline_settings, *command, ACKLINE_DATABASE_URL=wrong)
    assert "refuses the user 'ackline': wrong user or password in ACKLINE_DATABASE_URL" in said


@pytest.fixture
def full_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system without a free octet."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    fill(folder)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_data_folder_is_named_by_the_reviewer(ackline_settings: Settings, full_folder: Path) -> None:
    said = said_by(ackline_settings, "reviewer", ACKLINE_DATABASE_URL=f"sqlite:///{full_folder}/ackline.db")
    assert str(full_folder) in said
    assert "full" in said


def test_a_full_data_folder_is_named_by_up(ackline_settings: Settings, full_folder: Path) -> None:
    assert "full" in said_by(
        ackline_settings, "up", "--port", "0", "--desk-port", "0", ACKLINE_DATA_DIR=str(full_folder)
    )


def test_a_full_data_folder_is_named_by_the_mail_sink(ackline_settings: Settings, full_folder: Path) -> None:
    said = said_by(ackline_settings, "sink", "run", "--port", "0", ACKLINE_DATA_DIR=str(full_folder))
    assert said.endswith("is full: free space there and try again.")


def up_says(data_dir: Path, **variables: str) -> str:
    """What `ackline up` says, in a few lines, when it cannot have a broker."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ACKLINE_")}
    done = subprocess.run(
        [sys.executable, "-m", "ackline.infra", "up", "--port", "0", "--desk-port", "0", "--data-dir", str(data_dir)],
        env=clean | variables,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("ackline: ")
    return done.stderr


def test_a_server_that_is_named_and_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    said = up_says(tmp_path / "data", ACKLINE_RABBITMQ_SERVER="/no/such/rabbitmq-server")
    assert said == (
        "ackline: ACKLINE_RABBITMQ_SERVER names /no/such/rabbitmq-server, which is not a program that can be run: "
        "correct it or unset it.\n"
    )


def test_a_server_that_ends_at_once_is_said_with_what_it_left(tmp_path: Path) -> None:
    program = tmp_path / "rabbitmq-server"
    program.write_text("#!/bin/sh\necho 'erl: not found' >&2\nexit 127\n")
    program.chmod(0o755)
    said = up_says(tmp_path / "data", ACKLINE_RABBITMQ_SERVER=str(program))
    assert "The broker ended while starting (exit code 127)" in said
    assert "erl: not found" in said
    assert said.count("\n") < 20


def test_a_broker_that_is_configured_and_away_is_one_sentence(tmp_path: Path) -> None:
    said = up_says(tmp_path / "data", ACKLINE_AMQP_URL="amqp://me:hunter2@127.0.0.1:1/")
    assert said.count("\n") == 1
    assert "No broker answers at 127.0.0.1:1 with the user 'me'" in said
    assert "hunter2" not in said
