"""A store with an operator at it, for tests of what becomes of dead letters."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine

from ackline.dlq.approvals import Approvals
from ackline.dlq.contracts import Contracts
from ackline.dlq.letters import Letters
from ackline.dlq.rights import Actor, Role
from ackline.dlq.selection import Selection
from ackline.dlq.store import Store
from ackline.dlq.view import Detail, Summary
from ackline.infra.settings import Settings

ADA = Actor("ada", Role.ADMIN)


class Review(Store):
    """The reviewer's store, and what ada sees of it and does there."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        approvals = Approvals(engine, Settings(amqp_url="amqp://127.0.0.1:1"))
        self.letters = Letters(engine, Contracts({}), approvals)

    def page(self, after: int | None = None, limit: int = 50, **filters: Any) -> list[Summary]:
        """Up to *limit* dead letters, of as many pages as that takes."""
        found: list[Summary] = []
        while len(found) < limit:
            page = self.letters.page(ADA, Selection.parse(**filters), after, limit - len(found))
            found += page.items
            after = page.next
            if after is None:
                break
        return found

    def counts(self, **filters: Any) -> dict[str, int]:
        return self.letters.counts(ADA, Selection.parse(**filters))

    def get(self, dead_letter_id: int) -> Detail:
        return self.letters.get(ADA, dead_letter_id)

    def payload(self, dead_letter_id: int) -> bytes:
        return self.letters.payload(ADA, dead_letter_id)

    def find(self, reference: str) -> Summary:
        return self.letters.find(ADA, reference)

    def discard(self, dead_letter_id: int, reason: str, actor: str = ADA.name) -> None:
        self.letters.discard(Actor(actor, Role.ADMIN), Selection(ids=(dead_letter_id,)), reason)
