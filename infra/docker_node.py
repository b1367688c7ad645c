"""RabbitMQ in Docker: one container on loopback ports, its data in a named volume.

The container runs attached (`docker start --attach`) under a guardian. The client forwards SIGTERM to the container, so
that a starter that is killed leaves no container running, as with a private node. But it does not wait for the
container's end: each stop is a `docker stop` first, or RabbitMQ would be killed while it stops. Configuration is copied
in, not mounted: the daemon may not see this machine's files.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ackline.infra.guardian import Guarded
from ackline.infra.node_config import PLUGINS_VARIABLE, advanced_config, definitions_with_user, rabbitmq_conf
from ackline.infra.node_identity import NodeIdentity, settle_identity
from ackline.infra.private_node import lock_file, wait_for_folder
from ackline.infra.running_broker import STOP_SECONDS, Broker, BrokerUnavailable, wait_until_ready

IMAGE = "rabbitmq:4-management"

#: Seconds for Docker to say whether it is there. A daemon that hangs is as good as none.
_INFO_SECONDS = 5.0

#: Seconds for fetching the image, about 150 MB.
_PULL_SECONDS = 600.0

_COMMAND_SECONDS = 30.0

_DEFINITIONS = "/etc/rabbitmq/ackline-definitions.json"


class DockerNode(Broker):
    """A container of `rabbitmq:4-management` whose ports and password are kept in *folder*. See `PrivateNode`."""

    def __init__(
        self,
        folder: Path,
        *,
        why: str,
        deny_deprecated: bool = False,
        extra_config: Sequence[str] = (),
        definitions: Path | None = None,
    ) -> None:
        self._folder = folder.absolute()
        self._why = why
        self._deny_deprecated = deny_deprecated
        self._extra_config = tuple(extra_config)
        self._definitions = definitions
        self._client: Guarded | None = None
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        wait_for_folder(self._folder)
        # What a starter that was killed may have left holds the ports: it goes before they are looked at.
        self._identity, self._notes = settle_identity(self._folder, before=lambda kept: _remove(_name(kept)))
        self.name = _name(self._identity)
        self.amqp_url = self._identity.amqp_url
        self.management_url = self._identity.management_url
        self.description = f"RabbitMQ in Docker, {IMAGE} ({why})."
        self.logs: Path = self._folder / "container.log"

    def start(self) -> None:
        """See `Broker.start`."""
        if self.alive():
            return
        wait_for_folder(self._folder)
        _remove(self.name)
        self._create_container()
        client = self._client = Guarded(
            ["docker", "start", "--attach", self.name],
            environment=os.environ,
            log=self.logs,
            grace=STOP_SECONDS,
            lock=lock_file(self._folder),
        )
        try:
            version = wait_until_ready(self, exit_code=lambda: client.exit_code, log=self.logs)
        except BaseException:
            self.stop()
            raise
        notes = f" Note: {'; '.join(self._notes)}." if self._notes else ""
        self.description = f"RabbitMQ {version} in Docker, container and volume {self.name} ({self._why}).{notes}"

    def stop(self) -> None:
        """See `Broker.stop`."""
        if self._client is not None:
            _remove(self.name)
            self._client.stop()
            self._client = None

    def kill(self) -> None:
        """See `Broker.kill`."""
        if self._client is not None:
            _docker("kill", self.name)
            _remove(self.name)
            self._client.stop()
            self._client = None

    def alive(self) -> bool:
        """See `Broker.alive`."""
        return self._client is not None and self._client.exit_code is None

    def _create_container(self) -> None:
        ports = {self._identity.amqp_port: 5672, self._identity.management_port: 15672}
        published = [f"--publish=127.0.0.1:{outside}:{inside}" for outside, inside in ports.items()]
        created = _docker(
            "create",
            f"--name={self.name}",
            "--hostname=ackline",  # part of the node's name, and so of its data's path
            f"--volume={self.name}:/var/lib/rabbitmq",
            *published,
            *(f"--env={name}={value}" for name, value in PLUGINS_VARIABLE.items()),
            IMAGE,
        )
        if created.returncode == 0:
            created = _docker("cp", "-", f"{self.name}:/", stdin=self._files())
        if created.returncode != 0:
            raise BrokerUnavailable(f"Docker cannot create the broker's container: {_said(created)}")

    def _files(self) -> bytes:
        """The configuration as a tar archive, readable by the container's own user."""
        definitions = Path(_DEFINITIONS) if self._definitions is not None else None
        conf = rabbitmq_conf(self._identity, definitions=definitions, extra=self._extra_config)
        files = {
            "etc/rabbitmq/conf.d/90-ackline.conf": conf,
            "etc/rabbitmq/advanced.config": advanced_config(deny_deprecated=self._deny_deprecated),
        }
        if self._definitions is not None:
            files[_DEFINITIONS.lstrip("/")] = definitions_with_user(self._definitions.read_text(), self._identity)
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, text in files.items():
                content = text.encode()
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(content), 0o644
                tar.addfile(member, io.BytesIO(content))
        return archive.getvalue()


def _name(identity: NodeIdentity) -> str:
    """The name of the container and of the volume: made from a secret of the folder, not from its path.

    A folder that is deleted and made again has another password, and so must not meet the old volume.
    """
    return f"ackline-{hashlib.sha256(identity.cookie.encode()).hexdigest()[:12]}"


def _remove(name: str) -> None:
    """Stop the container if it runs, and remove it; the named volume, and so the data, stays."""
    _docker("stop", f"--time={STOP_SECONDS:.0f}", name)
    _docker("rm", "--force", name)


def docker_refusal() -> str | None:
    """Why Docker cannot be used, in a sentence; None when its daemon answers."""
    answer = _docker("info", "--format", "{{.ServerVersion}}", seconds=_INFO_SECONDS)
    if answer.returncode == 0 and answer.stdout.strip():
        return None
    return _said(answer)


def fetch_image(say: Callable[[str], None]) -> str | None:
    """Make sure that the image is here; returns why it cannot be had, None when it is."""
    if _docker("image", "inspect", IMAGE).returncode == 0:
        return None
    say(f"Fetching the Docker image {IMAGE} (once)")
    pulled = _docker("pull", "--quiet", IMAGE, seconds=_PULL_SECONDS)
    return None if pulled.returncode == 0 else f"the image {IMAGE} cannot be fetched: {_said(pulled)}"


def _docker(
    *arguments: str, seconds: float = _COMMAND_SECONDS, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run the Docker client; a client that is not there or hangs is an answer like another."""
    command = ["docker", *arguments]
    try:
        return subprocess.run(command, input=stdin, capture_output=True, timeout=seconds, check=False)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, b"", b"no `docker` on PATH")
    except subprocess.TimeoutExpired:
        told = f"`docker {arguments[0]}` did not answer in {seconds:.0f} s"
        return subprocess.CompletedProcess(command, 124, b"", told.encode())


def _said(answer: subprocess.CompletedProcess[bytes]) -> str:
    """The last line that Docker wrote: the first ones are often its usage."""
    lines = (answer.stderr or answer.stdout).decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else f"exit code {answer.returncode}"
