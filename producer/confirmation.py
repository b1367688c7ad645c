"""The future of a message: a `concurrent.futures.Future` that costs a fifth.

A Future makes a Condition when it is made, takes its lock for each question, and nearly none of them is ever waited
on while it is pending. This one makes the Condition when first somebody needs it; `wait`, `as_completed` and
`asyncio.wrap_future` do, and find all that they look for.

Why no wake-up is lost: who settles it writes the state first and looks for a Condition then; who waits makes the
Condition first and looks at the state then. Whatever comes first, one of them sees the other.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import FINISHED, RUNNING
from typing import Any, TypeVar

T = TypeVar("T")


class Confirmation(Future[T]):
    """What became of a message. It cannot be cancelled: the message may be on its way."""

    def __init__(self) -> None:
        # Not Future's own, which makes the Condition.
        self._state = RUNNING
        self._result = None
        self._exception = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []
        self._made: list[threading.Condition] = []
        self._open = [True]

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        if not self._made:
            self._made.append(threading.Condition())  # of two threads at once, the first one's is everybody's
        return self._made[0]

    def done(self) -> bool:
        """Whether it has its answer."""
        return self._state == FINISHED

    def result(self, timeout: float | None = None) -> T:
        """The receipt. Waits for it, *timeout* seconds at most; raises the `PublishError` that came instead."""
        if self._state == FINISHED and self._exception is None:
            return self._result  # type: ignore[return-value]
        return super().result(timeout)

    def set_result(self, result: T) -> None:
        """Settle it. Raises `InvalidStateError` when it is settled."""
        self._settle(result, None)

    def set_exception(self, exception: BaseException | None) -> None:
        """Settle it as failed. Raises `InvalidStateError` when it is settled."""
        self._settle(None, exception)

    def _settle(self, result: T | None, error: BaseException | None) -> None:
        try:
            self._open.pop()  # of two threads at once, one gets it
        except IndexError:
            raise InvalidStateError(f"{self._state}: {self!r}") from None
        self._result = result
        self._exception = error
        self._state = FINISHED
        if self._made:
            with self._condition:
                for waiter in self._waiters:
                    (waiter.add_exception if error else waiter.add_result)(self)
                self._condition.notify_all()
            self._invoke_callbacks()  # type: ignore[attr-defined]

    def forget_threads(self) -> None:
        """In a forked child: those that wait, hold the lock, or were about to settle it are threads of the parent."""
        self._made.clear()
        self._waiters.clear()
        if not self.done():
            self._open = [True]
