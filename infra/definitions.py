"""The topology as a `definitions.json` that RabbitMQ loads at boot."""

from __future__ import annotations

import base64
import hashlib
import os
from typing import Any

from ackline.infra.topology import Topology


def definitions(wanted: Topology, vhost: str, user: tuple[str, str] | None = None) -> dict[str, Any]:
    """What `load_definitions` takes. user: (name, password) of an administrator to create, None for none.

    A broker that loads definitions at boot creates no default user, so one without a user must get it otherwise.
    """
    found: dict[str, Any] = {
        "vhosts": [{"name": vhost}],
        "exchanges": [
            {
                "name": exchange.name,
                "vhost": vhost,
                "type": exchange.type,
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": exchange.arguments or {},
            }
            for exchange in wanted.exchanges
        ],
        "queues": [
            {
                "name": queue.name,
                "vhost": vhost,
                "durable": True,
                "auto_delete": False,
                "arguments": queue.queue_arguments,
            }
            for queue in wanted.queues
        ],
        "bindings": [
            {
                "source": bound.exchange,
                "vhost": vhost,
                "destination": bound.destination,
                "destination_type": "exchange" if bound.to_exchange else "queue",
                "routing_key": bound.routing_key,
                "arguments": bound.arguments,
            }
            for bound in wanted.bindings()
        ],
    }
    if user is not None:
        name, password = user
        found["users"] = [
            {
                "name": name,
                "password_hash": password_hash(password),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": ["administrator"],
            }
        ]
        found["permissions"] = [{"user": name, "vhost": vhost, "configure": ".*", "write": ".*", "read": ".*"}]
    return found


def password_hash(password: str, salt: bytes | None = None) -> str:
    """A password as RabbitMQ keeps it: base64 of a salt of 4 bytes and SHA-256 over salt and password.

    Source: RabbitMQ, "Credentials and Passwords", "Computing Password Hash".
    """
    chosen = os.urandom(4) if salt is None else salt
    return base64.b64encode(chosen + hashlib.sha256(chosen + password.encode()).digest()).decode()
