"""What jobs under test do, and who publishes them: the same for Ackline's and for plain Celery's.

python -m tests.benchmarks.consuming.APP publish COUNT      fills its queue, and prints how quickly
python -m tests.benchmarks.consuming.APP wait COUNT         publishes one after another, each when the last has run
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.consuming.meter import Meter, Placed, placed

#: Jobs that are published before the clock starts: connections, caches and code are warm then.
WARM_UP = 50

meter = Meter(shared=True)


def place(**order: Any) -> None:
    """A no-op on arguments that are checked."""
    Placed.model_validate(order)
    meter.handled()


def ping(pipe: str) -> None:
    """Tells whoever waits at *pipe* that it runs."""
    descriptor = os.open(pipe, os.O_WRONLY)
    os.write(descriptor, b".")
    os.close(descriptor)


def main(publish: Callable[[str, dict[str, Any]], object]) -> None:
    """Do what the command line says. publish: a job by its name, with its arguments; returns when it is confirmed."""
    what, count = sys.argv[1], int(sys.argv[2])
    figures = _publish(publish, count) if what == "publish" else _wait(publish, count)
    print(json.dumps(figures))


def _publish(publish: Callable[[str, dict[str, Any]], object], count: int) -> dict[str, float]:
    orders = [placed(number).model_dump() for number in range(count + 1)]
    publish("bench.place", orders[count])
    began, cpu = time.perf_counter(), time.process_time()
    for order in orders[:count]:
        publish("bench.place", order)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"published per second": count / took, "CPU µs per publish": 1e6 * cpu / count}


def _wait(publish: Callable[[str, dict[str, Any]], object], count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        pipe = Path(folder) / "pipe"
        os.mkfifo(pipe)
        descriptor = os.open(pipe, os.O_RDWR)
        times = []
        for _ in range(WARM_UP + count):
            began = time.perf_counter()
            publish("bench.ping", {"pipe": str(pipe)})
            os.read(descriptor, 1)
            times.append(time.perf_counter() - began)
        os.close(descriptor)
    measured = sorted(times[WARM_UP:])
    return {"ms to its run": 1e3 * statistics.median(measured), "99 %": 1e3 * measured[len(measured) * 99 // 100]}
