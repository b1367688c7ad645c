"""Finds a broker to work with: one that is configured, or one that Ackline starts.

In this order: `ACKLINE_AMQP_URL`; the server named by `ACKLINE_RABBITMQ_SERVER` (an explicit wish beats Docker);
Docker; a `rabbitmq-server` on PATH; on Debian or Ubuntu as root, the distribution's package, installed first. A folder
that already holds a broker's messages stays with the way they are kept, so that nobody starts Docker one day and finds
the queues empty.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ackline.infra.debian_package import PackageUnavailable, install, package_refusal
from ackline.infra.docker_node import IMAGE, DockerNode, docker_refusal, fetch_image
from ackline.infra.private_node import PrivateNode
from ackline.infra.running_broker import Broker, BrokerUnavailable, takes_credentials
from ackline.infra.settings import Settings

__all__ = ["Broker", "BrokerUnavailable", "Choice", "choose", "launch"]

PACKAGE = "rabbitmq-server"

#: Where servers are found that a user's PATH often leaves out.
_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/usr/lib/rabbitmq/bin")

#: Debian's wrapper in /usr/sbin changes to the user `rabbitmq`, or refuses; this is the script that it runs.
_BEHIND_DEBIANS_WRAPPER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

#: Names, in a broker's folder, how its data is kept: `docker` or `node`.
_KEPT_BY = "kept-by"


@dataclass(frozen=True, slots=True)
class Choice:
    """How a broker will be had. *kind* is `url`, `node`, `docker` or `package`; *why* a few words for people."""

    kind: str
    why: str
    server: Path | None = None


class ExternalBroker(Broker):
    """A broker that somebody else runs. Starting and stopping it is theirs: here both do nothing."""

    can_stop = False

    def __init__(self, amqp_url: str, management_url: str | None) -> None:
        host = urlsplit(amqp_url).hostname
        self.amqp_url = amqp_url
        self.management_url = management_url or f"http://{host}:15672"
        self.description = f"RabbitMQ at {host}:{urlsplit(amqp_url).port or 5672}, as ACKLINE_AMQP_URL says."

    def start(self) -> None:
        """See that it answers. Raises `BrokerUnavailable` when it does not."""
        if not takes_credentials(self.amqp_url):
            parts = urlsplit(self.amqp_url)
            address, user = f"{parts.hostname}:{parts.port or 5672}", parts.username or "guest"
            raise BrokerUnavailable(
                f"No broker answers at {address} with the user {user!r} and vhost {parts.path[1:] or '/'!r} of "
                "ACKLINE_AMQP_URL: start it, correct the address, or unset the variable to have Ackline start one."
            )

    def stop(self) -> None:
        """Nothing: others use it."""

    def kill(self) -> None:
        """Nothing: others use it."""

    def alive(self) -> bool:
        """Whether it answers."""
        return takes_credentials(self.amqp_url)


def choose(settings: Settings, *, prefer_docker: bool = True, kept_by: str | None = None) -> Iterator[Choice]:
    """The ways to have a broker here that look possible, best first; starts and installs nothing.

    Each takes milliseconds to find, Docker up to five seconds when its daemon hangs. *kept_by* (`docker` or `node`)
    restricts them to the way in which a folder's data is kept already.
    Raises `BrokerUnavailable` when ACKLINE_RABBITMQ_SERVER names no program.
    """
    if settings.amqp_url is not None:
        yield Choice("url", "ACKLINE_AMQP_URL names it")
        return
    if settings.rabbitmq_server is not None:
        yield Choice("node", "ACKLINE_RABBITMQ_SERVER names it", _named_server(settings.rabbitmq_server))
        return
    if prefer_docker and kept_by != "node" and docker_refusal() is None:
        yield Choice("docker", "Docker answers")
    if kept_by == "docker":
        return
    found = find_server()
    if found is not None:
        yield Choice("node", "found on this machine", found)
    elif package_refusal() is None:
        yield Choice("package", f"the distribution's package {PACKAGE}, installed first")


def launch(
    settings: Settings,
    *,
    data_dir: Path,
    prefer_docker: bool = True,
    deny_deprecated: bool = False,
    extra_config: Sequence[str] = (),
    definitions: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Broker:
    """A broker that is ready, by the first of the ways that serves; *data_dir*`/rabbitmq` holds what it keeps.

    The caller stops it (it is a context manager). *say* is told, in a sentence each, what takes a while. The lines
    *extra_config*, the JSON file *definitions* and *deny_deprecated* (refuse deprecated features) are for a broker that
    is started here; one that others run stays as it is.
    Raises `BrokerUnavailable`, with what was tried and how to get each, when none serves.
    """
    folder = data_dir / "rabbitmq"
    kept_by = _kept_by(folder)
    refusals: dict[str, str] = {}
    for choice in choose(settings, prefer_docker=prefer_docker, kept_by=kept_by):
        if choice.kind == "url":
            assert settings.amqp_url is not None  # noqa: S101
            broker: Broker = ExternalBroker(settings.amqp_url, settings.management_url)
            broker.start()
            return broker
        refusal = _prepare(choice, say)
        if refusal is not None:
            refusals[choice.kind] = refusal
            continue
        options = _Options(f"{choice.why}{_aside(refusals)}", deny_deprecated, tuple(extra_config), definitions)
        broker = _make(choice, folder, options)
        broker.start()
        (folder / _KEPT_BY).write_text("docker" if choice.kind == "docker" else "node")
        return broker
    raise BrokerUnavailable(_nothing_serves(folder, kept_by, refusals, prefer_docker=prefer_docker))


@dataclass(frozen=True, slots=True)
class _Options:
    why: str
    deny_deprecated: bool
    extra_config: tuple[str, ...]
    definitions: Path | None


def _prepare(choice: Choice, say: Callable[[str], None]) -> str | None:
    """Fetch what the choice needs; returns why it cannot be had."""
    if choice.kind == "docker":
        return fetch_image(say)
    if choice.kind == "package":
        try:
            install(PACKAGE, service=PACKAGE, say=say)
        except PackageUnavailable as error:
            return str(error)
        if find_server() is None:
            return f"the package {PACKAGE} brought no rabbitmq-server"
    return None


def _make(choice: Choice, folder: Path, options: _Options) -> Broker:
    if choice.kind == "docker":
        return DockerNode(
            folder,
            why=options.why,
            deny_deprecated=options.deny_deprecated,
            extra_config=options.extra_config,
            definitions=options.definitions,
        )
    server = choice.server or find_server()
    assert server is not None  # noqa: S101 - `_prepare` has seen to it
    return PrivateNode(
        server,
        folder,
        why=options.why,
        deny_deprecated=options.deny_deprecated,
        extra_config=options.extra_config,
        definitions=options.definitions,
    )


def find_server() -> Path | None:
    """A `rabbitmq-server` on PATH, or where systems keep theirs; Debian's own without its wrapper."""
    found = shutil.which(PACKAGE, path=os.pathsep.join([os.environ.get("PATH", ""), *_SYSTEM_FOLDERS]))
    return None if found is None else _without_wrapper(Path(found))


