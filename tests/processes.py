"""Which processes run: what a test must not leave behind."""

from __future__ import annotations

import subprocess
from pathlib import Path


def alive(pid: int) -> bool:
    """Whether the process *pid* runs; one that has ended and that nobody has waited for does not."""
    asked = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return asked.stdout.strip() != "" and not asked.stdout.startswith("Z")


def mentioning(text: str | Path) -> list[str]:
    """The processes that have *text* in their command line, by `ps`; a test's own folder names its processes."""
    asked = subprocess.run(["ps", "-ww", "-eo", "pid=,stat=,args="], capture_output=True, text=True, check=True)
    return [line for line in asked.stdout.splitlines() if str(text) in line and line.split()[1][0] != "Z"]
