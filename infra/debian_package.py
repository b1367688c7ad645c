"""Installs a package of Debian or Ubuntu for its program, without starting the service that comes with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from ackline.infra.errors import AcklineError

#: What Debian's packages ask before they start their service; exit code 101 says no.
_POLICY = Path("/usr/sbin/policy-rc.d")
_FORBIDDEN = 101

#: Seconds that apt waits for another apt to finish.
_LOCK_SECONDS = 300


class PackageUnavailable(AcklineError):
    """The distribution's package cannot be installed: says what apt said last."""


def package_refusal() -> str | None:
    """Why no package can be installed here, in a few words; None where it can be tried."""
    if shutil.which("apt-get") is None:
        return "this is neither Debian nor Ubuntu"
    if os.geteuid() != 0:
        return "installing a package needs root"
    return None


def install(package: str, *, service: str, say: Callable[[str], None]) -> None:
    """Install *package*. Its *service* is neither started now nor at the next boot.

    Raises `PackageUnavailable` when apt fails.
    """
    say(f"Installing the package {package} (once, a minute or two)")
    with _no_services():
        with contextlib.suppress(PackageUnavailable):  # the lists on this machine may do
            _apt("update")
        _apt("install", "--yes", "--no-install-recommends", package)
    if shutil.which("systemctl") is not None:  # the package has enabled it
        subprocess.run(["systemctl", "disable", service], capture_output=True, check=False)


def _apt(*arguments: str) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "-q", "-o", f"DPkg::Lock::Timeout={_LOCK_SECONDS}", *arguments]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise PackageUnavailable(f"`apt-get {' '.join(arguments)}` failed: {' '.join(lines) or done.returncode}")


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Forbid packages to start services while the block runs; afterwards the machine's own policy is back."""
    if _forbids_already():
        yield
        return
    aside = _POLICY.with_name("policy-rc.d.before-ackline")
    if _POLICY.exists():
        _POLICY.rename(aside)
    try:
        _POLICY.write_text(f"#!/bin/sh\nexit {_FORBIDDEN}\n")
        _POLICY.chmod(0o755)
        yield
    finally:
        _POLICY.unlink(missing_ok=True)
        if aside.exists():
            aside.rename(_POLICY)


def _forbids_already() -> bool:
    if not _POLICY.exists():
        return False
    return subprocess.run([_POLICY, "any", "start"], capture_output=True, check=False).returncode == _FORBIDDEN
