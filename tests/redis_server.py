"""The Redis of a test run: a server that is named, or a private one, started on first use.

`ACKLINE_TEST_REDIS_URL`; else `redis-server` of this machine; else, on Debian or Ubuntu as root, the distribution's
package, installed first; else testcontainers where Docker answers. A private one listens on the loopback address only,
and writes nothing to the disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ackline.infra.debian_package import PackageUnavailable, install, package_refusal
from ackline.infra.docker_node import docker_refusal
from ackline.infra.guardian import Guarded
from ackline.infra.ports import LOOPBACK, free_port
from tests.waiting import until

VARIABLE = "ACKLINE_TEST_REDIS_URL"
IMAGE = "redis:8-alpine"


class RedisUnavailable(Exception):
    """No Redis for the tests: says what was tried and how to get each."""


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A Redis server while the block runs: its URL."""
    named = os.environ.get(VARIABLE)
    if named:
        yield named
        return
    program, refusal = _program()
    if program is not None:
        with _private(program) as url:
            yield url
    elif (docker := docker_refusal()) is None:
        with _container() as url:
            yield url
    else:
        raise RedisUnavailable(
            "no Redis for the tests. Tried, in this order:\n"
            f"  {VARIABLE} is not set: redis://host:6379/0\n"
            "  the server program: no redis-server on PATH\n"
            f"  the distribution's package: {refusal}. To get it: apt-get install redis-server\n"
            f"  Docker: {docker}"
        )


def _program() -> tuple[str | None, str]:
    """The server program, installed first where that is possible; else why not."""
    if (found := shutil.which("redis-server")) is not None:
        return found, ""
    if (refusal := package_refusal()) is not None:
        return None, refusal
    try:
        install("redis-server", service="redis-server", say=print)
    except PackageUnavailable as error:
        return None, str(error)
    return shutil.which("redis-server"), "the package brought no redis-server"


@contextlib.contextmanager
def _private(program: str) -> Iterator[str]:
    port = free_port()
    command = [program, "--port", str(port), "--bind", LOOPBACK, "--save", "", "--appendonly", "no"]
    with tempfile.TemporaryDirectory(prefix="ackline-redis-") as folder:
        log = Path(folder) / "redis.log"
        node = Guarded(command, environment=os.environ, log=log, grace=3.0, cwd=Path(folder))
        url = f"redis://{LOOPBACK}:{port}/0"
        try:
            until(lambda: node.exit_code is not None or _answers(port), what="Redis to answer")
            assert node.exit_code is None, log.read_text()
            yield url
        finally:
            node.stop()


def _answers(port: int) -> bool:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=2) as connected:
            connected.sendall(b"PING\r\n")
            return connected.recv(16).startswith(b"+PONG")
    except OSError:
        return False


@contextlib.contextmanager
def _container() -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # testcontainers' own, at import
        from testcontainers.core.container import DockerContainer
    port = free_port()
    container: Any = DockerContainer(IMAGE)  # its type knows no host address for a port
    url = f"redis://{LOOPBACK}:{port}/0"
    with container.with_bind_ports("6379/tcp", (LOOPBACK, port)):
        until(lambda: _answers(port), what="Redis to answer")
        yield url
