"""Who a broker that Ackline starts is: its ports, its user, its Erlang cookie; chosen once, kept in its folder.

The same broker must be found again at the next start: the user is part of its data, and a browser tab or a client
elsewhere may still hold its address.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ackline.infra.errors import AcklineError
from ackline.infra.ports import LOOPBACK, free_port, is_free
from ackline.infra.private_file import write_private

FILE = "node.json"

#: The ports of a node, as fields of `NodeIdentity`.
PORTS = ("amqp_port", "management_port", "distribution_port", "epmd_port")


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Ports on the loopback address, and secrets. The user is never `guest`."""

    amqp_port: int
    management_port: int
    distribution_port: int
    epmd_port: int
    user: str
    password: str
    cookie: str

    @property
    def amqp_url(self) -> str:
        """Where clients connect, with the credentials; the default vhost."""
        return f"amqp://{self.user}:{self.password}@{LOOPBACK}:{self.amqp_port}/%2F"

    @property
    def management_url(self) -> str:
        """Where the management API and UI answer, without the credentials."""
        return f"http://{LOOPBACK}:{self.management_port}"

    def busy_ports(self) -> dict[str, int]:
        """Those of its ports on which another program listens, by name."""
        return {name: getattr(self, name) for name in PORTS if not is_free(getattr(self, name))}


def settle_identity(
    folder: Path, *, before: Callable[[NodeIdentity], None] = lambda _: None
) -> tuple[NodeIdentity, list[str]]:
    """The identity kept in *folder*, or a new one that is kept there from now on (readable by its user only).

    No broker runs on that folder: the caller has seen to it. A remembered port that another program has taken meanwhile
    is replaced, because every part of Ackline learns the address anew at each start, and a user would rather have a
    running broker than the old number. *before* is called with the kept identity before its ports are looked at.
    Returns the identity and one sentence for each port replaced.
    Raises `AcklineError` when the file is there and cannot be read.
    """
    file = folder / FILE
    kept = _read(file)
    if kept is None:
        fresh = _new_identity()
        write_private(file, json.dumps(asdict(fresh), indent=2))
        return fresh, []
    before(kept)
    notes = []
    for name, port in kept.busy_ports().items():
        other = free_port(besides=_ports(kept))
        kept = NodeIdentity(**{**asdict(kept), name: other})
        notes.append(f"{name.replace('_', ' ')} is now {other}, because another program listens on {port}")
    if notes:
        write_private(file, json.dumps(asdict(kept), indent=2))
    return kept, notes


def _read(file: Path) -> NodeIdentity | None:
    try:
        return NodeIdentity(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise AcklineError(
            f"{file} holds the ports and the password of the broker in this folder and cannot be read ({error}); "
            f"repair it, or delete the folder {file.parent} to begin with an empty broker."
        ) from None


def _new_identity() -> NodeIdentity:
    ports: list[int] = []
    while len(ports) < len(PORTS):
        ports.append(free_port(besides=ports))
    return NodeIdentity(
        **dict(zip(PORTS, ports, strict=True)),
        user="ackline",
        password=secrets.token_urlsafe(24),
        cookie=secrets.token_hex(16),
    )


def _ports(identity: NodeIdentity) -> list[int]:
    return [getattr(identity, name) for name in PORTS]
