"""`ackline up` as a user runs it: one command, its screen, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ackline.consumers.jobs.app import Jobs, configuration
from ackline.infra import running_broker, supervisor
from ackline.infra.mailbox import Mailbox
from ackline.infra.node_identity import settle_identity
from ackline.infra.ports import free_port
from ackline.infra.settings import Settings
from tests import broker as test_broker
from tests.processes import mentioning
from tests.waiting import until

#: Seconds until everything runs; a broker and four Python programs on a busy machine.
START_SECONDS = 200.0


class Up:
    """One run of `ackline up` on *data_dir*."""

    def __init__(self, data_dir: Path, *options: str, port: int) -> None:
        self.data_dir = data_dir
        (data_dir / "rabbitmq").mkdir(mode=0o700, parents=True, exist_ok=True)
        settle_identity(data_dir / "rabbitmq")  # draws its broker's ports in this process: see `tests.ports`
        self.gateway = f"http://127.0.0.1:{port}"
        self._output = data_dir.parent / f"up-{time.monotonic_ns()}.txt"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ackline.infra", "up", "--port", str(port), *options],
                env=_environment(data_dir),
                cwd=data_dir.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        """What it has printed."""
        return self._output.read_text()

    def wait_until_running(self) -> None:
        """Wait for its screen."""

        def shown() -> bool:
            if self.process.poll() is not None:
                pytest.fail(f"`ackline up` ended:\n{self.output}", pytrace=False)
            return "Ctrl-C stops all of it" in self.output

        until(shown, deadline=START_SECONDS, what="the screen of `ackline up`")

    def stop(self) -> None:
        """End it as a service manager does."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(90)

    def send(self, to: str) -> str:
        """Send a mail through the gateway; returns the message's id."""
        body = {"to": to, "subject": "Hello", "body": "Hi"}
        with httpx.Client(trust_env=False, timeout=60) as client:
            answer = client.post(f"{self.gateway}/v1/messages/email.send", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def worker_log(self) -> str:
        """What the worker has logged."""
        return (self.data_dir / "logs" / "worker.log").read_text()

    def mails(self) -> list[str]:
        """Recipients of the mails that arrived."""
        return [address for mail in Mailbox(self.data_dir / "mail").mails() for address in mail.recipients]

    def command(self, *arguments: str) -> str:
        """What `ackline` prints in another terminal."""
        done = subprocess.run(
            [sys.executable, "-m", "ackline.infra", *arguments],
            env=_environment(self.data_dir),
            cwd=self.data_dir.parent,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def report(self) -> str:
        """What there is to see when a test has failed: its screen, the ends of its logs, and its queues."""
        logs = [*(self.data_dir / "logs").glob("*.log"), *(self.data_dir / "rabbitmq" / "log").glob("*.log")]
        told = [self.output, *(f"--- {log.name}\n{log.read_text()[-4000:]}" for log in logs)]
        found = re.search(r"Management UI +(\S+) +user (\S+), password (\S+)", self.output)
        if found:
            with (
                contextlib.suppress(httpx.HTTPError),
                httpx.Client(auth=(found[2], found[3]), trust_env=False) as client,
            ):
                columns = "name,state,messages,messages_ready,messages_unacknowledged,consumers"
                told += [str(queue) for queue in client.get(f"{found[1]}/api/queues?columns={columns}").json()]
        return "\n".join(told)

    def kill_broker(self) -> None:
        """Kill RabbitMQ as a crash would, wherever it runs."""
        container = re.search(r"container and volume (\S+)", self.output)
        if container:
            subprocess.run(["docker", "kill", container[1]], capture_output=True, check=True)
        else:
            os.kill(int((self.data_dir / "rabbitmq" / "pid").read_text()), signal.SIGKILL)

    def role_pid(self, role: str) -> int:
        """Process id of *role* itself: the child of its guardian, which is a child of `ackline up`."""
        (guardian,) = [pid for pid, args in _children(self.process.pid) if args.endswith(f"ackline.infra {role}")]
        ((pid, _),) = _children(guardian)
        return pid


def _environment(data_dir: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ACKLINE_")}
    named = {name: os.environ[name] for name in ("ACKLINE_RABBITMQ_SERVER",) if name in os.environ}
    return kept | named | {"ACKLINE_DATA_DIR": str(data_dir), "ACKLINE_DESK_PORT": "0"}


def _children(pid: int) -> list[tuple[int, str]]:
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [(int(row[0]), row[2]) for row in rows if int(row[1]) == pid]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Where everything of one test's `ackline up` is."""
    _skip_without_a_broker_to_start()
    return tmp_path / "data"


def _skip_without_a_broker_to_start() -> None:
    chosen = test_broker.choice()
    if chosen is None or chosen.kind == "url":
        pytest.skip("`ackline up` starts a broker of its own here, and ACKLINE_AMQP_URL (or nothing) is given")


@pytest.fixture
def port() -> int:
    """The gateway's port."""
    return free_port()


@pytest.fixture
def up(data_dir: Path, port: int) -> Iterator[Up]:
    """`ackline up`, running, for a test that stops it or kills its broker."""
    with _running(Up(data_dir, port=port)) as running:
        yield running


@pytest.fixture(scope="module")
def shared_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`ackline up`, running, for all tests that leave it so; each has addresses of its own."""
    _skip_without_a_broker_to_start()
    with _running(Up(tmp_path_factory.mktemp("up") / "data", port=free_port())) as running:
        yield running


@contextlib.contextmanager
def _running(running: Up) -> Iterator[Up]:
    try:
        running.wait_until_running()
        yield running
    except BaseException:
        print(running.report())
        raise
    finally:
        if running.process.poll() is None:
            running.stop()
        until(lambda: mentioning(running.data_dir) == [], what="every process to end")


def test_a_mail_sent_through_the_gateway_arrives_and_the_screen_says_where(shared_up: Up) -> None:
    shared_up.send("first@example.test")
    until(lambda: "first@example.test" in shared_up.mails(), what="the mail")
    folder = shared_up.data_dir
    for told in (shared_up.gateway, str(folder / "mail"), str(folder / "logs"), "dlq list", "curl -X POST"):
        assert told in shared_up.output
    assert "\x1b" not in shared_up.output, "no colours where there is no terminal"


def test_the_management_ui_takes_the_sign_in_that_the_screen_shows(shared_up: Up) -> None:
    found = re.search(r"Management UI +(\S+) +user (\S+), password (\S+)", shared_up.output)
    assert found
    with httpx.Client(auth=(found[2], found[3]), timeout=60, trust_env=False) as client:
        assert client.get(f"{found[1]}/api/overview").status_code == 200


def test_a_refused_mail_waits_for_review_and_another_terminal_sees_it(shared_up: Up) -> None:
    shared_up.command("sink", "refuse", "refused@example.test", "--code", "550", "--text", "Refused for a test")
    shared_up.send("refused@example.test")
    until(lambda: "Refused for a test" in shared_up.command("dlq", "list"), what="the dead letter")
    assert "refused@example.test" not in shared_up.mails()


def test_the_times_to_stop_stay_below_15_seconds() -> None:
    assert supervisor.STOP_SECONDS + running_broker.STOP_SECONDS < 15


def test_sigterm_stops_all_of_it_and_leaves_nothing(up: Up) -> None:
    assert mentioning(up.data_dir)
    assert (up.data_dir / "up.json").stat().st_mode & 0o777 == 0o600
    up.stop()
    assert up.process.returncode == 0
    assert mentioning(up.data_dir) == []
    assert not (up.data_dir / "up.json").exists()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(up.gateway.rpartition(":")[2]))) != 0


def test_a_second_start_finds_messages_dead_letters_and_mails(up: Up, port: int) -> None:
    up.command("sink", "refuse", "later@example.test", "--code", "451")
    up.command("sink", "refuse", "never@example.test", "--code", "550", "--text", "No such mailbox")
    for address in ("now@example.test", "never@example.test"):
        up.send(address)
    until(lambda: "No such mailbox" in up.command("dlq", "list"), what="the dead letter")
    until(lambda: up.mails() == ["now@example.test"], what="the mail")
    up.send("later@example.test")
    until(lambda: "Mailbox busy" in up.worker_log(), what="the first try")
    up.stop()
    up.command("sink", "accept", "later@example.test")
    with _running(Up(up.data_dir, port=port)) as second:
        assert "No such mailbox" in second.command("dlq", "list")
        until(lambda: set(second.mails()) == {"now@example.test", "later@example.test"}, what="the retried mail")


@pytest.mark.parametrize("role", ["worker", "reviewer", "gateway", "desk"])
def test_a_killed_role_comes_back_and_works(shared_up: Up, role: str) -> None:
    killed = shared_up.role_pid(role)
    os.kill(killed, signal.SIGKILL)
    until(lambda: f"{role} is ready again." in shared_up.output, what=f"the {role} to come back")
    assert shared_up.role_pid(role) != killed
    shared_up.command("sink", "refuse", f"no-{role}@example.test", "--code", "550", "--text", f"No such {role}")
    shared_up.send(f"{role}@example.test")
    shared_up.send(f"no-{role}@example.test")
    until(lambda: f"{role}@example.test" in shared_up.mails(), what="the mail")
    until(lambda: f"No such {role}" in shared_up.command("dlq", "list"), what="the dead letter")


def test_a_killed_broker_comes_back_with_what_it_had(up: Up) -> None:
    up.command("sink", "refuse", "later@example.test", "--code", "451")
    up.send("later@example.test")
    # Seen on 4.3.6: a kill within about a second of a quorum queue's declaration loses what was confirmed there (it
    # reads like rabbitmq-server issue 15725). By its second try the mail has been in queues that are older.
    until(lambda: up.worker_log().count("Mailbox busy") >= 2, what="the second try")
    up.kill_broker()
    up.command("sink", "accept", "later@example.test")  # now, so that its tries are not used up
    until(lambda: "The broker is ready again" in up.output, deadline=START_SECONDS, what="the broker to come back")
    # Once at least: what a tier had handed on, and what was sent to one, is handed on again if the kill was quicker.
    until(lambda: "later@example.test" in up.mails(), what="the mail")


def test_nothing_is_left_of_an_up_that_is_killed_and_the_next_one_works(up: Up, port: int) -> None:
    up.process.kill()
    up.process.wait()
    until(lambda: mentioning(up.data_dir) == [], what="everything to end")
    assert (up.data_dir / "up.json").exists(), "it had no time to remove it"
    with _running(Up(up.data_dir, port=port)) as second:
        second.send("ada@example.test")
        until(lambda: second.mails() == ["ada@example.test"], what="the mail")


def test_the_demonstration_has_mails_that_arrive_and_messages_that_wait(data_dir: Path, port: int) -> None:
    from ackline.consumers import demo

    arriving = demo.GOOD + demo.PER_ADDRESS * len(demo.BUSY)
    with _running(Up(data_dir, "--demo", port=port)) as running:
        until(lambda: "The demonstration has sent" in running.output, what="the demonstration")
        until(lambda: len(running.mails()) == arriving, deadline=200, what="the mails")
        waiting = demo.PER_ADDRESS * len(demo.GONE) + demo.PER_KIND * (len(demo.MALFORMED) + 1)
        until(lambda: _dead(running) == waiting, what="the dead letters")


_JOBS = """
from ackline.consumers.jobs import job

@job(name="double")
def double(number: int) -> int:
    return number * 2
"""


def test_jobs_run_are_known_in_other_terminals_and_shown_by_flower(data_dir: Path, port: int) -> None:
    folder = data_dir.parent
    (folder / "doubling.py").write_text(_JOBS)
    (folder / "ackline.toml").write_text('app = ["doubling"]\nflower_port = 0\n')
    with _running(Up(data_dir, "--with-flower", port=port)) as running:
        assert "jobs run NAME" in running.output
        assert "/v1/messages/email.send" not in running.output
        (folder / "ackline.toml").unlink()  # who names no application in another terminal has this one
        assert "double" in running.command("jobs", "list")
        found = re.search(r"Flower +(http://127\.0\.0\.1:\d+)", running.output)
        sign_in = re.search(r"Management UI .*user (\S+), password (\S+)", running.output)
        assert found
        assert sign_in
        assert httpx.get(f"{found[1]}/workers", timeout=60, trust_env=False).status_code == 401
        app = Jobs("doubling", set_as_current=False)
        app.conf.update(configuration(Settings(data_dir=data_dir)))
        auth = (sign_in[1], sign_in[2])
        with httpx.Client(base_url=found[1], auth=auth, timeout=60, trust_env=False) as flower:

            def seen() -> set[tuple[str, str]]:
                # Flower sees what happens from its start on: of the first of them perhaps the end only, without a name.
                app.send_task("double", (21,))
                tasks = flower.get("/api/tasks").json().values()
                return {(task["name"], task["result"]) for task in tasks if task["state"] == "SUCCESS"}

            until(lambda: ("double", "42") in seen(), what="the job")
            (worker,) = flower.get("/api/workers").json()
            assert worker.startswith("jobs-")
            assert worker in flower.get("/workers").text
            assert "double" in flower.get(f"/worker/{worker}").text
            until(lambda: "ackline.jobs" in flower.get("/broker").text, what="the queue")
        app.amqp.send_task_message.publisher.close()


def _dead(running: Up) -> int:
    """How many dead letters `ackline dlq list` finds, by its one JSON object per line."""
    lines = running.command("dlq", "list", "--json", "--limit", "500").splitlines()
    return sum(json.loads(line)["state"] == "in review" for line in lines)


# --- what a user gets wrong: one sentence each, and nothing started --------------------------------------------------


def _refused(data_dir: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ackline.infra", "up", *options],
        env=_environment(data_dir),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_busy_port_is_named_with_its_setting(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        told = _refused(tmp_path / "data", "--port", str(taken))
    assert f"Port {taken}" in told
    assert "ACKLINE_GATEWAY_PORT" in told


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert f"The data folder {tmp_path / 'file' / 'data'} cannot be written" in _refused(tmp_path / "file" / "data")


def test_a_second_up_on_the_same_folder_is_told_who_runs(tmp_path: Path) -> None:
    from ackline.infra.data_folder import claim

    with claim(tmp_path / "data"):
        told = _refused(tmp_path / "data", "--port", "0")
    assert f"Another `ackline up` (process {os.getpid()}) already runs" in told


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    try:
        assert "is full: free at least 64 MiB" in _refused(small / "data")
    finally:
        subprocess.run(["umount", str(small)], check=True)
