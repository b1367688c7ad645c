"""Roles as processes of their own, for tests that kill and stop them."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ackline.infra import ready
from ackline.infra.settings import Settings

ROOT = Path(__file__).parent.parent
#: Seconds that a role gets to be ready, and to stop.
READY_SECONDS, STOP_SECONDS = 120.0, 90.0


def environment(settings: Settings, **more: str) -> dict[str, str]:
    """The environment in which a role has *settings*; *more* is added."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ACKLINE_")}
    chosen = {
        "ACKLINE_AMQP_URL": settings.broker,
        "ACKLINE_MANAGEMENT_URL": settings.management_url or "",
        "ACKLINE_DATABASE_URL": settings.database,
        "ACKLINE_DATA_DIR": str(settings.data_dir),
        "ACKLINE_GRACE_SECONDS": str(settings.grace_seconds),
        "ACKLINE_APP": ",".join(settings.app),
    }
    if settings.smtp_url:
        chosen["ACKLINE_SMTP_URL"] = settings.smtp_url
    return clean | chosen | more


def run(settings: Settings, *arguments: str, timeout: float = 120, **more: str) -> subprocess.CompletedProcess[str]:
    """Run an `ackline` command to its end, and return what it printed."""
    return subprocess.run(
        [sys.executable, "-m", "ackline.infra", *arguments],
        env=environment(settings, **more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class RoleProcess:
    """`ackline` with *arguments*, in *folder*, as a process that can be started, killed, stopped, and started again."""

    def __init__(self, settings: Settings, *arguments: str, folder: str = str(ROOT), **more: str) -> None:
        self._arguments = arguments
        self._folder = folder
        self._environment = environment(settings, **more)
        self.log = settings.data_dir / (re.sub(r"\W+", "-", " ".join(arguments)) + ".log")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        read, write = os.pipe()
        with self.log.open("ab") as log:
            self.process = self._spawn(write, log)
        os.close(write)
        try:
            said = os.read(read, 64) if select.select([read], [], [], READY_SECONDS)[0] else b"(nothing in time)"
        finally:
            os.close(read)
        if said != ready.LINE:
            self.kill()
            raise AssertionError(f"{self._arguments} did not get ready: {said!r}\n{self.log.read_text()}")

    def _spawn(self, write: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "ackline.infra", *self._arguments],
            env=self._environment | {ready.VARIABLE: str(write)},
            pass_fds=[write],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def processes(self) -> list[int]:
        """Those that it has started."""
        asked = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.pid)], capture_output=True, text=True, check=False
        )
        return [int(line) for line in asked.stdout.split()]

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Ask it to stop, and return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal_number)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self._arguments} did not stop in {STOP_SECONDS} s") from None


def listening(gateway: RoleProcess) -> str:
    """The address on which a gateway listens, as it said itself."""
    found = re.search(r"listening on (http://\S+)", gateway.log.read_text())
    assert found is not None
    return found[1].replace("0.0.0.0", "127.0.0.1")


@contextmanager
def role(settings: Settings, *arguments: str, folder: str = str(ROOT), **more: str) -> Iterator[RoleProcess]:
    """A role that is ready, started in *folder*; killed at the end, if it is still there."""
    process = RoleProcess(settings, *arguments, folder=folder, **more)
    process.start()
    try:
        yield process
    finally:
        process.kill()
