"""A RabbitMQ node of Ackline's own, run from an installed `rabbitmq-server`, apart from any node of the system.

Its folder holds all of it: data, logs, configuration, Erlang cookie, ports and password. It listens on the loopback
address only, with its own Erlang port mapper (epmd), so that it neither sees nor disturbs another node.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from ackline.infra import guardian
from ackline.infra.guardian import Guarded
from ackline.infra.node_config import ENABLED_PLUGINS, advanced_config, definitions_with_user, rabbitmq_conf
from ackline.infra.node_identity import NodeIdentity, settle_identity
from ackline.infra.ports import LOOPBACK
from ackline.infra.private_file import write_private
from ackline.infra.running_broker import STOP_SECONDS, Broker, BrokerUnavailable, wait_until_ready

#: `localhost` rather than the machine's name: a laptop that changes its name still finds its data.
NODE_NAME = "ackline@localhost"

#: Seconds to wait for an earlier node of the same folder that is still stopping.
_PATIENCE_SECONDS = STOP_SECONDS + 4.0


class PrivateNode(Broker):
    """A node run from the program *server*, everything of it in *folder*. *why* ends its description.

    *extra_config* lines go into `rabbitmq.conf`. *definitions* is a JSON file that is loaded at each boot; the node's
    own user is added to it. *deny_deprecated* refuses RabbitMQ's deprecated features (nothing before 3.11).
    """

    def __init__(
        self,
        server: Path,
        folder: Path,
        *,
        why: str,
        deny_deprecated: bool = False,
        extra_config: Sequence[str] = (),
        definitions: Path | None = None,
    ) -> None:
        self._server = server
        self._folder = folder.absolute()
        self._why = why
        self._deny_deprecated = deny_deprecated
        self._extra_config = tuple(extra_config)
        self._definitions = definitions
        self._node: Guarded | None = None
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        wait_for_folder(self._folder)
        self._refuse_orphan()
        identity, notes = settle_identity(self._folder, before=_quit_stale_epmd)
        self._identity = identity
        self._notes = notes
        self.amqp_url = identity.amqp_url
        self.management_url = identity.management_url
        self.description = f"RabbitMQ from {server}, a private node ({why})."
        self.logs: Path = self._log_folder / "rabbitmq.log"

    def start(self) -> None:
        """See `Broker.start`."""
        if self.alive():
            return
        wait_for_folder(self._folder)
        _wait_for_ports(self._identity, self._folder)
        self._write_files()
        start_log = self._log_folder / "start.log"
        node = self._node = Guarded(
            [str(self._server)],
            environment=self._environment(),
            log=start_log,
            grace=STOP_SECONDS,
            cwd=self._folder,
            lock=lock_file(self._folder),
            epmd_port=self._identity.epmd_port,
        )
        try:
            version = wait_until_ready(self, exit_code=lambda: node.exit_code, log=start_log)
        except BaseException:
            self.stop()
            raise
        notes = f" Note: {'; '.join(self._notes)}." if self._notes else ""
        self.description = f"RabbitMQ {version} from {self._server}, a private node ({self._why}).{notes}"

    def stop(self) -> None:
        """See `Broker.stop`."""
        if self._node is not None:
            self._node.stop()
            self._node = None

    def kill(self) -> None:
        """See `Broker.kill`."""
        if self._node is not None:
            self._node.kill()
            self._node = None

    def alive(self) -> bool:
        """See `Broker.alive`."""
        return self._node is not None and self._node.exit_code is None

    @property
    def pid(self) -> int:
        """Process id of the node itself. Raises `BrokerUnavailable` when it does not run."""
        pid = _recorded_pid(self._folder) if self.alive() else None
        if pid is None:
            raise BrokerUnavailable(f"The node in {self._folder} does not run.")
        return pid

    @property
    def _log_folder(self) -> Path:
        return self._folder / "log"

    def _write_files(self) -> None:
        self._log_folder.mkdir(exist_ok=True)
        (self._log_folder / "start.log").unlink(missing_ok=True)
        definitions = None
        if self._definitions is not None:
            definitions = self._folder / "definitions.json"
            write_private(definitions, definitions_with_user(self._definitions.read_text(), self._identity))
        listeners = [
            f"listeners.tcp.1 = {LOOPBACK}:{self._identity.amqp_port}",
            f"management.tcp.ip = {LOOPBACK}",
            f"management.tcp.port = {self._identity.management_port}",
        ]
        conf = rabbitmq_conf(self._identity, definitions=definitions, extra=[*listeners, *self._extra_config])
        write_private(self._folder / "rabbitmq.conf", conf)
        write_private(self._folder / "advanced.config", advanced_config(deny_deprecated=self._deny_deprecated))
        write_private(self._folder / "enabled_plugins", ENABLED_PLUGINS)
        write_private(self._folder / ".erlang.cookie", self._identity.cookie)

    def _environment(self) -> dict[str, str]:
        """The node's environment: nothing of another RabbitMQ or Erlang that this shell is set up for."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        folder = self._folder
        return kept | {
            "HOME": str(folder),  # where Erlang looks for its cookie
            "RABBITMQ_NODENAME": NODE_NAME,
            "RABBITMQ_CONF_ENV_FILE": os.devnull,  # else /etc/rabbitmq/rabbitmq-env.conf
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(self._log_folder),
            "RABBITMQ_LOGS": str(self._log_folder / "rabbitmq.log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_DIST_PORT": str(self._identity.distribution_port),
            "ERL_EPMD_PORT": str(self._identity.epmd_port),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            # +fnu: file names are UTF-8 whatever the locale, or a folder named `Größe` is not found.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+fnu -kernel inet_dist_use_interface {127,0,0,1}",
            # The script then replaces itself by the Erlang VM, which so gets our signals without a shell between.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _refuse_orphan(self) -> None:
        """Two nodes on one data folder would destroy it. Only a guardian that was killed can leave a node behind."""
        pid = _recorded_pid(self._folder)
        if pid is None:
            return
        asked = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
        if str(self._folder) in asked.stdout:
            raise BrokerUnavailable(
                f"A RabbitMQ node (process {pid}) that nobody looks after still works in {self._folder}; "
                f"stop it with `kill {pid}` and try again."
            )


def lock_file(folder: Path) -> Path:
    """The file that is locked while a broker works on *folder*."""
    return folder / "lock"


def wait_for_folder(folder: Path) -> None:
    """Wait a few seconds for an earlier broker of *folder* to finish stopping.

    Raises `BrokerUnavailable` when it goes on running: it belongs to a starter that is alive.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while guardian.is_locked(lock_file(folder)):
        if time.monotonic() > deadline:
            raise BrokerUnavailable(
                f"Another broker already runs on the data in {folder}: stop the `ackline up` that started it, "
                "or choose another folder with ACKLINE_DATA_DIR."
            )
        time.sleep(0.1)


def _wait_for_ports(identity: NodeIdentity, folder: Path) -> None:
    """A restart keeps its ports, for clients know them already: wait for the old node's, refuse somebody else's."""
    deadline = time.monotonic() + 2.0
    _quit_stale_epmd(identity)
    while busy := identity.busy_ports():
        if time.monotonic() > deadline:
            name, port = next(iter(busy.items()))
            raise BrokerUnavailable(
                f"The broker cannot come back: another program listens on its {name.replace('_', ' ')} {port} "
                f"(kept in {folder / 'node.json'}); stop that program."
            )
        time.sleep(0.1)


def _quit_stale_epmd(identity: NodeIdentity) -> None:
    """An epmd that outlived its guardian serves nobody, and quits when asked."""
    if "epmd_port" in identity.busy_ports():
        guardian.quit_epmd(identity.epmd_port)


def _recorded_pid(folder: Path) -> int | None:
    try:
        return int((folder / "pid").read_text())
    except (OSError, ValueError):
        return None
