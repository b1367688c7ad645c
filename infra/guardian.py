"""Runs one program and takes care that nothing of it outlives whoever started it.

    starter (ackline up, a test)  --pipe-->  guardian  -->  program (a RabbitMQ node, a role) --> its own children

A broker that stays behind after a SIGKILL of `ackline up` holds its ports and its data folder, and the next start fails
for a reason that nobody can see. No signal handler helps against SIGKILL, so a small process stands between:

- The starter holds the write end of the guardian's standard input. When the starter ends, however it ends, the kernel
  closes that end, the guardian reads end-of-file and stops the program gracefully. It looks at its parent's id too,
  because a child that the starter forked may hold the pipe open.
- On Linux the program is killed by the kernel when the guardian itself is killed (`PR_SET_PDEATHSIG`), and the guardian
  adopts what the program leaves behind (`PR_SET_CHILD_SUBREAPER`): Erlang's epmd makes itself a daemon, and would stay.
- It holds a lock file for as long as it runs, so that two programs can never work on one data folder.

Signals to the guardian: SIGTERM stops the program (SIGTERM to its process group, SIGKILL after the grace), SIGQUIT
kills it at once. It ends as the program ended: with its exit code, or 128 + the signal's number.

This file is run by its path with `python -I -S`, and so may import the standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

#: Exit code of a guardian that found its lock taken: a program already works on that data folder.
LOCKED = 75

#: Seconds between two looks at the parent's id. The pipe tells at once; this is for a pipe that a fork holds open.
PARENT_CHECK_SECONDS = 0.5

#: Seconds that Erlang's port mapper gets to agree that its node is gone; it refuses to quit while one is registered.
EPMD_SECONDS = 2.0

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class Guarded:
    """A program that runs under a guardian, seen from its starter. Not thread-safe.

    *command* is started with *environment* in the folder *cwd*; what it prints is appended to *log*. *grace* is how
    many seconds it has between SIGTERM and SIGKILL. *lock* is a file that the guardian holds locked for as long as it
    runs. *epmd_port* is that of the program's own Erlang port mapper, which is told to quit in the end.
    *pass_fds* are inherited by the program.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        grace: float,
        cwd: Path | None = None,
        lock: Path | None = None,
        epmd_port: int | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        options = ["--grace", str(grace)]
        if lock is not None:
            options += ["--lock", str(lock)]
        if epmd_port is not None:
            options += ["--epmd-port", str(epmd_port)]
        for descriptor in pass_fds:
            options += ["--pass-fd", str(descriptor)]
        self._grace = grace
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, *options, "--", *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=cwd,
                pass_fds=pass_fds,
                start_new_session=True,  # Ctrl-C in a terminal is for the starter, which stops things in order
            )

    @property
    def pid(self) -> int:
        """The guardian's process id; the program's is another."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How the program ended (128 + the signal's number if by one); None while it runs."""
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    def ask_to_stop(self) -> None:
        """Begin a graceful stop, and do not wait for it."""
        self._send(signal.SIGTERM)

    def stop(self, *, within: float | None = None) -> None:
        """Stop the program and wait until nothing of it is left. May be repeated.

        It takes the grace at most (or *within* seconds, if that is less), and a moment.
        """
        self.ask_to_stop()
        if within is not None and within < self._grace:
            try:
                self._process.wait(within)
            except subprocess.TimeoutExpired:
                self._send(signal.SIGQUIT)
        self.wait(self._grace + EPMD_SECONDS + 1.0)

    def kill(self) -> None:
        """Kill the program with SIGKILL, as a crash would, and wait until nothing of it is left."""
        self._send(signal.SIGQUIT)
        self.wait(EPMD_SECONDS + 3.0)

    def wait(self, seconds: float) -> None:
        """Wait for the end of the guardian; kill it when that takes longer than *seconds*."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _send(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)


def is_locked(file: Path) -> bool:
    """Whether a guardian that runs holds the lock *file*."""
    if not file.exists():
        return False
    held = _lock(str(file))
    if held is None:
        return True
    held.close()
    return False


def main(arguments: Sequence[str]) -> int:
    """Guard the program that *arguments* name; returns the code to exit with."""
    options = _parse(arguments)
    lock = _lock(options.lock) if options.lock else None
    if options.lock and lock is None:
        return LOCKED
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake = _wake_on_signals()
    parent = os.getppid()
    try:
        program = subprocess.Popen(
            options.command,
            stdin=subprocess.DEVNULL,
            pass_fds=options.pass_fds,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # the guardian has one thread: safe
        )
    except OSError as error:
        print(f"{options.command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        return 127
    for descriptor in options.pass_fds:
        os.close(descriptor)  # a reader sees the end of the pipe when the program ends, not when the guardian does
    _guard(program, wake=wake, parent=parent, grace=options.grace)
    _kill_group(program.pid, signal.SIGKILL)
    if options.epmd_port is not None:
        quit_epmd(options.epmd_port)
    _end_orphans()
    return program.returncode if program.returncode >= 0 else 128 - program.returncode


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--grace", type=float, required=True)
    parser.add_argument("--lock")
    parser.add_argument("--epmd-port", type=int)
    parser.add_argument("--pass-fd", dest="pass_fds", type=int, action="append", default=[])
    parser.add_argument("command", nargs="+")
    return parser.parse_args(arguments)


def _lock(path: str) -> IO[bytes] | None:
    """The open and locked file, to be kept open; None if another guardian holds it."""
    file = Path(path).open("ab")  # noqa: SIM115 - held until this process ends
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _wake_on_signals() -> int:
    """A descriptor from which the number of each signal can be read, SIGCHLD included."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return readable


def _guard(program: subprocess.Popen[bytes], *, wake: int, parent: int, grace: float) -> None:
    """Return when the program has ended, by itself or because it was told to."""
    deadline: float | None = None
    watched = [0, wake]
    while program.poll() is None:
        timeout = PARENT_CHECK_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select(watched, [], [], timeout)
        signals = os.read(wake, 64) if wake in ready else b""
        if signal.SIGQUIT in signals or (deadline is not None and time.monotonic() >= deadline):
            _kill_group(program.pid, signal.SIGKILL)
            program.wait()
            return
        _reap_adopted(program.pid)
        abandoned = (0 in ready and not os.read(0, 64)) or os.getppid() != parent
        if deadline is None and (abandoned or signal.SIGTERM in signals or signal.SIGINT in signals):
            deadline = time.monotonic() + grace
            watched = [wake]  # an end-of-file stays readable for ever
            _kill_group(program.pid, signal.SIGTERM)


def _reap_adopted(program: int) -> None:
    """Take note of the end of adopted processes; the program's own stays for `Popen.poll`."""
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid == program:
                return
            os.waitpid(ended.si_pid, 0)


def _kill_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def quit_epmd(port: int) -> None:
    """Ask the Erlang port mapper on *port* to quit (request KILL_REQ of the distribution protocol)."""
    deadline = time.monotonic() + EPMD_SECONDS
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
                connection.sendall(b"\x00\x01k")
                if connection.recv(2) == b"OK":
                    return
        except OSError:
            return  # it is gone
        time.sleep(0.05)  # it still lists the node


def _end_orphans() -> None:
    """End and reap what the program left behind, which Linux gave to this process."""
    deadline = time.monotonic() + EPMD_SECONDS
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)


def _children() -> list[int]:
    """Ids of this process's children; empty where there is no /proc."""
    own = str(os.getpid())
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text(errors="replace").rpartition(")")[2].split()  # a name may hold spaces
            if fields[1] == own:
                found.append(int(status.parent.name))
    return found


def _die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.set_wakeup_fd(-1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
