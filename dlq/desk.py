"""The desk: all its services on one database, as the HTTP API and the command line use them."""

from __future__ import annotations

from sqlalchemy import Engine

from ackline.dlq.approvals import Approvals
from ackline.dlq.audit import Audit
from ackline.dlq.contracts import Contracts
from ackline.dlq.edits import Edits
from ackline.dlq.groups import Groups
from ackline.dlq.ledger import Ledger
from ackline.dlq.letters import Letters
from ackline.dlq.people import People
from ackline.dlq.redrives import Redrives
from ackline.infra.settings import Settings


class Desk:
    """Everything that people do with dead letters, in the database behind *engine*, whose tables are up to date.

    Safe on any thread. Raises `ConfigurationError` when a rule for approvals cannot be used.
    """

    def __init__(self, engine: Engine, settings: Settings, contracts: Contracts) -> None:
        self.people = People(engine)
        self.approvals = Approvals(engine, settings)
        self.audit = Audit(engine)
        self.letters = Letters(engine, contracts, self.approvals)
        self.groups = Groups(engine)
        self.edits = Edits(engine, contracts, self.approvals)
        self.redrives = Redrives(engine, settings, contracts, self.approvals)
        self.ledger = Ledger(engine, settings)
