"""Planning a redrive: its set is looked at once, chunk by chunk, and frozen.

A plan is what was in the database up to `newest_id` when it was asked for. Each chunk is one step: what is in it is
looked up, asked of the broker and tried without holding up anybody; then its items are written, if nobody else has
written them meanwhile. So any number may plan at once, and whoever is left finishes what another one was killed at:
the reviewer does, when a plan has not got on for `ABANDONED_SECONDS`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, func, select, update

from ackline.dlq import edits, eligibility, redrive
from ackline.dlq.contracts import Contracts
from ackline.dlq.eligibility import Judged
from ackline.dlq.errors import Invalid
from ackline.dlq.patching import prepare
from ackline.dlq.queues import Queues
from ackline.dlq.rights import Actor
from ackline.dlq.selection import Selection, rows
from ackline.infra.database import clock, reading, writing
from ackline.infra.link import BrokerRefused, BrokerUnreachable
from ackline.infra.tables import IS_UNFINISHED, DeadLetterState, ItemState, RedriveState, dead_letters, redrives
from ackline.infra.wire import now, uuid7

log = logging.getLogger(__name__)

#: Dead letters that are looked at in one step; fewer when a patch is tried on each.
CHUNK, CHUNK_PATCHED = 2000, 200
#: Seconds without a step after which who planned is taken for dead.
ABANDONED_SECONDS = 10.0
#: Different reasons that a plan counts; further ones count as one.
REASONS = 50
OTHER_REASONS = "other reasons"


@dataclass(frozen=True, slots=True)
class Options:
    """What makes a dead letter eligible; kept with the plan, so that whoever finishes it judges alike.

    ordered: the consumers that take the messages of a key in order. contracts: the types whose payloads are checked
    once they are patched. unmask: whether the patch, and the search, may read what is masked.
    """

    include_handled: bool = False
    unmask: bool = False
    ordered: Sequence[str] = ()
    contracts: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """As the database keeps them."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Options:
        """What `as_json` wrote."""
        return cls(**document)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is planned, in counts.

    messages: to be sent; consumers, types: how many of them. ineligible: how many others, by reason.
    """

    messages: int
    consumers: dict[str, int]
    types: dict[str, int]
    ineligible: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """As the database keeps it."""
        return asdict(self)

    def plus(self, items: Iterable[Judged]) -> Plan:
        """This plan with more in it."""
        found = list(items)
        going = [one for one in found if one.fault is None]
        ineligible = Counter(self.ineligible)
        for one in found:
            if one.fault is not None:
                known = one.fault in ineligible or len(ineligible) < REASONS
                ineligible[one.fault if known else OTHER_REASONS] += 1
        return Plan(
            self.messages + len(going),
            dict(Counter(self.consumers) + Counter(one.consumer for one in going)),
            dict(Counter(self.types) + Counter(one.row.type for one in going)),
            dict(ineligible),
        )


NOTHING = Plan(0, {}, {}, {})


def begin(
    connection: Connection, who: Actor, selection: Selection, options: Options, reason: str, **columns: Any
) -> int:
    """Begin a plan of *selection* as it is now; returns the redrive's id. columns: of `redrives`."""
    newest = connection.scalar(select(func.max(dead_letters.c.id))) or 0
    if selection.ids is None and not selection.states:
        # What a filter means is what waits for an end; of those that are named each has its reason.
        selection = replace(selection, states=(DeadLetterState.IN_REVIEW, DeadLetterState.REDRIVING))
    at = now()
    planned: dict[str, Any] = {"state": RedriveState.PLANNING, "options": options.as_json(), "plan": NOTHING.as_json()}
    planned |= {"planned_at": clock(connection), "planned_to": newest + 1}
    return redrive.begin(connection, who, reason, selection.as_json(), newest, at, **columns | planned)


def abandoned(connection: Connection) -> list[int]:
    """The redrives whose planning nobody goes on with."""
    columns = redrives.c
    before = clock(connection) - timedelta(seconds=ABANDONED_SECONDS)
    return list(
        connection.scalars(
            select(columns.id)
            .where(IS_UNFINISHED, columns.state == RedriveState.PLANNING, columns.planned_at < before)
            .order_by(columns.id)
        )
    )


