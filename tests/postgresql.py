"""The PostgreSQL of a test run: a server that is named, or a private cluster, started on first use.

`ACKLINE_TEST_POSTGRESQL_URL`; else the server programs of this machine; else, on Debian or Ubuntu as root, the
distribution's package, installed first; else testcontainers where Docker answers. A private cluster listens on the
loopback address only and is thrown away in the end.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

from ackline.infra.debian_package import PackageUnavailable, install, package_refusal
from ackline.infra.docker_node import docker_refusal
from ackline.infra.guardian import Guarded
from ackline.infra.ports import LOOPBACK, free_port
from tests.waiting import until

VARIABLE = "ACKLINE_TEST_POSTGRESQL_URL"
IMAGE = "postgres:17-alpine"


class PostgresqlUnavailable(Exception):
    """No PostgreSQL for the tests: says what was tried and how to get each."""


@contextlib.contextmanager
def server(*, durable: bool = False) -> Iterator[str]:
    """A PostgreSQL server while the block runs: its SQLAlchemy URL, with the right to create databases.

    durable: whether a private cluster waits for the disk as one does that is not thrown away.
    """
    named = os.environ.get(VARIABLE)
    if named:
        yield named
        return
    programs, refusal = _programs()
    if programs is not None:
        with _private_cluster(programs, durable) as url:
            yield url
    elif (docker := docker_refusal()) is None:
        with _container() as url:
            yield url
    else:
        raise PostgresqlUnavailable(
            "no PostgreSQL for the tests. Tried, in this order:\n"
            f"  {VARIABLE} is not set: postgresql+psycopg://user:password@host:5432/postgres\n"
            f"  server programs: no initdb in /usr/lib/postgresql/*/bin or on PATH\n"
            f"  the distribution's package: {refusal}. To get it: apt-get install postgresql\n"
            f"  Docker: {docker}"
        )


@contextlib.contextmanager
def fresh_database(server_url: str) -> Iterator[str]:
    """An empty database of *server_url* while the block runs: its SQLAlchemy URL. Dropped even if still used."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(_plain(server_url), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _plain(url: str) -> str:
    """The URL as psycopg takes it: SQLAlchemy's names its driver."""
    return urlunsplit(urlsplit(url)._replace(scheme="postgresql"))


def _programs() -> tuple[Path | None, str]:
    """The folder of the newest server programs, installed first where that is possible; else why not."""
    if (found := _installed()) is not None:
        return found, ""
    if (refusal := package_refusal()) is not None:
        return None, refusal
    try:
        # Without this, Debian's package makes and starts a cluster of the system's.
        common = Path("/etc/postgresql-common")
        with _file(common / "createcluster.conf", "create_main_cluster = false\n"):
            install("postgresql", service="postgresql", say=print)
    except PackageUnavailable as error:
        return None, str(error)
    return _installed(), "the package brought no initdb"


@contextlib.contextmanager
def _file(path: Path, text: str) -> Iterator[None]:
    """*path* with *text* while the block runs, unless there is such a file already."""
    if path.exists():
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _installed() -> Path | None:
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda initdb: float(initdb.parent.parent.name)
    )
    if debian:
        return debian[-1].parent
    found = shutil.which("initdb")
    return None if found is None else Path(found).resolve().parent


@contextlib.contextmanager
def _private_cluster(programs: Path, durable: bool) -> Iterator[str]:
    """A cluster of this test run's own; as root, run by an unprivileged user, for PostgreSQL refuses root."""
    folder = Path(tempfile.mkdtemp(prefix="ackline-postgresql-"))  # not pytest's: only root may enter that
    password = secrets.token_urlsafe(16)
    (folder / "password").write_text(password)
    become = _unprivileged(folder)
    port = free_port()
    initdb = [*become, str(programs / "initdb"), "--username=ackline", "--auth=scram-sha-256", "--encoding=UTF8"]
    initdb += ["--locale=C", "--no-sync", f"--pwfile={folder / 'password'}", f"--pgdata={folder / 'data'}"]
    done = subprocess.run(initdb, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    postgres = [*become, str(programs / "postgres"), "-D", str(folder / "data"), "-p", str(port), "-h", LOOPBACK]
    # No sockets in the file system, and no fsync: a cluster that is thrown away need not survive a power cut.
    postgres += ["-c", "unix_socket_directories=", "-c", f"fsync={'on' if durable else 'off'}"]
    log = folder / "postgresql.log"
    node = Guarded(postgres, environment=os.environ, log=log, grace=3.0, cwd=folder)
    url = f"postgresql+psycopg://ackline:{password}@{LOOPBACK}:{port}/postgres"
    try:
        until(lambda: node.exit_code is not None or _answers(url), what="PostgreSQL to answer")
        assert node.exit_code is None, log.read_text()
        yield url
    finally:
        node.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged(folder: Path) -> list[str]:
    """What a command begins with so that it does not run as root; *folder* then belongs to that user."""
    if os.geteuid() != 0:
        return []
    users = {entry.pw_name: entry for entry in pwd.getpwall()}
    user = users.get("postgres") or users["nobody"]
    for path in (folder, *folder.iterdir()):
        os.chown(path, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _answers(url: str) -> bool:
    try:
        psycopg.connect(_plain(url), connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


@contextlib.contextmanager
def _container() -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # testcontainers' own, at import
        from testcontainers.core.container import DockerContainer
    password = secrets.token_urlsafe(16)
    port = free_port()
    container: Any = DockerContainer(IMAGE)  # its type knows no host address for a port
    container = (
        container.with_bind_ports("5432/tcp", (LOOPBACK, port))
        .with_env("POSTGRES_USER", "ackline")
        .with_env("POSTGRES_PASSWORD", password)
    )
    url = f"postgresql+psycopg://ackline:{password}@{LOOPBACK}:{port}/postgres"
    with container:
        until(lambda: _answers(url), deadline=60, what="PostgreSQL to answer")
        yield url
