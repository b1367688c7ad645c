"""The handler of a worker whose memory is looked at."""

from __future__ import annotations

import itertools
import json
import os
import resource
import time
from pathlib import Path

from ackline.consumers import consumer
from tests.benchmarks.consuming.meter import COUNT, RESULT, Placed

LOOKS = 10
_last = int(os.environ[COUNT])
_numbers = itertools.count(1)
_looks: list[dict[str, float]] = []


@consumer("bench")
def handle(placed: Placed) -> None:
    """A no-op; after the first message, and each tenth of all, a look at this process."""
    number = next(_numbers)
    if number == 1 or number % (_last // LOOKS) == 0:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        _looks.append({"handled": number, "at": time.monotonic(), "rss": pages * resource.getpagesize()})
    if number == _last:
        result = Path(os.environ[RESULT])
        part = result.with_suffix(".part")
        part.write_text(json.dumps(_looks))
        part.rename(result)
