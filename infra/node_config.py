"""What a broker that Ackline starts is told: `rabbitmq.conf`, `advanced.config` and definitions to load at boot."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ackline.infra.node_identity import NodeIdentity

#: Deprecated features that a node with `deny_deprecated` refuses, so that tests fail today on what a coming RabbitMQ
#: will not do. Unknown names are ignored by the broker, and so is the whole setting before 3.11.
#: `management_metrics_collection` stays permitted: without it the management API has no queue lengths and rates.
DENIED_FEATURES = (
    "amqp_address_v1",
    "amqp_filter_set_bug",
    "classic_queue_mirroring",
    "global_qos",
    "queue_master_locator",
    "ram_node_type",
    "transient_nonexcl_queues",
)

#: Management; and what hashes the keys of ordered consumers' messages that come without a slot.
PLUGINS = ("rabbitmq_management", "rabbitmq_consistent_hash_exchange")
ENABLED_PLUGINS = f"[{','.join(PLUGINS)}].\n"
#: For the Docker image, whose own list, of Prometheus and management, it replaces.
PLUGINS_VARIABLE = {"RABBITMQ_ENABLED_PLUGINS": ",".join(("rabbitmq_prometheus", *PLUGINS))}


def rabbitmq_conf(identity: NodeIdentity, *, definitions: Path | None, extra: Sequence[str] = ()) -> str:
    """The part of `rabbitmq.conf` that does not depend on where the broker runs; *extra* lines come last."""
    lines = [
        f"default_user = {identity.user}",
        f"default_pass = {identity.password}",
        "log.file.rotation.size = 10485760",
        "log.file.rotation.count = 3",
    ]
    if definitions is not None:
        lines.append(f"load_definitions = {definitions}")
    return "\n".join([*lines, *extra, ""])


def advanced_config(*, deny_deprecated: bool) -> str:
    """`advanced.config` in Erlang terms; always written, or the node would read the system's."""
    if not deny_deprecated:
        return "[].\n"
    denied = ", ".join(f"{name} => false" for name in DENIED_FEATURES)
    return f"[{{rabbit, [{{permit_deprecated_features, #{{{denied}}}}}]}}].\n"


def definitions_with_user(definitions: str, identity: NodeIdentity) -> str:
    """The JSON text *definitions* with the node's own administrator and default vhost added.

    A broker that loads definitions at boot creates no default user, and nobody could sign in.
    """
    loaded: dict[str, Any] = json.loads(definitions)
    user = {
        "name": identity.user,
        "password_hash": _password_hash(identity.password),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": "administrator",
    }
    users = [entry for entry in loaded.get("users", []) if entry["name"] != identity.user]
    vhosts = loaded.get("vhosts", [])
    if all(vhost["name"] != "/" for vhost in vhosts):
        vhosts = [*vhosts, {"name": "/"}]
    everything = {"user": identity.user, "configure": ".*", "write": ".*", "read": ".*"}
    permissions = [entry for entry in loaded.get("permissions", []) if entry["user"] != identity.user]
    permissions += [{**everything, "vhost": vhost["name"]} for vhost in vhosts]
    return json.dumps({**loaded, "users": [*users, user], "vhosts": vhosts, "permissions": permissions}, indent=2)


def _password_hash(password: str) -> str:
    """Salted SHA-256 as RabbitMQ stores it: base64(salt + sha256(salt + password)), a salt of 4 bytes."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
