"""How many messages queues hold, as RabbitMQ's management counts them every few seconds."""

from __future__ import annotations

from ackline.infra.management import Management
from ackline.infra.settings import Settings


def depths(settings: Settings, *queues: str) -> dict[str, int]:
    """Messages in each of these queues, or in all, unacked ones included; -1 before it has counted them."""
    with Management(settings, timeout=60) as management:
        found = {queue["name"]: queue.get("messages", -1) for queue in management.get("queues/{vhost}")}
    return {name: found[name] for name in queues or found}