def _named_server(name: str) -> Path:
    found = shutil.which(Path(name).expanduser())
    if found is None:
        raise BrokerUnavailable(
            f"ACKLINE_RABBITMQ_SERVER names {name}, which is not a program that can be run: correct it or unset it."
        )
    return _without_wrapper(Path(found).absolute())


def _without_wrapper(server: Path) -> Path:
    wrapped = server.parent in {Path("/usr/sbin"), Path("/sbin"), Path("/usr/bin"), Path("/bin")}
    if wrapped and os.access(_BEHIND_DEBIANS_WRAPPER, os.X_OK):
        return _BEHIND_DEBIANS_WRAPPER
    return server


def _kept_by(folder: Path) -> str | None:
    try:
        return (folder / _KEPT_BY).read_text().strip()
    except OSError:
        return None


def _aside(refusals: dict[str, str]) -> str:
    return "".join(f"; not {kind}: {reason}" for kind, reason in refusals.items())


def _nothing_serves(folder: Path, kept_by: str | None, refusals: dict[str, str], *, prefer_docker: bool) -> str:
    """The message of a machine without any broker: what was tried, why it did not serve, how to get it."""
    docker = "was not asked" if not prefer_docker else refusals.get("docker") or docker_refusal() or "was not asked"
    if kept_by == "docker":
        return (
            f"The messages of {folder.parent} are in a Docker volume, and Docker does not serve: {docker}. "
            f"Start Docker; or delete {folder} to begin with an empty broker."
        )
    package = refusals.get("package") or package_refusal() or "was not tried"
    return "\n".join(
        [
            "no RabbitMQ broker can be had. Tried, in this order:",
            "  ACKLINE_AMQP_URL is not set. To use a broker that runs: ACKLINE_AMQP_URL=amqp://user:password@host:5672/",
            f"  Docker: {docker}. To get it: https://docs.docker.com/get-docker/ (the image is {IMAGE})",
            "  rabbitmq-server: none on PATH. To get it: https://www.rabbitmq.com/docs/download",
            "    (one elsewhere is named by ACKLINE_RABBITMQ_SERVER=/path/to/rabbitmq-server)",
            f"  The distribution's package: {package}. To get it: apt-get install {PACKAGE}",
        ]
    )
