"""A role tells `ackline up` that it is ready to serve.

`ackline up` hands each role the write end of a pipe and names its number in `ACKLINE_READY_FD`. A role that is started
by hand has no such variable, and then nothing happens.
"""

from __future__ import annotations

import contextlib
import os

#: Names the file descriptor to which a role writes one line when it is ready.
VARIABLE = "ACKLINE_READY_FD"

LINE = b"ready\n"


def ready() -> None:
    """Say once that this role serves from now on. Later calls, and calls without a listener, do nothing.

    Call it when the role would take its first message or request: after it is connected and consumes or listens.
    Never raises: a starter that is gone, or that does not listen, is no reason for a role to die.
    """
    number = os.environ.pop(VARIABLE, None)  # popped, so that a child process does not say it a second time
    if number is None:
        return
    with contextlib.suppress(OSError, ValueError):
        descriptor = int(number)
        try:
            os.write(descriptor, LINE)
        finally:
            os.close(descriptor)
