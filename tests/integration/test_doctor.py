"""`ackline doctor`: one line for each check, and for each fault what to do about it."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from ackline.consumers import registered
from ackline.infra import database
from ackline.infra.doctor import doctor
from ackline.infra.ports import free_port
from ackline.infra.settings import Settings, settings
from ackline.infra.topology import ConsumerQueue, declare
from tests.broker import Vhost
from tests.integration.test_publisher import _has_disk_alarm, broker_with
from tests.integration.test_topology_live import as_user
from tests.mail import MailSink
from tests.roles import role, run
from tests.waiting import until

EMAIL = ConsumerQueue("email", ("email.send",))


class Report(NamedTuple):
    """What a run of the doctor said: (state, sentence) of each check, and its exit code."""

    checks: dict[str, list[tuple[str, str]]]
    exit_code: int

    def only(self, check: str) -> tuple[str, str]:
        [found] = self.checks[check]
        return found

    def faults(self) -> list[str]:
        """The checks with a fault."""
        return [check for check, said in self.checks.items() if any(state == "fault" for state, _ in said)]


Examine = Callable[..., Report]


@pytest.fixture
def examine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Examine]:
    """Runs the doctor in this process, on nothing but the variables that it is given."""
    # The application is `email` alone, whatever other tests have registered in this process.
    import_module("ackline.consumers.handlers.email")
    # By its name: the package's attribute `consumer` is the decorator.
    registry = import_module("ackline.consumers.consumer")
    monkeypatch.setattr(registry, "_consumers", {"email": registered()["email"]})
    monkeypatch.delitem(sys.modules, "ackline.consumers.jobs.app", raising=False)
    # A slow machine is no fault of what is examined.
    monkeypatch.setattr("ackline.infra.doctor.ANSWER_SECONDS", 60.0)

    def run_doctor(**variables: str) -> Report:
        for name in [name for name in os.environ if name.startswith("ACKLINE_")]:
            monkeypatch.delenv(name)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("ACKLINE_GATEWAY_PORT", "0")
        for name, value in variables.items():
            monkeypatch.setenv(f"ACKLINE_{name}", value)
        settings.cache_clear()
        done = CliRunner().invoke(doctor, ["--json"])
        assert done.stderr == ""
        said = json.loads(done.stdout)
        checks: dict[str, list[tuple[str, str]]] = {}
        for finding in said["findings"]:
            assert finding["says"].endswith((".", "?")), finding
            assert "\n" not in finding["says"]
            checks.setdefault(finding["check"], []).append((finding["state"], finding["says"]))
        assert said["ok"] == (done.exit_code == 0)
        return Report(checks, done.exit_code)

    yield run_doctor
    settings.cache_clear()


def answer_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait only for a moment for what does not answer anyway."""
    monkeypatch.setattr("ackline.infra.doctor.ANSWER_SECONDS", 1.0)


def of(found: Settings) -> dict[str, str]:
    """The variables that give *found*."""
    return {
        "AMQP_URL": found.broker,
        "MANAGEMENT_URL": found.management_url or "",
        "DATABASE_URL": found.database,
        "DATA_DIR": str(found.data_dir),
    }


@pytest.fixture
def healthy(ackline_settings: Settings) -> dict[str, str]:
    """Settings of an Ackline that has everything."""
    declare(ackline_settings.broker, [EMAIL])
    database.upgrade(ackline_settings.database)
    return of(ackline_settings)


# --- all is well ---------------------------------------------------------------------------------------


def test_when_all_is_well_every_check_says_so_and_the_command_ends_with_0(
    examine: Examine, healthy: dict[str, str], smtp_sink: MailSink
) -> None:
    report = examine(**healthy, SMTP_URL=smtp_sink.url)
    assert list(report.checks) == [
        "settings",
        "data folder",
        "application",
        "broker",
        "management",
        "permissions",
        "topology",
        "alarms",
        "features",
        "database",
        "mail server",
        "gateway",
        "desk",
    ]
    assert report.faults() == []
    assert report.exit_code == 0
    assert report.only("topology") == ("ok", "14 exchanges and 13 queues are as declared.")
    assert "may configure, write and read all of it" in report.only("permissions")[1]


@pytest.mark.usefixtures("healthy")
def test_for_people_it_prints_one_line_for_each_check(ackline_settings: Settings) -> None:
    done = run(ackline_settings, "doctor", ACKLINE_GATEWAY_PORT="0", ACKLINE_DESK_PORT="0")
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].split(maxsplit=2) == ["ok", "settings", "They can be read."]
    assert all(line.split()[0] in ("ok", "warning") for line in lines)
    assert len(lines) == 12
    assert done.returncode == 0


