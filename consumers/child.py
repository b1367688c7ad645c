"""What a worker's process is to the kernel: it ends with whoever started it, and goes first when memory is short."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

#: What a worker's process adds to its badness (`oom_score_adj`, proc(5)): the kernel takes it before its parent.
#: The same for all of them: of these, the one that holds most should go.
_BADNESS = 300

_PR_SET_PDEATHSIG = 1
_PAGE = os.sysconf("SC_PAGE_SIZE")


def belong_to(parent: int) -> None:
    """Have this process killed when *parent* ends, however that ends. Call it first of all, on the main thread.

    To the kernel the parent is the thread that started this process, so that thread must live as long as it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        with suppress(OSError):  # where somebody has raised it further, as in some containers
            Path("/proc/self/oom_score_adj").write_text(str(_BADNESS))
    if os.getppid() != parent:  # it ended before it could be asked for
        os._exit(1)


def resident_bytes(pid: int) -> int:
    """The memory that the process holds; 0 when it is gone, or where there is no /proc."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def has_ended(pid: int) -> bool:
    """Whether the process has ended, be it that nobody has waited for it; True as well where there is no /proc."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]  # a name may hold anything
    except (OSError, IndexError):
        return True
    return state in (b"Z", b"X")


def end_of(code: int) -> str:
    """How a process ended, by its `returncode`: "killed by SIGKILL", "exit code 3"."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"killed by signal {-code}"
