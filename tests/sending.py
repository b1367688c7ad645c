"""Redrives in tests step by step: what an operator asks for, and what the reviewer's sender does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import select

from ackline.dlq import redrive
from ackline.dlq.redrive import Claim, Requested
from ackline.dlq.rights import Actor, Role
from ackline.dlq.store import Store
from ackline.dlq.transition import transitions
from ackline.dlq.view import Item
from ackline.infra.database import reading, writing
from ackline.infra.tables import dead_letters, redrive_items


def request_redrive(
    store: Store, ids: Sequence[int], name: str = "ada", takers: Mapping[str, Sequence[str]] | None = None
) -> Requested:
    """Send these back, as *name*. takers: the consumers of each type, for what no consumer took."""
    with writing(store._engine) as connection, transitions(connection) as moves:
        found = select(dead_letters.c.id, dead_letters.c.version).where(dead_letters.c.id.in_(ids))
        versions = {str(row.id): row.version for row in connection.execute(found)}
        who = Actor(name, Role.OPERATOR)
        return redrive.request(connection, moves, who, ids, versions, "", lambda type_: (takers or {}).get(type_, ()))


def take(store: Store, limit: int, seconds: float) -> list[Claim]:
    """What is to be published now."""
    with writing(store._engine) as connection:
        return redrive.claim(connection, limit, 1_000_000, seconds)


def settle(
    store: Store, sent: Sequence[str], put_off: dict[str, str], not_sent: dict[str, str], *, again_in: float
) -> None:
    """What became of what was claimed: confirmed by the broker, to be published again, or never."""
    with writing(store._engine) as connection, transitions(connection) as moves:
        redrive.not_sent(connection, moves, not_sent)
        redrive.confirmed(connection, sent)
        redrive.put_off(connection, put_off, again_in)


def items_of(store: Store, item_ids: Sequence[str]) -> list[Item]:
    """What has become of these."""
    query = select(*[redrive_items.c[field] for field in Item.__dataclass_fields__])
    with reading(store._engine) as connection:
        return [Item(**row._mapping) for row in connection.execute(query.where(redrive_items.c.id.in_(item_ids)))]