def test_it_changes_nothing(examine: Examine, ackline_settings: Settings, vhost: Vhost) -> None:
    examine(**of(ackline_settings))
    with vhost.api() as api:
        assert api.get(f"/api/queues/{vhost.path}").json() == []
    assert list(ackline_settings.data_dir.iterdir()) == []


# --- settings, data folder, application ----------------------------------------------------------------


def test_settings_that_cannot_be_used_end_it_at_once(examine: Examine) -> None:
    report = examine(PREFETCH="many")
    assert report.exit_code == 1
    assert list(report.checks) == ["settings"]
    assert "ACKLINE_PREFETCH" in report.only("settings")[1]


def test_without_a_broker_in_the_settings_it_says_how_to_have_one_and_goes_on(examine: Examine) -> None:
    report = examine()
    assert report.exit_code == 1
    assert "set ACKLINE_AMQP_URL=" in report.only("broker")[1]
    assert {"database", "gateway"} <= report.checks.keys()


def test_a_data_folder_that_is_a_file_is_named(examine: Examine, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    state, says = examine(DATA_DIR=str(tmp_path / "data" / "below")).only("data folder")
    assert state == "fault"
    assert says == f"{tmp_path / 'data'} is a file: move it away, or name another folder with ACKLINE_DATA_DIR."


def test_a_data_folder_that_does_not_exist_yet_is_well(examine: Examine, tmp_path: Path) -> None:
    state, says = examine(DATA_DIR=str(tmp_path / "a" / "b")).only("data folder")
    assert state == "ok"
    assert "does not exist yet and can be created" in says
    assert not (tmp_path / "a").exists() or list((tmp_path / "a" / "b").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_data_folder_that_is_full_or_nearly_so_is_named(examine: Examine, small_disk: Path) -> None:
    state, says = examine(DATA_DIR=str(small_disk)).only("data folder")
    assert state == "warning"
    assert "0 MB free, which is soon full" in says
    fill(small_disk)
    state, says = examine(DATA_DIR=str(small_disk)).only("data folder")
    assert state == "fault"
    assert says == f"{small_disk} is full: free space, or name another folder with ACKLINE_DATA_DIR."


def fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def test_an_application_that_does_not_exist_or_raises_is_named(examine: Examine, tmp_path: Path) -> None:
    state, says = examine(APP="no_such_module_here").only("application")
    assert state == "fault"
    assert says.startswith("The module 'no_such_module_here' of the application (ACKLINE_APP, ")
    (tmp_path / "raises_at_import.py").write_text("1 / 0\n")
    state, says = examine(APP="raises_at_import").only("application")
    assert state == "fault"
    assert says == "ACKLINE_APP (raises_at_import) cannot be imported: ZeroDivisionError: division by zero."


# --- broker --------------------------------------------------------------------------------------------


def test_a_broker_that_is_not_there_is_named_and_nothing_is_asked_of_it(
    examine: Examine, healthy: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_soon(monkeypatch)
    report = examine(**healthy | {"AMQP_URL": "amqp://a:b@127.0.0.1:1/"})
    assert report.faults() == ["broker"]
    assert report.only("broker")[1] == "Nothing answers at 127.0.0.1:1: is RabbitMQ running there?"
    assert "topology" not in report.checks


def test_a_server_that_accepts_and_says_nothing_is_named(
    examine: Examine, healthy: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_soon(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        report = examine(**healthy | {"AMQP_URL": f"amqp://a:b@127.0.0.1:{port}/"})
    assert report.only("broker") == ("fault", f"RabbitMQ at 127.0.0.1:{port} has not answered yet.")


def test_a_wrong_password_a_missing_vhost_and_a_broken_address_are_told_apart(
    examine: Examine, healthy: dict[str, str], vhost: Vhost
) -> None:
    for url, said in (
        (as_user(vhost.amqp_url, vhost.user, "wrong"), "wrong user or password in ACKLINE_AMQP_URL"),
        (vhost.amqp_url + "-missing", f"refused the vhost '{vhost.name}-missing' to user"),
        ("http://localhost", "it must read amqp://user:password@host:port/vhost"),
        ("amqp://a:b@host:port/", "ACKLINE_AMQP_URL cannot be used (amqp://a:…@host:port/)"),
    ):
        report = examine(**healthy | {"AMQP_URL": url})
        assert report.faults() == ["broker"]
        assert said in report.only("broker")[1]


def test_without_the_management_api_it_says_so_and_what_it_could_not_check(
    examine: Examine, healthy: dict[str, str]
) -> None:
    report = examine(**healthy | {"MANAGEMENT_URL": "http://127.0.0.1:1"})
    assert report.faults() == ["management"]
    assert "Set ACKLINE_MANAGEMENT_URL, or enable it" in report.only("management")[1]
    assert {report.only(check)[0] for check in ("permissions", "topology", "alarms")} == {"skipped"}


@pytest.fixture
def make_user(vhost: Vhost) -> Iterator[Callable[..., str]]:
    """Makes a user with tags and permissions on the vhost; returns the address that it has."""
    name = f"limited-{vhost.name}"

    def make(tags: str, configure: str = ".*", write: str = ".*", read: str = ".*") -> str:
        permissions = {"configure": configure, "write": write, "read": read}
        with vhost.api() as api:
            api.put(f"/api/users/{name}", json={"password": "secret", "tags": tags}).raise_for_status()
            api.put(f"/api/permissions/{vhost.path}/{name}", json=permissions).raise_for_status()
        return as_user(vhost.amqp_url, name, "secret")

    yield make
    with vhost.api() as api:
        api.delete(f"/api/users/{name}")


def test_rights_that_a_user_lacks_are_named_with_the_command_that_gives_them(
    examine: Examine, healthy: dict[str, str], vhost: Vhost, make_user: Callable[..., str]
) -> None:
    url = make_user("administrator", configure="^$", write="^ackline\\.", read="")
    said = [says for state, says in examine(**healthy | {"AMQP_URL": url}).checks["permissions"] if state == "fault"]
    user = f"limited-{vhost.name}"
    mend = f"rabbitmqctl set_permissions -p '{vhost.name}' '{user}' '.*' '.*' '.*'."
    assert said == [
        f"The user '{user}' may not configure 'ackline.messages' and 26 more; to permit it: {mend}",
        f"The user '{user}' may not write 'email'; to permit it: {mend}",
        f"The user '{user}' may not read 'ackline.messages' and 26 more; to permit it: {mend}",
    ]


def test_a_user_who_may_not_look_is_told_what_stays_unknown(
    examine: Examine, healthy: dict[str, str], make_user: Callable[..., str]
) -> None:
    report = examine(**healthy | {"AMQP_URL": make_user("management")})
    assert report.faults() == []
    assert report.only("permissions")[0] == "skipped"
    assert report.only("alarms") == (
        "skipped",
        "Not known: give the user the tag `monitoring` to see alarms and free disk.",
    )
    assert report.only("topology")[0] == "ok"
    report = examine(**healthy | {"AMQP_URL": make_user("")})
    assert report.faults() == ["management"]
    assert "give the user the tag `management` or `monitoring`" in report.only("management")[1]


def test_each_difference_of_the_topology_is_a_line(examine: Examine, healthy: dict[str, str], vhost: Vhost) -> None:
    with vhost.api() as api:
        api.delete(f"/api/queues/{vhost.path}/email").raise_for_status()
        api.delete(f"/api/exchanges/{vhost.path}/ackline.dead").raise_for_status()
    report = examine(**healthy)
    mend = "`ackline topology apply` creates it"
    assert report.faults() == ["topology"]
    assert report.checks["topology"] == [
        ("fault", f"Exchange 'ackline.dead' is missing; {mend}."),
        ("fault", f"Queue 'email' is missing; {mend}."),
        ("fault", f"The binding of queue 'ackline.dead' to exchange 'ackline.dead' is missing; {mend}."),
    ]


def test_an_empty_vhost_is_one_line(examine: Examine, healthy: dict[str, str], vhost: Vhost) -> None:
    with vhost.api() as api:
        for kind in ("queues", "exchanges"):
            for found in api.get(f"/api/{kind}/{vhost.path}").json():
                if found["name"] and not found["name"].startswith("amq."):
                    api.delete(f"/api/{kind}/{vhost.path}/{found['name']}").raise_for_status()
    assert examine(**healthy).only("topology") == (
        "fault",
        "Nothing of it exists yet: `ackline topology apply` creates it, and so does any role.",
    )


@pytest.mark.broker
def test_an_alarm_of_the_broker_is_named(examine: Examine, tmp_path: Path) -> None:
    with broker_with(tmp_path, f"disk_free_limit.absolute = {10**15}") as full:
        until(lambda: _has_disk_alarm(full), what="the alarm")
        report = examine(AMQP_URL=full.amqp_url, MANAGEMENT_URL=full.management_url or "")
    state, says = report.only("alarms")
    assert state == "fault"
    assert "has a disk alarm (" in says
    assert says.endswith("disk free) and blocks publishing: free space there.")


# --- database ------------------------------------------------------------------------------------------


def test_a_database_that_no_reviewer_has_set_up_is_named(examine: Examine, ackline_settings: Settings) -> None:
    state, says = examine(**of(ackline_settings)).only("database")
    assert state == "fault"
    assert says.endswith("do not exist yet; `ackline reviewer` and `ackline up` create them: start one.")
    (ackline_settings.data_dir / "ackline.db").write_bytes(b"")
    state, says = examine(**of(ackline_settings)).only("database")
    assert says.endswith("has no tables yet; `ackline reviewer` and `ackline up` create them: start one.")


def test_tables_of_another_version_are_named(
    examine: Examine, healthy: dict[str, str], ackline_settings: Settings
) -> None:
    assert examine(**healthy).only("database")[0] == "ok"
    with sqlite3.connect(ackline_settings.data_dir / "ackline.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    state, says = examine(**healthy).only("database")
    assert state == "fault"
    assert "is of a newer Ackline (version 9999): upgrade this one" in says


def test_a_file_that_is_no_database_is_named(examine: Examine, ackline_settings: Settings) -> None:
    (ackline_settings.data_dir / "ackline.db").write_bytes(b"not a database" * 1000)
    state, says = examine(**of(ackline_settings)).only("database")
    assert state == "fault"
    assert "file is not a database" in says


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://u:secret@127.0.0.1:1/db", "Nothing answers as PostgreSQL at 127.0.0.1:1"),
        ("oracle://u:secret@host/db", "ACKLINE_DATABASE_URL cannot be used"),
        ("nonsense", "ACKLINE_DATABASE_URL cannot be used"),
    ],
)
def test_a_database_that_cannot_be_reached_is_named_without_its_password(examine: Examine, url: str, said: str) -> None:
    state, says = examine(DATABASE_URL=url).only("database")
    assert state == "fault"
    assert said in says
    assert "secret" not in says


def test_postgresql_is_checked_in_the_same_way(examine: Examine, postgresql_url: str) -> None:
    assert "has no tables yet" in examine(DATABASE_URL=postgresql_url).only("database")[1]
    database.upgrade(postgresql_url)
    state, says = examine(DATABASE_URL=postgresql_url).only("database")
    assert state == "ok"
    assert "***" in says, "the address is shown without its password"


# --- mail server and gateway ---------------------------------------------------------------------------


def test_a_mail_server_that_is_not_one_is_named(examine: Examine) -> None:
    for url, said in (
        ("smtp://127.0.0.1:1", "127.0.0.1:1 does not answer as a mail server (Connection refused)"),
        ("http://localhost", "ACKLINE_SMTP_URL cannot be used"),
        ("smtp://localhost:mail", "ACKLINE_SMTP_URL cannot be used"),
        ("smtp://", "ACKLINE_SMTP_URL cannot be used"),
    ):
        state, says = examine(SMTP_URL=url).only("mail server")
        assert state == "fault"
        assert said in says


def test_a_mail_server_that_takes_no_sign_in_is_named_when_the_address_has_one(
    examine: Examine, smtp_sink: MailSink
) -> None:
    url = smtp_sink.url.replace("smtp://", "smtp://user:secret@")
    state, says = examine(SMTP_URL=url).only("mail server")
    assert state == "fault"
    assert "takes no user and password" in says


@pytest.mark.parametrize("name", ["gateway", "desk"])
def test_a_port_is_free_or_its_roles_own_or_somebody_elses(
    name: str, examine: Examine, ackline_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    setting = f"{name.upper()}_PORT"
    assert examine(**{setting: str(port)}).only(name)[0] == "ok"
    with role(ackline_settings, name, "--port", str(port)):
        assert examine(**{setting: str(port)}).only(name) == ("ok", f"A {name} answers at 127.0.0.1:{port}.")
    answer_soon(monkeypatch)
    with socket.create_server(("127.0.0.1", port)):
        state, says = examine(**{setting: str(port)}).only(name)
    assert state == "fault"
    assert says == f"A {name} cannot listen on 127.0.0.1:{port} (Address already in use): choose ACKLINE_{setting}."
