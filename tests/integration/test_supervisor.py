"""The supervisor, with small programs in the place of the roles."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ackline.infra.ports import free_port
from ackline.infra.running_broker import Broker, takes_credentials
from ackline.infra.supervisor import Role, RoleFailed, Supervisor
from tests.processes import alive
from tests.waiting import until

#: Writes its process id to the file in its first argument, says that it is ready, and runs until SIGTERM.
STEADY = """
import os, pathlib, signal, sys
from ackline.infra.ready import ready
def end(*_):
    with open(sys.argv[1] + ".ended", "a") as file: file.write("x")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("begins")
pathlib.Path(sys.argv[1] + ".new").write_text(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
ready()
while True: signal.pause()
"""

#: Never says that it is ready, and does not mind SIGTERM.
DEAF = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True: signal.pause()
"""

#: Leaves a grandchild in a session of its own.
LITTERING = """
import os, pathlib, subprocess, sys, signal
from ackline.infra.ready import ready
child = subprocess.Popen([sys.executable, "-c", "import signal\\nwhile True: signal.pause()"], start_new_session=True)
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
ready()
while True: signal.pause()
"""


@pytest.fixture
def said() -> list[str]:
    """What the supervisor told its operator."""
    return []


@pytest.fixture
def supervise(tmp_path: Path, said: list[str]) -> Iterator[Callable[..., Supervisor]]:
    """Makes a supervisor of roles, which is stopped in the end."""
    made: list[Supervisor] = []

    def make(*roles: Role, broker: Broker | None = None, ready_seconds: float = 90.0) -> Supervisor:
        made.append(
            Supervisor(roles, log_folder=tmp_path / "logs", say=said.append, broker=broker, ready_seconds=ready_seconds)
        )
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.stop()


def _role(tmp_path: Path, name: str, program: str = STEADY, **options: str) -> Role:
    return Role(name, (sys.executable, "-c", program, str(tmp_path / name)), **options)  # type: ignore[arg-type]


def _pid(tmp_path: Path, name: str) -> int:
    return int((tmp_path / name).read_text())


def test_roles_are_ready_when_start_returns_and_end_in_reverse_order(
    tmp_path: Path, supervise: Callable[..., Supervisor]
) -> None:
    supervisor = supervise(_role(tmp_path, "first"), _role(tmp_path, "second"))
    supervisor.start()
    pids = [_pid(tmp_path, "first"), _pid(tmp_path, "second")]
    assert all(map(alive, pids))
    supervisor.stop()
    assert not any(map(alive, pids))
    ended = [(tmp_path / f"{name}.ended").stat().st_mtime_ns for name in ("second", "first")]
    assert ended == sorted(ended)


def test_a_killed_role_comes_back_and_is_told(
    tmp_path: Path, supervise: Callable[..., Supervisor], said: list[str]
) -> None:
    supervisor = supervise(_role(tmp_path, "worker"))
    supervisor.start()
    killed = _pid(tmp_path, "worker")
    os.kill(killed, signal.SIGKILL)
    supervisor.watch(until=_by(90, lambda: "worker is ready again." in said))
    assert alive(_pid(tmp_path, "worker"))
    assert _pid(tmp_path, "worker") != killed
    assert said[0].startswith("worker ended (exit code 137). It is started again in 0.5 s; see ")


def test_the_delay_doubles_while_a_role_keeps_dying(
    tmp_path: Path, supervise: Callable[..., Supervisor], said: list[str]
) -> None:
    dies_later = "import os, sys\nif os.path.exists(sys.argv[1]): sys.exit(3)\n" + STEADY
    supervisor = supervise(_role(tmp_path, "worker", dies_later))
    supervisor.start()
    os.kill(_pid(tmp_path, "worker"), signal.SIGKILL)
    supervisor.watch(until=_by(90, lambda: len(said) == 3))
    assert [re.findall(r"again in (\S+) s", line) for line in said] == [["0.5"], ["1"], ["2"]]
    assert "worker ended while starting (exit code 3)" in said[2]


def test_a_role_that_dies_at_the_start_is_named_with_its_last_words(
    tmp_path: Path, supervise: Callable[..., Supervisor]
) -> None:
    supervisor = supervise(_role(tmp_path, "gateway", "import sys; print('no such table'); sys.exit(4)"))
    with pytest.raises(RoleFailed, match=r"gateway ended while starting \(exit code 4\)\.\n(?s:.)*no such table"):
        supervisor.start()


def test_a_role_that_never_gets_ready_is_named_and_killed(tmp_path: Path, supervise: Callable[..., Supervisor]) -> None:
    supervisor = supervise(_role(tmp_path, "worker", DEAF), ready_seconds=1.0)
    with pytest.raises(RoleFailed, match=r"worker was not ready after 1 s\."):
        supervisor.start()


def test_deaf_roles_share_the_time_to_stop(
    tmp_path: Path, supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ackline.infra.supervisor.STOP_SECONDS", 4.0)
    names = [f"deaf-{number}" for number in range(8)]
    deaf = STEADY.replace("sys.exit(0)", "pass")
    supervisor = supervise(*(_role(tmp_path, name, deaf) for name in names))
    supervisor.start()
    began = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - began < 8 * 4.0  # about 6 s
    assert not any(alive(_pid(tmp_path, name)) for name in names)


def test_a_role_with_a_url_is_ready_when_that_answers(tmp_path: Path, supervise: Callable[..., Supervisor]) -> None:
    port = free_port()
    serving = """
import http.server, sys, threading, time
from ackline.infra.ready import ready
class Answer(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Answer.asked += 1
        status = 200 if Answer.asked > 3 else 503
        with open(sys.argv[1], "a") as answers:
            answers.write(f"{status} ")
        self.send_response(status)
        self.end_headers()
server = http.server.HTTPServer(("127.0.0.1", %d), Answer)
ready()
server.serve_forever()
"""
    url = f"http://127.0.0.1:{port}/readyz"
    supervise(_role(tmp_path, "gateway", serving % port, ready_url=url)).start()
    # A 200 that comes too late for it is followed by another one.
    assert (tmp_path / "gateway").read_text().split()[:4] == ["503", "503", "503", "200"]


def test_nothing_that_a_role_left_behind_survives_it(tmp_path: Path, supervise: Callable[..., Supervisor]) -> None:
    supervisor = supervise(_role(tmp_path, "worker", LITTERING))
    supervisor.start()
    left = _pid(tmp_path, "worker")
    assert alive(left)
    supervisor.stop()
    assert not alive(left)


def test_a_role_ends_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            Supervisor([_role(tmp_path, "worker")], log_folder=tmp_path / "logs", say=print).start()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    worker = _pid(tmp_path, "worker")
    until(lambda: not alive(worker), what="the worker to end")
    assert (tmp_path / "worker.ended").exists(), "it was stopped, not killed"


def test_a_long_log_is_set_aside_at_the_next_start(tmp_path: Path, supervise: Callable[..., Supervisor]) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker.log").write_bytes(b"x" * (6 * 1024 * 1024))
    supervise(_role(tmp_path, "worker", STEADY.replace('"begins"', '"begins", flush=True'))).start()
    assert (tmp_path / "logs" / "worker.log").read_text() == "begins\n"
    assert (tmp_path / "logs" / "worker.log.1").stat().st_size == 6 * 1024 * 1024


def test_a_broker_that_dies_comes_back(
    supervise: Callable[..., Supervisor], said: list[str], own_broker: Broker
) -> None:
    supervisor = supervise(broker=own_broker)
    own_broker.kill()
    supervisor.watch(until=_by(200, lambda: "The broker is ready again, with what it had." in said))
    assert takes_credentials(own_broker.amqp_url)


def _by(seconds: float, condition: Callable[[], bool]) -> Callable[[], bool]:
    """*condition*, which has to become true within *seconds*."""
    deadline = time.monotonic() + seconds

    def check() -> bool:
        assert time.monotonic() < deadline
        return condition()

    return check
