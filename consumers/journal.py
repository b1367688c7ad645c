"""Which messages are in a handler now, in memory that outlives the process that writes it.

A message that kills its process leaves no exception, no log line and no answer to the broker. So each worker process
notes every message before its handler begins, in memory shared with its parent and the parent's other processes; a
SIGKILL takes the process and leaves the note.

    one file in memory (memfd), inherited by every process of one `ackline worker`
    ┌───────────┬───────────┬───────────┬─────┐
    │ suspects  │ process 1 │ process 2 │  …  │   sections: each written by one process, read by all
    └───────────┴───────────┴───────────┴─────┘

A process looks a redelivered message up in the sections of those that have died. It finds what a neighbour was
handling even before the parent has seen that death, as the broker is quick to deliver again. The parent moves what a
dead process left to the first section, which holds the suspects until they have been handled apart.

A section is the number of slots in use and the id of its process, then for each slot the length of its key (0: free),
then the keys. A key is written before its length and cleared by its length, so that a death between two writes leaves
no half of a key.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

from ackline.consumers import child
from ackline.infra.properties import Properties

#: Messages in handlers of one process at most that are noted; beyond that the broker's delivery count must do.
SLOTS = 8192
#: Suspects at most, and seconds after which one is forgotten: by then it was handled apart, or its queue is gone.
MOST_SUSPECTS, SUSPECT_SECONDS = 1024, 3600.0
#: Bytes of a slot: a consumer's name and a message id, each of 255 bytes at most, and what separates them.
_SLOT = 512
_HEAD, _LENGTHS = mmap.PAGESIZE, SLOTS * 2
_SECTION = _HEAD + _LENGTHS + SLOTS * _SLOT

_BY_ID, _BY_BODY = b"\x00", b"\x01"


def key_of(consumer: str, properties: Properties, body: bytes) -> bytes:
    """What identifies a delivery from one redelivery to the next: consumer and message id, or the body's digest."""
    id_ = properties.message_id
    if id_:
        return consumer.encode() + _BY_ID + id_
    return consumer.encode() + _BY_BODY + hashlib.blake2b(body, digest_size=16).digest()


class Section:
    """Keys that come and go. `enter` and `leave` are for one process, on any thread; every process may read."""

    def __init__(self, memory: mmap.mmap, number: int) -> None:
        whole = memoryview(memory)[number * _SECTION : (number + 1) * _SECTION]
        self._used = whole[:8].cast("Q")
        self._process = whole[8:16].cast("Q")
        self._lengths = whole[_HEAD : _HEAD + _LENGTHS].cast("H")
        self._keys = whole[_HEAD + _LENGTHS :]
        self._free: list[int] = []
        self._lock = threading.Lock()

    @property
    def process(self) -> int:
        """The id of the process that writes here; 0 before there is one."""
        return int(self._process[0])

    @process.setter
    def process(self, pid: int) -> None:
        self._process[0] = pid

    def enter(self, key: bytes) -> int:
        """Note *key*, and return its slot for `leave`."""
        try:
            slot = self._free.pop()
        except IndexError:
            slot = self._another()
        at = slot * _SLOT
        size = len(key)
        self._keys[at : at + size] = key
        self._lengths[slot] = size
        return slot

    def leave(self, slot: int) -> None:
        """Clear what `enter` noted."""
        self._lengths[slot] = 0
        self._free.append(slot)

    def _another(self) -> int:
        with self._lock:
            slot = self._used[0]
            if slot == SLOTS - 1:
                return slot  # the last one is for all for whom there is none, and nobody reads it
            self._used[0] = slot + 1
            return slot

    def slots(self) -> Iterator[tuple[int, bytes]]:
        """The slots in use, and their keys."""
        for slot, size in enumerate(self._lengths[: self._used[0]]):
            if size:
                yield slot, bytes(self._keys[slot * _SLOT : slot * _SLOT + size])

    def slot_of(self, key: bytes) -> int | None:
        """Where *key* is noted."""
        return next((slot for slot, noted in self.slots() if noted == key), None)

    def is_free(self, slot: int) -> bool:
        """Whether nothing is noted there."""
        return self._lengths[slot] == 0

    def erase(self, slot: int) -> None:
        """Clear a slot of another process, which finds out by `is_free`."""
        self._lengths[slot] = 0

    def clear(self) -> None:
        """Forget everything: the process is gone, and another begins anew."""
        self._lengths[: self._used[0]] = memoryview(bytes(2 * self._used[0])).cast("H")
        self._used[0] = 0


class Journal:
    """The journal of all processes of one `ackline worker`, as one of them sees it."""

    def __init__(self, memory: mmap.mmap, own: int, *, process: int, clock: Callable[[], float]) -> None:
        """memory: of `open_journal` or `private_journal`. own: this process, counted from 1; 0 is the parent."""
        self._sections = [Section(memory, number) for number in range(len(memory) // _SECTION)]
        self._suspects = self._sections[0]
        self._clock = clock
        self._accused: dict[int, float] = {}  # the parent's: slots of suspects, oldest first, and since when
        #: What this process is handling.
        self.own = self._sections[own]
        self.own.process = process

    def names(self, key: bytes) -> bool:
        """Whether *key* is a suspect: by the parent, or by what a process that has died just now was handling."""
        return self._suspects.slot_of(key) is not None or any(
            section.slot_of(key) is not None and child.has_ended(section.process) for section in self._sections[1:]
        )

    def acquit(self, key: bytes) -> None:
        """A suspect was handled apart: it is none any more."""
        if (slot := self._suspects.slot_of(key)) is not None:
            self._suspects.erase(slot)

    # --- the parent --------------------------------------------------------------------------------------

    def accuse(self, process: int) -> list[bytes]:
        """Make suspects of what *process*, which has died, was handling; returns their keys."""
        found = [key for _, key in self._sections[process].slots()]
        known = {key for _, key in self._suspects.slots()}
        for key in found:
            if key not in known:
                self._accused[self._suspects.enter(key)] = self._clock()
        self.forget()
        self._sections[process].clear()  # last: who looks meanwhile finds it in both places
        return found

    def excuse(self, process: int) -> None:
        """What *process* was handling when it ended is no suspect: it ended because it was told to."""
        self._sections[process].clear()

    def forget(self) -> None:
        """Drop suspects that were acquitted, are too old, or too many: the oldest first."""
        old = self._clock() - SUSPECT_SECONDS
        for slot, since in list(self._accused.items()):
            if self._suspects.is_free(slot) or since <= old or len(self._accused) > MOST_SUSPECTS:
                del self._accused[slot]
                self._suspects.leave(slot)


def journal_file(processes: int) -> int:
    """A file in memory for the journal of so many processes: its descriptor, which they inherit."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("ackline-journal")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, (1 + processes) * _SECTION)
    return descriptor


def open_journal(
    descriptor: int, own: int, *, process: int | None = None, clock: Callable[[], float] = time.monotonic
) -> Journal:
    """The journal in the file of `journal_file`, for the process number *own*: this one, or of that id."""
    return Journal(mmap.mmap(descriptor, 0), own, process=process or os.getpid(), clock=clock)


def private_journal() -> Journal:
    """A journal that nobody else reads: of a worker without a parent."""
    return Journal(mmap.mmap(-1, 2 * _SECTION), 1, process=os.getpid(), clock=time.monotonic)
