"""What a redrive did with each message that was planned, and whether it adds up. SQL on the caller's transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Text, and_, cast, func, select

from ackline.infra.tables import OPEN_ITEM_STATES, DeadLetterState, ItemState, dead_letters, redrive_items

#: Dead letters that are named at most.
NAMED = 1000


@dataclass(frozen=True, slots=True)
class Statement:
    """The account of a redrive, by id where something is open or does not add up.

    items: how many messages, by what became of them; every state is there. duplicates: arrivals and reports of them
    that changed nothing, for a message was sent or delivered twice. flagged: dead letters to which something happened
    out of turn. unanswered: the dead letters of those that were sent, or are about to be, and of which nothing is known
    yet. odd: dead letters that do not agree with what the redrive says of them, and in what. Of both the first `NAMED`.
    """

    redrive_id: int
    state: str
    planned: int
    items: dict[str, int]
    duplicates: int
    flagged: int
    unanswered: list[int]
    odd: dict[int, str]

    @property
    def open(self) -> int:
        """Messages that are not sent yet, or not answered."""
        return sum(self.items[state] for state in (ItemState.PLANNED, *OPEN_ITEM_STATES))

    @property
    def adds_up(self) -> bool:
        """Whether every message that was planned is accounted for."""
        return self.planned == sum(self.items.values()) and not self.odd


def counts(connection: Connection, redrive_id: int) -> dict[str, int]:
    """How many items of a redrive are in each state; every state is there."""
    items = redrive_items.c
    query = select(items.state, func.count()).where(items.redrive_id == redrive_id).group_by(items.state)
    found = {row[0]: row[1] for row in connection.execute(query)}
    return {state.value: found.get(state.value, 0) for state in ItemState}


def statement(connection: Connection, row: Any) -> Statement:
    """The statement of the redrive *row*, as it is now."""
    items = redrive_items.c
    plan = row.plan
    # Of one without a plan, what a person sent back at once, all items are claimed when it begins.
    planned = row.sent if plan is None else plan["messages"] + sum(plan["ineligible"].values())
    touched = select(
        func.coalesce(func.sum(dead_letters.c.duplicates), 0),
        func.count().filter(cast(dead_letters.c.flags, Text) != "[]"),
    ).join_from(redrive_items, dead_letters, items.dead_letter_id == dead_letters.c.id)
    duplicates, flagged = connection.execute(touched.where(items.redrive_id == row.id, items.run > 0)).one()
    unanswered = select(items.dead_letter_id).where(items.redrive_id == row.id, items.state.in_(OPEN_ITEM_STATES))
    return Statement(
        row.id,
        row.state,
        planned,
        counts(connection, row.id),
        int(duplicates),
        flagged,
        list(connection.scalars(unanswered.order_by(items.dead_letter_id).limit(NAMED))),
        _odd(connection, row.id),
    )


def _odd(connection: Connection, redrive_id: int) -> dict[int, str]:
    """The dead letters that do not agree with their items."""
    items, columns = redrive_items.c, dead_letters.c
    is_open = items.state.in_(OPEN_ITEM_STATES)
    has_it = and_(columns.state == DeadLetterState.REDRIVING, columns.redrive_item_id == items.id)
    faults: list[tuple[str, ColumnElement[bool]]] = [
        ("it is gone, and nobody knows what became of it", and_(columns.id.is_(None), is_open)),
        ("it waits for an answer, and is {state}", and_(is_open, ~has_it)),
        ("its redrive has ended, and it is still redriving", and_(~is_open, has_it)),
        (
            "it was handled, and is {state}",
            and_(
                items.state == ItemState.HANDLED,
                columns.state.not_in((DeadLetterState.HANDLED, DeadLetterState.DISCARDED)),
            ),
        ),
    ]
    odd: dict[int, str] = {}
    for said, fault in faults:
        query = (
            select(items.dead_letter_id, columns.state)
            .outerjoin_from(redrive_items, dead_letters, items.dead_letter_id == columns.id)
            .where(items.redrive_id == redrive_id, fault)
            .order_by(items.dead_letter_id)
            .limit(NAMED - len(odd))
        )
        for row_id, state in connection.execute(query):
            odd.setdefault(row_id, said.format(state=state))
    return odd
