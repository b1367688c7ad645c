"""Poison: a message that kills the process that handles it, and how it is told from its neighbours.

    a worker dies ──► what was in a handler is a suspect ──► handled apart, alone ──┬─ it ends ──► as any delivery
                      (the journal; else the broker's count)                        └─ the process dies ──► in review

A killed worker had up to a prefetch window of messages, of which a few were in a handler, and one may be the poison.
The journal says which were in a handler (see `journal`); those are suspects when the broker delivers them again. Where
no journal can tell, as when the whole host died, a message that was delivered and not answered twice is one.

Suspects are handled one after the other in a process of its own, so that its death convicts exactly one message. That
is the second death for a message which the journal had named, and else the third. It is in review at once, with how
the process ended; an innocent one is answered as always.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from multiprocessing import Pipe

from ackline.consumers import child
from ackline.consumers.decision import Reject
from ackline.consumers.delivery import Delivery
from ackline.consumers.handling import Report, Settlement, Way, cannot_be_sent, settle, trail_of
from ackline.consumers.journal import Journal, key_of
from ackline.consumers.time_limit import PATIENCE, TimeLimitExceeded
from ackline.infra.durations import written
from ackline.infra.restarts import Delay
from ackline.infra.sizes import shown

log = logging.getLogger(__name__)

#: Deliveries without an answer from which on a message is a suspect. RabbitMQ counts one for each connection that ended
#: with the message unacked, 3.10 and 4.3 alike (tests/integration/test_delivery_count.py).
UNANSWERED = 2
_COUNT = "x-delivery-count"

#: Seconds between two looks at the process.
_LOOK_SECONDS = 0.1

#: Seconds after a handler's time limit at which its process is killed: it goes on where no exception can end it.
_LATE_SECONDS = 2 * PATIENCE

#: What the process says when it is about to run the handler: until then its end is not the message's fault.
BEGUN = "begun"


class CrashedWorker(Reject):
    """The handler ended its process: by a signal, by an exit, or by its use of memory."""

    def __init__(self, how: str) -> None:
        super().__init__(f"crashed the worker: {how}")


class Isolation:
    """Tells suspects, and handles them apart. `handle` is for one thread, which outlives this; the rest for any."""

    def __init__(self, journal: Journal, *, max_memory: int | None = None) -> None:
        """max_memory: bytes that the process with a suspect may hold."""
        self.journal = journal
        self._max_memory = max_memory
        self._apart: _Apart | None = None
        self._busy = False

    def suspects(self, consumer: str, delivery: Delivery) -> bool:
        """Whether this delivery, which was delivered before, is to be handled apart."""
        if (delivery.properties.headers.number(_COUNT) or 0) >= UNANSWERED:
            return True
        return self.journal.names(key_of(consumer, delivery.properties, delivery.body))

    def stop(self) -> None:
        """Tell the handler that runs that the worker stops."""
        if (apart := self._apart) is not None:
            apart.ask_to_stop()

    def close(self) -> None:
        """End the process, unless a handler runs in it: then it ends with this one, and nobody is convicted."""
        if self._apart is not None and not self._busy:
            self._apart.close()
            self._apart = None

    def handle(self, way: Way, delivery: Delivery) -> Settlement:
        """Run the handler in a process of its own, and return what follows from it. Never raises.

        While that process cannot be started, the delivery stays unanswered.
        """
        self._busy = True
        try:
            return self._handle(way, delivery)
        finally:
            self._busy = False

    def _handle(self, way: Way, delivery: Delivery) -> Settlement:
        delay = Delay()
        while True:
            apart = self._apart or _Apart(self._max_memory)
            self._apart = apart
            try:
                settlement = apart.handle(way, delivery)
            except _EndedBefore as end:
                self._apart = None
                if end.code:  # else it had nothing to do for a while
                    seconds = delay.schedule()
                    log.error("the process for suspects ended: %s. Started again in %g s", end, seconds)
                    time.sleep(seconds)
            except (CrashedWorker, TimeLimitExceeded) as error:
                self._apart = None
                return settle(way, delivery, trail_of(way, delivery), None, error)
            else:
                self.journal.acquit(key_of(way.consumer.name, delivery.properties, delivery.body))
                return settlement


class _EndedBefore(Exception):
    """The process ended before it began with the handler."""

    def __init__(self, code: int) -> None:
        super().__init__(child.end_of(code))
        self.code = code


class _Apart:
    """The process in which suspects are handled, `ackline.consumers.suspects`. It ends with this one, or when idle."""

    def __init__(self, max_memory: int | None) -> None:
        self._max_memory = max_memory
        self._pipe, theirs = Pipe()
        command = [sys.executable, "-m", "ackline.consumers.suspects", str(theirs.fileno()), str(os.getpid())]
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,  # a handler that signals its group does not mean the worker
            )

    def handle(self, way: Way, delivery: Delivery) -> Settlement:
        """Raises `CrashedWorker`, `TimeLimitExceeded`, and `_EndedBefore`. The process has ended then."""
        limit = way.consumer.time_limit
        begun: float | None = None
        killed_for: BaseException | None = None
        try:
            self._pipe.send((way.consumer.name, delivery, delivery.arrived, way.in_place))
            while True:
                if self._pipe.poll(_LOOK_SECONDS):
                    said = self._pipe.recv()
                    if isinstance(said, Report):
                        _tell(way, delivery, said)
                    elif said != BEGUN:
                        settlement: Settlement
                        settlement, has_fallback = said
                        fallback = partial(cannot_be_sent, way, delivery) if has_fallback else None
                        return replace(settlement, fallback=fallback)
                    else:
                        begun = time.monotonic()
                elif self._process.poll() is not None and not self._pipe.poll():
                    break  # a process that the handler forked may hold the pipe open
                elif self._max_memory and child.resident_bytes(self._process.pid) > self._max_memory:
                    killed_for = CrashedWorker(f"used more than {shown(self._max_memory)}")
                    self._process.kill()
                elif limit is not None and begun is not None and time.monotonic() > begun + limit + _LATE_SECONDS:
                    killed_for = TimeLimitExceeded(f"the handler did not end at its time limit of {written(limit)}")
                    self._process.kill()
        except (EOFError, OSError):
            pass
        self._pipe.close()
        code = self._process.wait()
        if begun is None:
            raise _EndedBefore(code)
        raise killed_for or CrashedWorker(child.end_of(code))

    def close(self) -> None:
        """Let it end, as it does when nobody is at the other end of its pipe."""
        self._pipe.close()
        self._process.wait()

    def ask_to_stop(self) -> None:
        """Set the signal that the handler may look at."""
        if self._process.poll() is None:
            self._process.terminate()


def _tell(way: Way, delivery: Delivery, progress: Report) -> None:
    if way.tell is not None:
        way.tell(delivery, lambda: progress)