class Planner:
    """Makes plans in the database behind *engine*. For one thread."""

    def __init__(self, engine: Engine, contracts: Contracts, queues: Queues) -> None:
        self._engine = engine
        self._contracts = contracts
        self._queues = queues
        self._answers = True

    def finish(self, redrive_id: int) -> None:
        """Go on with the plan of *redrive_id* until it is made, or cancelled."""
        while self.step(redrive_id):
            pass

    def step(self, redrive_id: int) -> bool:
        """Plan one chunk. Whether there may be more."""
        with reading(self._engine) as connection:
            row = connection.execute(select(redrives).where(redrives.c.id == redrive_id)).one_or_none()
            if row is None or row.state != RedriveState.PLANNING:
                return False
            limit = CHUNK if row.patch is None else CHUNK_PATCHED
            options = Options.from_json(row.options)
            hidden = None if options.unmask else self._contracts.masked
            found = rows(
                connection, Selection.from_json(row.selection), after=row.planned_to, limit=limit, hidden=hidden
            )
            judged = self._judge(connection, row, options, found.ids)
        judged = self._without_lost_queues(judged)
        with writing(self._engine) as connection:
            columns: dict[str, Any] = {
                "planned_to": 0 if found.next is None else found.next,
                "planned_at": clock(connection),
                "plan": Plan(**row.plan).plus(judged).as_json(),
            }
            if found.next is None:
                columns["state"] = RedriveState.PLANNED
            mine = (redrives.c.id == redrive_id, redrives.c.state == row.state, redrives.c.planned_to == row.planned_to)
            if connection.execute(update(redrives).where(*mine).values(columns)).rowcount == 1:
                redrive.add(connection, redrive_id, [_item(one) for one in judged])
        return found.next is not None

    def _judge(self, connection: Connection, row: Any, options: Options, ids: Sequence[int]) -> list[Judged]:
        """What can be said of the dead letters *ids* by the database, and by the patch."""
        judged = eligibility.judged(connection, ids, self._contracts.consumers_of, consumer=row.consumer)
        if not options.include_handled:
            going = [one for one in judged if one.fault is None]
            faults = dict.fromkeys(eligibility.handled_already(connection, going), _HANDLED)
            ordered = [one for one in going if one.consumer in options.ordered]
            faults |= dict.fromkeys(eligibility.overtaken(connection, ordered), _OVERTAKEN)
            judged = [one._replace(fault=faults.get(one.row.id, one.fault)) for one in judged]
        if row.patch is not None:
            judged = [self._tried(connection, row.patch, options, one) for one in judged]
        return judged

    def _tried(self, connection: Connection, patch: Any, options: Options, one: Judged) -> Judged:
        """*one*, with what the patch would break."""
        if one.fault is not None:
            return one
        if one.row.type in options.contracts and one.row.type not in self._contracts.types:
            return one._replace(fault=_UNKNOWN.format(one.row.type))
        try:
            row = edits.current(connection, one.row.id)
            edits.patched(self._contracts, row, prepare(patch), unmask=options.unmask)
        except Invalid as error:
            return one._replace(fault=f"the patch is not for it: {str(error).removesuffix('.')}")
        return one

    def _without_lost_queues(self, judged: list[Judged]) -> list[Judged]:
        """*judged*, with those that would find no queue. What cannot be asked now shows when they are sent."""
        going = {one.consumer for one in judged if one.fault is None} if self._answers else ()
        gone: set[str] = set()
        try:
            gone.update(consumer for consumer in going if self._queues.depth(consumer) is None)
        except (BrokerUnreachable, BrokerRefused) as error:
            log.warning("a redrive is planned without asking the broker for its queues: %s", error)
            self._answers = False
        return [
            one._replace(fault=_NO_QUEUE.format(one.consumer)) if one.fault is None and one.consumer in gone else one
            for one in judged
        ]


_HANDLED = "its consumer has handled this message already"
_OVERTAKEN = "its consumer has handled a newer message of the same key already"
_NO_QUEUE = "consumer {!r} has no queue: start its worker, or name another consumer"
_UNKNOWN = "its contract {!r} is not known here: plan again where ACKLINE_APP has it"


def _item(one: Judged) -> dict[str, Any]:
    state = ItemState.PLANNED if one.fault is None else ItemState.INELIGIBLE
    return redrive.item_of(one, uuid7(), state, error=one.fault)
