"""Keeps the roles of one machine running: starts them in order, restarts what dies, stops all of it in time.

Each role is a process under a guardian (see `ackline.infra.guardian`), so that nothing is left behind even when the
supervisor itself is killed. A role that dies comes back after a delay that doubles while it keeps dying.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from ackline.infra import ready
from ackline.infra.errors import AcklineError
from ackline.infra.guardian import Guarded
from ackline.infra.log_tail import last_lines
from ackline.infra.restarts import Delay
from ackline.infra.running_broker import Broker, BrokerUnavailable

#: Seconds from the start of a role until it must be ready.
READY_SECONDS = 60.0

#: Seconds that all roles together get to stop. With the broker's own this stays below 15.
STOP_SECONDS = 6.0

#: Seconds that the last roles get when the first have used up the time.
_LEAST_STOP_SECONDS = 0.3

#: Seconds between two looks at the processes.
_LOOK_SECONDS = 0.1

#: Bytes from which on a log is set aside at the start of its role; one older log is kept.
_LOG_BYTES = 5 * 1024 * 1024


class RoleFailed(AcklineError):
    """A role ended while it started, or did not get ready: says which, with its last log lines."""


@dataclass(frozen=True, slots=True)
class Role:
    """A program that runs until it is stopped and says when it is ready (see `ackline.infra.ready`).

    *environment* is added to the supervisor's own. With a *ready_url*, that has to answer 2xx too.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_url: str | None = None


class Supervisor:
    """Runs *roles* in their order and, with a *broker* that can be stopped, that broker. For one thread.

    *say* gets a sentence for each thing that an operator should see. Logs go to *log_folder*`/<role>.log`.
    """

    def __init__(
        self,
        roles: Sequence[Role],
        *,
        log_folder: Path,
        say: Callable[[str], None],
        broker: Broker | None = None,
        ready_seconds: float = READY_SECONDS,
    ) -> None:
        log_folder.mkdir(parents=True, exist_ok=True)
        self._running = [_RunningRole(role, log_folder / f"{role.name}.log", ready_seconds) for role in roles]
        self._broker = broker if broker is not None and broker.can_stop else None
        self._broker_delay = Delay()
        self._say = say

    def start(self) -> None:
        """Start the roles one after the other, each when the one before it is ready.

        Raises `RoleFailed`; the caller then calls `stop`.
        """
        for running in self._running:
            running.start()
            while not running.look_ready():
                time.sleep(_LOOK_SECONDS)

    def watch(self, until: Callable[[], bool] = lambda: False) -> None:
        """Bring back what dies; returns when *until* says so. An exception, as of a signal handler, ends it too."""
        while not until():
            self._watch_broker()
            for running in self._running:
                self._watch_role(running)
            time.sleep(_LOOK_SECONDS)

    def stop(self) -> None:
        """Stop the roles in reverse order, then the broker: within 15 seconds, and nothing is left. May be repeated."""
        deadline = time.monotonic() + STOP_SECONDS
        for running in reversed(self._running):
            running.stop(within=max(_LEAST_STOP_SECONDS, deadline - time.monotonic()))
        if self._broker is not None:
            self._broker.stop()

    def _watch_role(self, running: _RunningRole) -> None:
        try:
            if running.is_due():
                running.start()
            elif running.look_ready(tell=True):
                self._say(f"{running.role.name} is ready again.")
        except RoleFailed as error:
            seconds = running.schedule()
            self._say(f"{str(error).partition(chr(10))[0]} It is started again in {seconds:g} s; see {running.log}.")

    def _watch_broker(self) -> None:
        broker = self._broker
        if broker is None or broker.alive():
            return
        if self._broker_delay.due is None:
            seconds = self._broker_delay.schedule()
            self._say(f"The broker ended. It is started again in {seconds:g} s; see {broker.logs}.")
        elif time.monotonic() >= self._broker_delay.due:
            self._broker_delay.started()
            try:
                broker.start()
                self._say("The broker is ready again, with what it had.")
            except BrokerUnavailable as error:
                self._say(str(error).partition("\n")[0])


class _RunningRole:
    """One role's process, of which there are several in the course of time."""

    def __init__(self, role: Role, log: Path, ready_seconds: float) -> None:
        self.role = role
        self.log = log
        self._ready_seconds = ready_seconds
        self._process: Guarded | None = None
        self._pipe: int | None = None  # readable; open until the role has said that it is ready
        self._said_ready = False
        self._is_ready = False
        self._deadline = 0.0
        self._delay = Delay()

    def start(self) -> None:
        """Start the process; `look_ready` tells how it goes."""
        _set_aside(self.log)
        self._close_pipe()
        self._pipe, writable = os.pipe()
        try:
            self._process = Guarded(
                self.role.command,
                environment=os.environ | dict(self.role.environment) | {ready.VARIABLE: str(writable)},
                log=self.log,
                grace=STOP_SECONDS,
                pass_fds=[writable],
            )
        finally:
            os.close(writable)
        self._said_ready = self._is_ready = False
        self._deadline = time.monotonic() + self._ready_seconds
        self._delay.started()

    def is_due(self) -> bool:
        """Whether the role is dead and its delay is over."""
        return self._delay.due is not None and time.monotonic() >= self._delay.due

    def schedule(self) -> float:
        """Note that the role is dead, and make sure of it; returns the seconds until it is started again."""
        if self._process is not None:
            self._process.kill()
        self._close_pipe()
        return self._delay.schedule()

    def look_ready(self, *, tell: bool = False) -> bool:
        """Whether the role is ready; with *tell*, whether it has got ready since the last look.

        Raises `RoleFailed` when it has ended or the time is over.
        """
        if self._process is None or self._delay.due is not None:
            return False
        if (code := self._process.exit_code) is not None:
            when = "" if self._is_ready else " while starting"
            raise RoleFailed(f"{self.role.name} ended{when} (exit code {code}).{self._last_lines()}")
        if self._is_ready:
            return not tell
        self._said_ready = self._said_ready or self._hear()
        self._is_ready = self._said_ready and self._answers()
        if not self._is_ready and time.monotonic() > self._deadline:
            raise RoleFailed(f"{self.role.name} was not ready after {self._ready_seconds:g} s.{self._last_lines()}")
        return self._is_ready

    def stop(self, *, within: float) -> None:
        """Stop the process for good."""
        if self._process is not None:
            self._process.stop(within=within)
            self._process = None
        self._close_pipe()

    def _hear(self) -> bool:
        if self._pipe is None or not select.select([self._pipe], [], [], 0)[0]:
            return False
        heard = os.read(self._pipe, 64)
        self._close_pipe()
        return heard == ready.LINE

    def _answers(self) -> bool:
        if self.role.ready_url is None:
            return True
        try:
            with httpx.Client(timeout=2.0, trust_env=False) as client:
                return client.get(self.role.ready_url).is_success
        except httpx.HTTPError:
            return False

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def _last_lines(self) -> str:
        return last_lines([self.log])


def _set_aside(log: Path) -> None:
    """Keep logs bounded: a long one becomes `<name>.1`, in place of the one before."""
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))
