"""The circuit breaker: while what a handler needs is down, its consumer takes no messages.

```
            `failures` in a row
   closed ───────────────────────► open ◄──────────┐
     ▲                              │ `probe` later │ the probe failed
     │     the probe succeeded      ▼               │
     └────────────────────────── half open ─────────┘
```

*Closed*: failures count as attempts, as without a breaker. *Open*: the subscription is cancelled, and what had not
begun is back in its queue. *Half open*: one message is taken, the probe; without one to take it stays so until one
comes. With a `check` there is no half open: the check is the probe.

What fails because the circuit opens, and while it is open, is *parked*: it comes back through a retry tier without an
attempt counted. It is not given back, since brokers before 4.3 count that towards the delivery limit, and a probe a
second would use it up. The same limit is why a circuit that has closed lets messages in by and by: one, then two when
one has succeeded, four when two more have, and so on. So an opening gives back no more messages than were handled since
the circuit closed, one that is given back has come half its way to the front of the queue each time, and that is
log2(prefetch) times at most, however often the circuit opens and closes.

There is one circuit for each consumer in each worker process: several processes each find out by themselves.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeAlias

from ackline.consumers.decision import AlreadyHandled, Park
from ackline.infra.durations import seconds
from ackline.infra.errors import ConfigurationError

log = logging.getLogger(__name__)

Call: TypeAlias = Callable[[Any, Any], Any]


class Breaker:
    """When a consumer stops taking messages, and how it finds out that it may go on: `@consumer(..., breaker=...)`."""

    def __init__(
        self,
        *,
        on: tuple[type[BaseException], ...],
        failures: int = 5,
        probe: str | float = "1s",
        check: Callable[[], object] | None = None,
    ) -> None:
        """on: the exceptions that say that what the handler needs is down. Everything else that a handler does,
        another exception included, says that it is not.

        failures: so many in a row, over all handlers of the consumer in this process, open the circuit. probe: how
        long it is open before the next probe ("1s", "500ms", or seconds). check: a probe without a message: returns
        when what the handlers need is there, raises otherwise; called on a thread of its own, and to be over within
        seconds. Without it one message is the probe.

        Raises `ConfigurationError`.
        """
        if (
            not isinstance(on, tuple)
            or not on
            or not all(isinstance(c, type) and issubclass(c, BaseException) for c in on)
        ):
            raise ConfigurationError(f"on={on!r} names no exceptions: on=(ConnectionError, TimeoutError), for example.")
        if failures < 1:
            raise ConfigurationError(f"failures={failures}: a circuit opens after one failure at least.")
        self.on = on
        self.failures = failures
        self.probe = seconds(probe)
        self.check = check


class _State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


class Circuit:
    """The state of one consumer's breaker in this process. `begin`, `succeeded` and `failed` on any thread.

    A handler that began before the last change of state says nothing new when it ends: it changes nothing.
    """

    def __init__(
        self,
        consumer: str,
        breaker: Breaker,
        *,
        prefetch: int,
        limit: Callable[[int | None], None],
        later: Callable[[float, Callable[[], None]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """prefetch: messages that the consumer may hold when its circuit is closed for good.

        limit: bounds what the consumer holds unacked; 0: it takes nothing; None: no bound. later: runs a function in
        so many seconds, on any other thread. Both are called under a lock, and return at once.
        """
        self._consumer = consumer
        self._breaker = breaker
        self._prefetch = prefetch
        self._limit = limit
        self._later = later
        self._clock = clock
        self._lock = threading.Lock()
        self._state = _State.CLOSED
        self._period = 0  # counts the changes of state
        self._failures = 0  # in a row, while closed
        self._window: int | None = None  # the bound while a closed circuit lets messages in by and by
        self._until_wider = 0  # successes until the window doubles
        self._opened_at = 0.0
        self._probes = 0

    def around(self, call: Call, *, is_async: bool, is_batch: bool) -> Call:
        """*call*, which runs the handler, with the circuit told how it ends. It raises `Park` for what is parked."""
        if is_async:

            async def arun(message: Any, context: Any) -> Any:
                began = self.begin()
                try:
                    result = await call(message, context)
                except BaseException as error:
                    if (parked := self._parked(began, error)) is None:
                        raise
                    return _instead(parked, message if is_batch else None, error)
                return self._returned(began, result if is_batch else None)

            return arun

        def run(message: Any, context: Any) -> Any:
            began = self.begin()
            try:
                result = call(message, context)
            except BaseException as error:
                if (parked := self._parked(began, error)) is None:
                    raise
                return _instead(parked, message if is_batch else None, error)
            return self._returned(began, result if is_batch else None)

        return run

    def _parked(self, began: int, error: BaseException) -> Park | None:
        if isinstance(error, AlreadyHandled | Park):  # no handler was run
            return None
        delay = self.failed(began, error)
        return None if delay is None else Park(delay)

    def _returned(self, began: int, results: Any) -> Any:
        """results: of a batch handler, an exception for each message that failed; None: all is well."""
        first = next((error for error in results or () if isinstance(error, self._breaker.on)), None)
        if first is None:
            self.succeeded(began)
        elif (parked := self._parked(began, first)) is not None:
            return [parked if isinstance(error, self._breaker.on) else error for error in results]
        return results

    def begin(self) -> int:
        """A handler begins. Returns what is to be told when it ends."""
        return self._period

    def succeeded(self, began: int) -> None:
        """A handler has not met what the breaker is for."""
        if not self._failures and self._window is None and self._state is _State.CLOSED:  # nearly always
            return
        with self._lock:
            if began != self._period or self._state is _State.OPEN:
                return
            self._failures = 0
            if self._state is _State.HALF_OPEN:
                self._close(2)
            elif self._window is not None:
                self._until_wider -= 1
                if not self._until_wider:
                    self._let_in(self._window * 2)

    def failed(self, began: int, error: BaseException) -> float | None:
        """A handler has raised *error*. Returns the seconds to park the message for, without an attempt; None when the
        retry policy decides, as without a breaker."""
        if not isinstance(error, self._breaker.on):
            self.succeeded(began)
            return None
        with self._lock:
            if began == self._period and self._state is not _State.OPEN:
                self._failures += 1
                if self._state is _State.CLOSED and self._failures < self._breaker.failures:
                    return None
                self._open(error)
        return self._breaker.probe

    def _open(self, error: BaseException) -> None:
        if self._state is _State.CLOSED:
            self._opened_at, self._probes = self._clock(), 0
            log.warning(
                "%s: the circuit is open (failures in a row: %d, the last %s): no message is taken; a probe every %g s",
                self._consumer,
                self._failures,
                type(error).__name__,  # its text may quote a secret of the message
                self._breaker.probe,
            )
        else:
            log.debug("%s: the probe failed, the circuit is open again: %s", self._consumer, type(error).__name__)
        self._enter(_State.OPEN)
        self._window = None
        self._limit(0)
        self._later(self._breaker.probe, self._probe)

    def _probe(self) -> None:
        self._probes += 1
        if self._breaker.check is not None:
            threading.Thread(target=self._check, name=f"probe of {self._consumer}", daemon=True).start()
            return
        with self._lock:
            log.debug("%s: the circuit is half open: one message is taken", self._consumer)
            self._enter(_State.HALF_OPEN)
            self._limit(1)

    def _check(self) -> None:
        assert self._breaker.check is not None  # noqa: S101
        try:
            self._breaker.check()
        except Exception as error:
            log.debug("%s: the check failed, the circuit stays open: %r", self._consumer, error)
            self._later(self._breaker.probe, self._probe)
            return
        with self._lock:
            self._close(1)

    def _close(self, window: int) -> None:
        log.info(
            "%s: the circuit is closed again after %.1f s and %d probes",
            self._consumer,
            self._clock() - self._opened_at,
            self._probes,
        )
        self._enter(_State.CLOSED)
        self._let_in(window)

    def _let_in(self, window: int) -> None:
        """Take up to *window* messages, twice as many after as many successes, and in the end as many as may be."""
        self._until_wider = window
        self._window = window if window < self._prefetch else None
        self._limit(self._window)

    def _enter(self, state: _State) -> None:
        self._state = state
        self._period += 1
        self._failures = 0


def _instead(parked: Park, batch: list[Any] | None, error: BaseException) -> list[Park]:
    """Of a batch handler all messages are parked; handled again one by one each of them would fail."""
    if batch is None:
        raise parked from error
    return [parked] * len(batch)
