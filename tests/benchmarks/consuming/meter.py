"""What all workers under test share: the message, and the clock that their handlers run.

A worker is a process (or several) started by `tests.benchmarks.worker_processes`, which names the count and a file.
"""

from __future__ import annotations

import itertools
import json
import mmap
import multiprocessing
import os
import time
from pathlib import Path

from pydantic import BaseModel

from ackline.producer import message

#: Environment variables: how many messages there are, and where the figures are to be written.
COUNT, RESULT = "BENCH_COUNT", "BENCH_RESULT"
TYPE, TRACKED_TYPE = "bench.placed", "bench.tracked"


@message(TYPE)
class Placed(BaseModel):
    """A message whose JSON has some 300 bytes."""

    order_id: str
    customer: str
    total: float
    express: bool
    lines: list[str]
    note: str


@message(TRACKED_TYPE, track=True)
class Tracked(Placed):
    """The same, tracked."""


def placed(number: int, model: type[Placed] = Placed) -> Placed:
    """The message of that number."""
    return model(
        order_id=f"A-{number:09}",
        customer="c-000017",
        total=129.5,
        express=True,
        lines=["10 × bolt M8", "10 × nut M8", "1 × wrench 13"],
        note="x" * 130,
    )


class Meter:
    """Takes the time from the first message to the last, and writes the figures when it is there. Thread-safe.

    shared: whether the processes that are forked after this count together.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self._last = int(os.environ.get(COUNT, "0"))  # 0: of who only looks at the handlers
        self._shared = shared
        self._numbers = itertools.count(1)
        self._count = multiprocessing.Value("Q") if shared else None
        #: Of the first message: when it began, and the processor time used until then.
        self._began = memoryview(mmap.mmap(-1, 16)).cast("d")

    def begun(self) -> None:
        """A handler begins. Only those that take time need to tell."""
        if not self._began[0]:
            self._begin()

    def handled(self) -> None:
        """A handler ends."""
        number = next(self._numbers) if self._count is None else self._next()
        if number == 1 and not self._began[0]:
            self._begin()
        if number == self._last:
            took, cpu = time.perf_counter() - self._began[0], self._cpu() - self._began[1]
            figures = {"messages per second": (number - 1) / took, "CPU µs per message": 1e6 * cpu / number}
            result = Path(os.environ[RESULT])
            part = result.with_suffix(".part")
            part.write_text(json.dumps(figures))
            part.rename(result)

    def _begin(self) -> None:
        self._began[1] = self._cpu()
        self._began[0] = time.perf_counter()

    def _next(self) -> int:
        assert self._count is not None
        with self._count:
            number: int = self._count.value + 1
            self._count.value = number
            return number

    def _cpu(self) -> float:
        """Processor seconds of this process; of its parent and all its siblings where they count together."""
        if not self._shared:
            return time.process_time()
        parent = os.getppid()
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        # Linux: the clock of another process is made of its number; clock_getcpuclockid(3).
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in [parent, *map(int, children)])
