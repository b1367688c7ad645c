"""Which acks to send, when deliveries finish in any order.

Delivery tags of a channel count from 1. One `ack(tag, multiple)` for a contiguous run of finished tags costs a fraction
of an ack for each. But `multiple` covers *every* lower tag, so it may only name the end of a run in which all are
finished; what finished above an unfinished one waits a little for the run to reach it, and is then acked singly.
"""

from __future__ import annotations

#: Seconds that a finished delivery waits for the unfinished ones below it, before it is acked singly.
STRAGGLER_SECONDS = 0.05
#: Finished deliveries that wait so at most: the broker delivers no more than a prefetch without their acks.
MOST_WAITING = 32


class AckWindow:
    """The deliveries of one channel. Not thread-safe: the I/O thread's own. Void when the channel is."""

    def __init__(self) -> None:
        self._low = 0  # every tag up to this one is settled on the broker
        self._finished: set[int] = set()  # finished, not acked yet
        self._settled: set[int] = set()  # acked singly, rejected or given back, above the low-water mark
        self._stragglers: set[int] = set()  # finished at the last look at stragglers
        self._delivered = 0

    def delivered(self, tag: int) -> None:
        """A delivery came."""
        self._delivered = tag

    def finish(self, tag: int) -> None:
        """A delivery is to be acked."""
        self._finished.add(tag)

    def settle(self, tag: int) -> None:
        """A delivery was settled otherwise: rejected or given back."""
        self._settled.add(tag)

    @property
    def unsettled(self) -> int:
        """Deliveries that the broker has no answer for."""
        return self._delivered - self._low - len(self._settled)

    @property
    def waiting(self) -> bool:
        """Whether finished deliveries wait for unfinished ones below them."""
        return bool(self._finished)

    def run(self) -> int | None:
        """The tag to ack with `multiple`, if a contiguous run has finished."""
        tag = self._low
        last = None
        while True:
            tag += 1
            if tag in self._finished:
                self._finished.discard(tag)
                last = tag
            elif tag in self._settled:
                self._settled.discard(tag)
            else:
                break
        self._low = tag - 1
        return last

    def stragglers(self) -> list[int]:
        """Tags to ack singly: those that were finished at the last call already. Call every STRAGGLER_SECONDS."""
        late = self._singly(self._finished & self._stragglers)
        self._stragglers = set(self._finished)
        return late

    def crowd(self) -> list[int]:
        """Tags to ack singly at once: all that have finished, when those are more than MOST_WAITING. After `run`."""
        return self._singly(self._finished) if len(self._finished) > MOST_WAITING else []

    def _singly(self, tags: set[int]) -> list[int]:
        found = sorted(tags)
        self._finished.difference_update(found)
        self._settled.update(found)
        return found
