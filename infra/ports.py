"""Loopback ports: which are free, and which to take.

Ports come from below the range that Linux gives to outgoing connections (32768 and up). A client that tries again and
again to reach a stopped broker inside that range can be given the broker's own port as its source port, then connects
to itself and keeps the port from the broker.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Collection

LOOPBACK = "127.0.0.1"

#: Where free ports are looked for.
FIRST, LAST = 20000, 32000


def is_free(port: int) -> bool:
    """Whether a server could listen on *port* of the loopback address now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a closed connection may linger
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_port(*, besides: Collection[int] = ()) -> int:
    """A free loopback port that is not one of *besides*, chosen at random so that two starters seldom meet.

    Another program may take it before the caller does.
    """
    for _ in range(1000):
        port = random.randint(FIRST, LAST)  # noqa: S311 - not a secret
        if port not in besides and is_free(port):
            return port
    raise OSError(f"no free port between {FIRST} and {LAST} on {LOOPBACK}")
