"""The processes of `ackline worker`: a parent that imports no handler, and children that run them.

    ackline worker  (parent: this module)
    ├── worker process 1    a Worker: a connection that consumes, one that publishes, handler threads
    │   └── suspects        handles one suspect at a time (see `isolation`)
    └── worker process 2 …

A handler can end its process: by a segmentation fault, by `os._exit`, by taking all memory. The parent sees how, says
it in one line, makes suspects of what was in a handler (see `journal`), and starts another, later and later while it
keeps happening. A child never outlives the parent (`child.belong_to`), so this needs no guardian, as the roles of
`ackline up` do; and it writes to the parent's standard error.

**Signals.** SIGTERM or Ctrl-C: every child is told to stop; the parent ends when they have, with exit code 0. A second
one kills them at once. The children are process groups of their own, so that a signal to the parent's group, as of a
terminal or a supervisor, reaches them once.

**The first start.** What is wrong with the settings, the application or the broker is said by the first child; the
parent ends with its exit code. The others are started when the first is ready.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import time
from collections.abc import MutableMapping, Sequence
from typing import NamedTuple, NoReturn

from ackline.consumers import child
from ackline.consumers.journal import Journal, journal_file, open_journal
from ackline.consumers.reloading import Sources
from ackline.infra import ready
from ackline.infra.restarts import Delay
from ackline.infra.sizes import shown

log = logging.getLogger(__name__)

#: Tells a child which one it is, by `Place`.
VARIABLE = "ACKLINE_WORKER_PROCESS"

#: Seconds between two looks at the children: at most so long a process may hold more memory than it may.
_LOOK_SECONDS = 0.1
#: Seconds between two looks at the application's sources.
_SOURCES_SECONDS = 0.5
#: Seconds beyond the grace after which a child that was told to stop is killed: it stops by itself, or hangs.
_HANGING_SECONDS = 10.0


class Processes:
    """Runs *count* processes of *command* until it is told to stop. For the main thread."""

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        *,
        grace_seconds: float,
        max_memory: int | None = None,
        sources: Sources | None = None,
    ) -> None:
        """grace_seconds: how long a child that is told to stop waits for what runs. max_memory: bytes of a child, above
        which it is killed. sources: the files at whose change the children are started again."""
        self._command = command
        self._descriptor = journal_file(count)
        self._journal = open_journal(self._descriptor, 0)
        self._children = [_Child(number) for number in range(1, count + 1)]
        self._grace = grace_seconds
        self._max_memory = max_memory
        self._sources = sources
        self._sources_due = 0.0
        self._proven = False  # whether a child of the present sources has been ready
        self._stopping = False

    def run(self) -> int:
        """Return the exit code, when all children have ended because they were told to, or the first could not start.

        At a second signal this process ends by it.
        """
        wake = _wake_on_signals()
        self._children[0].delay.due = 0.0
        while True:
            for number in _signals(wake, _LOOK_SECONDS):
                self._told(number)
            self._watch_sources()
            for each in self._children:
                if (code := self._look(each)) is not None:
                    self._kill()
                    return code
            if self._stopping and not any(each.process for each in self._children):
                return 0
            if not self._stopping and all(each.is_ready for each in self._children):
                ready.ready()
            self._journal.forget()

    def _told(self, number: int) -> None:
        if number not in (signal.SIGTERM, signal.SIGINT):
            return
        if self._stopping:
            self._kill()
            _end_by(number)
        self._stopping = True
        self._stop()

    def _stop(self) -> None:
        """Tell every child to finish what runs and to end."""
        for each in self._children:
            if each.process is not None and each.deadline is None:
                each.process.terminate()
                each.deadline = time.monotonic() + self._grace + _HANGING_SECONDS

    def _kill(self) -> None:
        for each in self._children:
            if each.process is not None:
                each.process.kill()
                each.process.wait()

    def _watch_sources(self) -> None:
        """Start the children again when their sources have changed."""
        if self._sources is None or self._stopping or time.monotonic() < self._sources_due:
            return
        self._sources_due = time.monotonic() + _SOURCES_SECONDS
        if (changed := self._sources.changed()) is not None:
            log.info("%s has changed; starting again", changed)
            self._proven = False
            self._stop()
            if self._children[0].process is None:
                self._children[0].delay.due = 0.0

    def _look(self, each: _Child) -> int | None:
        """Do what is due for a child. Returns the code to exit with when it could not start for the first time."""
        if each.process is None:
            due = each.delay.due
            if due is not None and time.monotonic() >= due and not self._stopping:
                each.start(self._command, self._descriptor)
            return None
        code = each.process.poll()
        if each.hear() and each.deadline is None and not self._proven:
            self._proven = True
            for other in self._children:
                if other.process is None:
                    other.delay.due = 0.0
        if code is not None:
            return self._ended(each, code)
        if each.deadline is not None and time.monotonic() > each.deadline:
            log.warning("%s did not stop in %g s; killed", each, self._grace + _HANGING_SECONDS)
            each.process.kill()
        elif self._max_memory is not None and child.resident_bytes(each.process.pid) > self._max_memory:
            each.excess = f"used more than {shown(self._max_memory)}"
            each.process.kill()
        return None

    def _ended(self, each: _Child, code: int) -> int | None:
        name, how = str(each), each.excess or child.end_of(code)
        told, was_ready = each.deadline is not None, each.is_ready
        each.forget()
        if told:  # what it left unfinished goes back to its queue, and is no suspect
            self._journal.excuse(each.number)
            each.delay.due = 0.0 if each is self._children[0] or self._proven else None
            return None
        suspects = self._journal.accuse(each.number)
        if code > 0 and not suspects and not was_ready and not self._proven:
            if self._sources is None:
                return code  # it has said why
            log.error("%s ended while starting (%s); started again when a source changes", name, how)
            return None
        seconds = each.delay.schedule()
        left = f"; {_counted(suspects)} in a handler, handled apart from now on" if suspects else ""
        log.error("%s ended: %s%s. Started again in %g s", name, how, left, seconds)
        return None


class _Child:
    """One worker process, of which there are several in the course of time."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.delay = Delay()
        #: When it is killed, if it was told to stop.
        self.deadline: float | None = None
        #: How it was killed for its memory.
        self.excess: str | None = None
        self.is_ready = False
        self._pipe: int | None = None
        self._pid = 0

    def __str__(self) -> str:
        return f"worker process {self.number} (pid {self._pid})"

    def start(self, command: Sequence[str], journal: int) -> None:
        self._pipe, writable = os.pipe()
        place = Place(self.number, journal, os.getpid())
        try:
            self.process = subprocess.Popen(
                command,
                env=os.environ | {ready.VARIABLE: str(writable), VARIABLE: ":".join(map(str, place))},
                stdin=subprocess.DEVNULL,
                pass_fds=[writable, journal],
                process_group=0,
            )
        finally:
            os.close(writable)
        self._pid = self.process.pid
        self.delay.started()

    def hear(self) -> bool:
        """Whether it has said that it is ready."""
        if self._pipe is not None and select.select([self._pipe], [], [], 0)[0]:
            self.is_ready = os.read(self._pipe, 64) == ready.LINE
            self._close_pipe()
        return self.is_ready

    def forget(self) -> None:
        """The process has ended."""
        self.process, self.deadline, self.excess, self.is_ready = None, None, None, False
        self._close_pipe()

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


class Place(NamedTuple):
    """What a child is told of itself: its number, the journal's descriptor, its parent's id."""

    number: int
    descriptor: int
    parent: int

    @classmethod
    def taken_from(cls, environment: MutableMapping[str, str]) -> Place | None:
        """This process's, once: what it starts in its turn is no child. None in a process that no parent started."""
        told = environment.pop(VARIABLE, None)
        return None if told is None else cls(*map(int, told.split(":")))

    def take(self) -> None:
        """Be killed with the parent. Call it first of all."""
        child.belong_to(self.parent)

    @property
    def journal(self) -> Journal:
        """The journal, as this child sees it."""
        return open_journal(self.descriptor, self.number)


def _counted(suspects: Sequence[bytes]) -> str:
    return "1 message was" if len(suspects) == 1 else f"{len(suspects)} messages were"


def _wake_on_signals() -> int:
    """A descriptor from which the number of each signal can be read, that of a child's end included."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return readable


def _signals(wake: int, seconds: float) -> bytes:
    return os.read(wake, 64) if select.select([wake], [], [], seconds)[0] else b""


def _end_by(number: int) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # as the first process of a container, which signals do not end
