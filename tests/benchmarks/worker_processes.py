"""Workers as processes of their own, whose queues are full before they start; and how these are filled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ackline.infra.topology import ConsumerQueue, declare
from ackline.producer import Publisher, Receipt
from ackline.producer.message import type_of
from tests.benchmarks.comparing import MEASURE_SECONDS, ROOT, Bench
from tests.benchmarks.consuming.meter import COUNT, RESULT, Placed

#: Seconds between two looks for the figures, and that a worker gets to stop.
_LOOK_SECONDS, _STOP_SECONDS = 0.05, 20.0
#: Confirms that filling leaves outstanding.
_WINDOW = 2000


@dataclass(frozen=True, slots=True)
class Program:
    """How a worker under test is started, or what fills its queue."""

    command: Sequence[str | Path]
    environment: dict[str, str]

    def figures(self, bench: Bench, count: int) -> Mapping[str, float]:
        """Start it, wait until its handlers have written the figures of *count* messages, and stop it."""
        found: Mapping[str, float] = self.result(bench, count)
        return found

    def result(self, bench: Bench, count: int) -> Any:
        """The same for handlers that write something else, as JSON."""
        with self.measured(bench, count) as found:
            return found

    @contextmanager
    def measured(self, bench: Bench, count: int) -> Iterator[Any]:
        """The same, and it runs on while the block does."""
        result = bench.folder / "figures.json"
        result.unlink(missing_ok=True)
        with self.running(bench, **{COUNT: str(count), RESULT: str(result)}) as process:
            deadline = time.monotonic() + MEASURE_SECONDS
            while not result.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no figures:\n{(bench.folder / 'worker.log').read_text()}")
                time.sleep(_LOOK_SECONDS)
            yield json.loads(result.read_text())

    def run(self) -> None:
        """Run it to its end. Raises `subprocess.CalledProcessError`."""
        subprocess.run(self.command, env=self.environment, cwd=ROOT, check=True, timeout=MEASURE_SECONDS)

    @contextmanager
    def running(self, bench: Bench, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """The process, while the block runs."""
        with (bench.folder / "worker.log").open("wb") as log:
            process = subprocess.Popen(
                self.command,
                env=self.environment | environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:  # it finishes what is stuck
                process.kill()
                process.wait()


def program(command: Sequence[str | Path], **environment: str) -> Program:
    """One that runs *command*, with *environment* added."""
    return Program(command, os.environ | environment)


def ackline_worker(bench: Bench, url: str, consumer: str, *options: str, app: str = "ackline_app") -> Program:
    """`ackline worker` for one consumer of that module, with its own defaults but for *options*."""
    return ackline_program(bench, url, app, "worker", "--consumers", consumer, *options)


def ackline_program(bench: Bench, url: str, app: str, *arguments: str) -> Program:
    """`ackline` with *arguments*, for that module."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ACKLINE_")}
    return Program(
        [sys.executable, "-m", "ackline.infra", *arguments],
        clean
        | {
            "ACKLINE_AMQP_URL": url,
            "ACKLINE_APP": f"tests.benchmarks.consuming.{app}",
            "ACKLINE_GRACE_SECONDS": "1",  # what is stuck is not waited for
            "ACKLINE_DATA_DIR": str(bench.folder / "data"),
        },
    )


def fill(url: str, consumer: str, messages: Iterable[Placed], *, model: type[Placed] = Placed) -> None:
    """Make the queue of that consumer of *model*, and put *messages* into it."""
    declare(url, [ConsumerQueue(consumer, (type_of(model),))])
    waiting: deque[Future[Receipt]] = deque()
    with Publisher(url) as publisher:
        for found in messages:
            waiting.append(publisher.submit(found, timeout=60))
            if len(waiting) > _WINDOW:
                waiting.popleft().result()
        for future in waiting:
            future.result()
