"""How a role logs: one line per event to standard error, UTC, for people and for whatever collects it."""

from __future__ import annotations

import logging
import time


def configure_logging(level: int = logging.INFO) -> None:
    """Send the log of this process to standard error. Warnings and up of other libraries, *level* and up of ours."""
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("ackline").setLevel(level)
