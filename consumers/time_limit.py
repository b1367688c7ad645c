"""Time limits: a deadline for each try of a handler, its middleware and its inbox included.

A coroutine is cancelled. A thread cannot be: `TimeLimitExceeded` is raised in it at its next safe point, between two
instructions of Python, by `PyThreadState_SetAsyncExc`. Code that waits in C (a query, a socket without a timeout) gets
there when the call returns, and code that keeps the exception to itself never. What goes on is reported, once, and
keeps its slot of the worker's concurrency until it ends: the worker takes so many messages less, and knows it. Only a
process can be killed; that is what jobs are for.

**The race.** The exception must not come when the handler has ended: it would hit the next message's, or the worker's
own code. So whoever takes a run out of the set of runs, in one atomic step, decides its end:

- the thread, when the handler has ended: then it is never fired;
- the watchdog, when it is due: then it is fired once, and the thread, before it goes on, waits for that and takes back
  the exception, unless it came already. It may come while the thread does this, and is caught there.

For the same reason no lock that others need may be taken by a thread that is under a limit, but in C code that is done
with it when it returns: an exception between an `acquire` and its `try` would leave it locked for ever.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import threading
import time
from _thread import allocate_lock
from collections.abc import Callable
from functools import cache
from math import inf
from queue import Empty, SimpleQueue
from typing import Any

from ackline.infra.durations import seconds, written
from ackline.infra.errors import ConfigurationError

log = logging.getLogger(__name__)

#: Seconds that a handler gets to end after its limit, before it is reported.
PATIENCE = 5.0

Call = Callable[[Any, Any], Any]


class TimeLimitExceeded(BaseException):
    """Raised in a handler that has run for longer than its `time_limit`.

    No `Exception`, so that an `except Exception` of the handler does not keep it. A failure like any other beyond that:
    the message is retried by the consumer's policy.
    """


def limit_of(name: str, limit: str | float) -> float:
    """The time limit of the consumer called *name*, in seconds. Raises `ConfigurationError`."""
    if not (found := seconds(limit)):
        raise ConfigurationError(f"The time limit of {name!r} is {limit!r}: leave it away for none.")
    return found


def check(name: str, limit: float, *, waiting: float, consumer_timeout: float) -> None:
    """Raises `ConfigurationError` when a message may be with the worker for longer than the broker allows.

    The broker's clock runs from the delivery, not from the begin of the handler (rule 13). limit: of the consumer
    called *name*. waiting: how long its messages may wait for their turn. All in seconds.
    """
    if limit + waiting >= consumer_timeout:
        raise ConfigurationError(
            f"The time limit of {name!r}, {written(limit)}, and up to {written(waiting)} before a message's turn comes "
            f"do not fit into the broker's consumer_timeout of {written(consumer_timeout)}, after which it takes the "
            "message from the handler and delivers it again. Set a shorter time_limit, make the work a job, or raise "
            "consumer_timeout in rabbitmq.conf and ACKLINE_CONSUMER_TIMEOUT with it."
        )


@cache
def watchdog() -> TimeLimits:
    """The time limits of this process."""
    return TimeLimits()


class _Run:
    """One try of a handler on a thread."""

    __slots__ = ("begun", "due", "fired", "limit", "over", "reported", "thread", "what")

    def __init__(self, limit: float, what: object) -> None:
        self.thread = threading.get_ident()
        self.limit = limit
        self.what = what
        self.begun = time.monotonic()
        self.due = self.begun + limit
        self.fired = allocate_lock()
        self.fired.acquire()
        self.over = False
        self.reported = False


class TimeLimits:
    """Enforces time limits of handlers. Thread-safe; has a thread of its own."""

    def __init__(self, patience: float = PATIENCE) -> None:
        """patience: seconds that a handler gets to end after its limit, before it is reported."""
        self._patience = patience
        self._runs: dict[_Run, None] = {}
        self._late: list[_Run] = []
        self._wake: SimpleQueue[bool] = SimpleQueue()
        #: When the watchdog looks next: who is due earlier wakes it.
        self._looks_at = inf
        threading.Thread(target=self._watch, name="time-limits", daemon=True).start()

    def close(self) -> None:
        """Enforce no more."""
        self._wake.put(True)

    def around(self, call: Call, limit: float) -> Call:
        """*call*, for *limit* seconds at most; its second argument is named in what is reported."""

        def limited(message: Any, context: Any) -> Any:
            run = _Run(limit, context)
            result = None
            returned = False
            try:
                try:
                    self._runs[run] = None
                    if run.due < self._looks_at:
                        self._wake.put(False)
                    result = call(message, context)
                    returned = True
                finally:
                    run.over = True  # a plain store, before anything at which the exception could come
                    if self._runs.pop(run, self) is self:
                        run.fired.acquire()
                        _interrupt(run.thread, None)
            except TimeLimitExceeded as error:
                if not returned:
                    error.args = (_exceeded(limit),)
                    raise
            finally:
                if run.reported:
                    _say_ended(run.what, time.monotonic() - run.begun)
            return result

        return limited

    def around_async(self, call: Call, limit: float) -> Call:
        """`around` for a coroutine function."""

        async def limited(message: Any, context: Any) -> Any:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            late = loop.call_at(begun + limit + self._patience, _say_late, context, limit, self._patience, _KEPT_CANCEL)
            try:
                async with asyncio.timeout(limit) as scope:
                    return await call(message, context)
            except TimeoutError as error:
                if scope.expired():
                    raise TimeLimitExceeded(_exceeded(limit)) from error
                raise
            finally:
                late.cancel()
                if loop.time() >= late.when():
                    _say_ended(context, loop.time() - begun)

        return limited

    # --- the watchdog ----------------------------------------------------------------------------------

    def _watch(self) -> None:
        closed = False
        while not closed:
            # In this order: who begins now either is seen here, or sees that nobody will look in time.
            self._looks_at = inf
            due = [run.due for run in list(self._runs)] + [run.due + self._patience for run in self._late]
            self._looks_at = min(due, default=inf)
            try:
                closed = self._wake.get(timeout=max(self._looks_at - time.monotonic(), 0) if due else None)
            except Empty:
                self._look(time.monotonic())

    def _look(self, now: float) -> None:
        for run in list(self._runs):
            if run.due <= now and self._runs.pop(run, self) is not self:
                _interrupt(run.thread, TimeLimitExceeded)
                run.fired.release()
                self._late.append(run)
        for run in self._late:
            if not run.over and run.due + self._patience <= now:
                run.reported = True
                _say_late(run.what, run.limit, self._patience, _KEPT)
        self._late = [run for run in self._late if not run.over and not run.reported]


_KEPT = "it waits in code that is not Python's, or keeps TimeLimitExceeded to itself"
_KEPT_CANCEL = "it keeps CancelledError to itself, or blocks the event loop"


def _exceeded(limit: float) -> str:
    return f"the handler ran for longer than its time limit of {written(limit)}"


def _say_late(what: object, limit: float, since: float, why: str) -> None:
    log.error(
        "%s: the handler goes on %s after the end of its time limit of %s: %s. Until it ends it takes the place of "
        "another message. Give what it calls a timeout of its own; work that needs a whole CPU, or must be killed when "
        "it does not end, belongs in a job.",
        _named(what),
        written(since),
        written(limit),
        why,
    )


def _say_ended(what: object, after: float) -> None:
    log.warning("%s: the handler that went on beyond its time limit has ended after %.1f s", _named(what), after)


def _named(what: object) -> str:
    """The message of a context; of a batch's, the first and how many there are."""
    if isinstance(what, list):
        return f"{what[0]} (the first of a batch of {len(what)})"
    return str(what)


def _interrupt(thread: int, error: type[BaseException] | None) -> None:
    """Raise *error* in *thread* at its next safe point; None: not, if it has not come yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )
