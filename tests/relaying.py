"""What tests of the outbox share: a message, a queue that records it, and who is the active relay."""

from __future__ import annotations

import json

from pydantic import BaseModel
from sqlalchemy import Engine, select

from ackline.infra.tables import leases
from ackline.infra.topology import ConsumerQueue, declare
from ackline.producer import message
from tests.amqp import Client, Taken

QUEUE = "recorder"
TYPES = ("test.recorded", "test.other")


@message("test.recorded")
class Recorded(BaseModel):
    """Something to record."""

    number: int
    filling: str = ""


def declare_queue(url: str) -> None:
    """Have a queue that takes what is published of TYPES."""
    declare(url, [ConsumerQueue(QUEUE, TYPES)])


def taken(client: Client, queue: str = QUEUE) -> list[Taken]:
    """Everything that is in the queue now, in its order."""
    found = []
    while (one := client.take(queue)) is not None:
        found.append(one)
    return found


def numbers(client: Client, queue: str = QUEUE) -> list[int]:
    """The numbers of `taken`."""
    return [json.loads(one.body)["number"] for one in taken(client, queue)]


def active(engine: Engine) -> int | None:
    """Process id of the relay that has the lease; None when nobody has it."""
    with engine.connect() as connection:
        holder = connection.scalar(select(leases.c.holder))
    return None if holder is None else int(holder.partition(" ")[0].rpartition(":")[2])
