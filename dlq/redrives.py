"""Redrives as people work with them: planned, started, watched, paused, resumed, slowed down, cancelled.

```
planning ──► planned ──► running ──► done
    │           │         │   ▲
    │           │         ▼   │
    │           │   paused | stopped
    ▼           ▼         ▼
               cancelled
```

*planned* is a frozen set, and nothing has been sent. *paused* is by a person, *stopped* by Ackline itself: see
`ackline.dlq.pacing`. Everything here only writes to the database; the reviewer sends (`ackline.dlq.runner`).

Every method but `plan` and `cancel` is one transaction, is safe on any thread, and raises `DatabaseUnavailable` when
the database is away: then nothing of it happened. *who* is the person that acts; `Forbidden` says that the role does
not allow it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, CursorResult, Engine, select, update

from ackline.dlq import planning, redrive, statement
from ackline.dlq.approvals import Approvals
from ackline.dlq.contracts import Contracts
from ackline.dlq.deadletter import clean
from ackline.dlq.errors import Invalid, NotFound, Refused
from ackline.dlq.pacing import ALL, STAGES, seconds_for
from ackline.dlq.patching import prepare
from ackline.dlq.planning import Options, Plan, Planner
from ackline.dlq.queues import Queues
from ackline.dlq.redrive import Requested
from ackline.dlq.rights import Actor, Right
from ackline.dlq.rules import Kind
from ackline.dlq.selection import Selection
from ackline.dlq.statement import Statement
from ackline.dlq.transition import transitions
from ackline.dlq.view import Item
from ackline.infra.database import clock, reading, writing
from ackline.infra.many import among
from ackline.infra.settings import Settings
from ackline.infra.tables import (
    IS_PLANNED,
    OPEN_ITEM_STATES,
    ItemState,
    RedriveState,
    dead_letters,
    redrive_items,
    redrives,
)
from ackline.infra.topology import check_consumer_name
from ackline.infra.wire import now

#: Messages a second that a redrive without a rate can be expected to reach.
EXPECTED_RATE = 1500.0
#: Messages a second that a rate may be, at most.
MAX_RATE = 1_000_000.0
#: Dead letters that are sent back at once at most; more are for a plan.
MAX_AT_ONCE = 1000
#: Items that are skipped in one transaction.
_SKIPPED = 5000

_FINISHED = (RedriveState.DONE, RedriveState.CANCELLED)
_STARTED = (RedriveState.RUNNING, RedriveState.PAUSED, RedriveState.STOPPED)


@dataclass(frozen=True, slots=True)
class Redrive:
    """A redrive, and how far it is.

    selection: what it is of, as `Selection.as_json` tells it. consumer: to this one, whoever failed; None: to each
    one's own. patch: RFC 6902, applied to each message before it is sent. rate: messages a second; None: as fast as it
    goes. stage: how many may be sent until all of those have been handled; 0: all. why: it is stopped, or waits.
    plan: None of what a person sent back at once. seconds: how long what is still to be sent takes at the rate, not
    counting what is waited for. items: how many messages, by what became of them; every state is there.
    """

    id: int
    state: RedriveState
    actor: str
    reason: str
    created_at: datetime
    started_at: datetime | None
    started_by: str | None
    finished_at: datetime | None
    selection: dict[str, Any]
    consumer: str | None
    patch: list[dict[str, Any]] | None
    rate: float | None
    canary: bool
    stage: int
    why: str | None
    plan: Plan | None
    seconds: float
    items: dict[str, int]


class RedrivePage(NamedTuple):
    """Some redrives, the latest first. next: `after` of the page after this one; None when there is none."""

    items: list[Redrive]
    next: int | None


class ItemPage(NamedTuple):
    """Some items of a redrive, in the order of their dead letters. next: as in `RedrivePage`."""

    items: list[Item]
    next: int | None


class Redrives:
    """The redrives in the database behind *engine*, whose tables are up to date."""

    def __init__(self, engine: Engine, settings: Settings, contracts: Contracts, approvals: Approvals) -> None:
        """settings: where the broker is, which a plan asks for its queues."""
        self._engine = engine
        self._settings = settings
        self._contracts = contracts
        self._approvals = approvals
        approvals.register(Kind.REDRIVE, self._carry_out)

    # --- sending back at once --------------------------------------------------------------------------

    def retry(self, who: Actor, ids: Iterable[int], reason: str = "") -> Requested:
        """Send the dead letters *ids* back, each to its own consumer, without a plan: the reviewer does it at once.

        Each is claimed by this or refused, with who has it. Raises `Refused` when none of them can be,
        `NoSuchDeadLetter` when none exists, `Invalid` for more than `MAX_AT_ONCE`, `NeedsApproval`.
        """
        who.must(Right.REDRIVE)
        wanted, reason = sorted(set(ids)), clean(reason.strip())
        if not 0 < len(wanted) <= MAX_AT_ONCE:
            raise Invalid(
                f"{len(wanted):,} dead letters cannot be sent back at once: name 1 to {MAX_AT_ONCE:,}, or plan."
            )
        columns = dead_letters.c
        with reading(self._engine) as connection:
            query = select(columns.id, columns.version, columns.type, columns.consumer)
            found = connection.execute(query.where(among(columns.id, wanted))).all()
        versions = {str(row.id): row.version for row in found}
        self._approvals.require(
            who,
            Kind.REDRIVE,
            {"ids": wanted, "versions": versions, "reason": reason},
            summary=f"Send {_several(len(wanted), 'dead letter')} back: {', '.join(map(str, wanted[:10]))}",
            count=len(wanted),
            types={row.type for row in found},
            consumers={row.consumer for row in found},
            reason=reason,
        )
        return self._retry(who, wanted, versions, reason)

    def _retry(self, who: Actor, ids: Sequence[int], versions: Mapping[str, int], reason: str) -> Requested:
        with writing(self._engine) as connection, transitions(connection) as moves:
            return redrive.request(connection, moves, who, ids, versions, reason, self._contracts.consumers_of)

    def _carry_out(self, who: Actor, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """A request that a second person approved."""
        if "redrive" in request:
            return {"redrive": self._start(who, request["redrive"]).id}
        asked = self._retry(who, request["ids"], request["versions"], request["reason"])
        return {"redrive": asked.redrive_id, "refused": list(asked.refused.values())}

    # --- planning --------------------------------------------------------------------------------------

    def plan(
        self,
        who: Actor,
        selection: Selection,
        *,
        consumer: str | None = None,
        rate: float | None = None,
        canary: bool = True,
        patch: Any = None,
        include_handled: bool = False,
        reason: str = "",
    ) -> Redrive:
        """Look at all dead letters of *selection* as they are now, and freeze which are sent where. Nothing is sent.

        A selection that names neither ids nor states is of what is in review or being redriven. consumer: send all to
        this one. patch: RFC 6902, applied to each. include_handled: send also what, by the workers' reports, has been
        handled already, or has been overtaken by a newer message of its key.

        Takes a transaction for each 2,000; when the process is killed meanwhile the reviewer goes on with it. Raises
        `Invalid`.
        """
        who.must(Right.REDRIVE)
        if patch is not None:
            who.must(Right.EDIT)
            prepare(patch)
        columns = {
            "consumer": None if consumer is None else check_consumer_name(consumer),
            "rate": None if rate is None else _rate(rate),
            "canary": canary,
            "patch": patch,
        }
        options = Options(include_handled, who.may(Right.UNMASK), self._contracts.ordered, self._contracts.types)
        reason = clean(reason.strip())
        with writing(self._engine) as connection, transitions(connection) as moves:
            redrive_id = planning.begin(connection, who, selection, options, reason, **columns)
            about = {"redrive": redrive_id, "selection": selection.as_json()} | {k: v for k, v in columns.items() if v}
            moves.record(who, "plan a redrive", reason, details=about)
        with Queues(self._settings.amqp_url) as queues:
            Planner(self._engine, self._contracts, queues).finish(redrive_id)
        return self.get(who, redrive_id)

    # --- reading ---------------------------------------------------------------------------------------

    def get(self, who: Actor, redrive_id: int) -> Redrive:
        """The redrive with that id. Raises `NotFound`."""
        who.must(Right.VIEW)
        with reading(self._engine) as connection:
            return _redrive(connection, _row(connection, redrive_id))

    def page(self, who: Actor, after: int | None = None, limit: int = 50) -> RedrivePage:
        """Up to *limit* redrives, the latest first. after: `next` of the page before this one."""
        who.must(Right.VIEW)
        query = select(redrives).order_by(redrives.c.id.desc()).limit(limit)
        if after is not None:
            query = query.where(redrives.c.id < after)
        with reading(self._engine) as connection:
            found = [_redrive(connection, row) for row in connection.execute(query).all()]
        return RedrivePage(found, found[-1].id if len(found) == limit else None)

    def items(
        self,
        who: Actor,
        redrive_id: int,
        state: ItemState | None = None,
        after: int | None = None,
        limit: int = 100,
    ) -> ItemPage:
        """Up to *limit* items of a redrive, in the order of their dead letters. after: `next` of the page before.

        Raises `NotFound`.
        """
        who.must(Right.VIEW)
        columns = redrive_items.c
        query = select(*[columns[field] for field in Item.__dataclass_fields__]).where(columns.redrive_id == redrive_id)
        if state is not None:
            query = query.where(columns.state == state)
        if after is not None:
            query = query.where(columns.dead_letter_id > after)
        with reading(self._engine) as connection:
            _row(connection, redrive_id)
            found = connection.execute(query.order_by(columns.dead_letter_id).limit(limit))
            items = [Item(**row._mapping) for row in found]
        return ItemPage(items, items[-1].dead_letter_id if len(items) == limit else None)

    def statement(self, who: Actor, redrive_id: int) -> Statement:
        """What became of each message that was planned, and whether it adds up. Raises `NotFound`."""
        who.must(Right.VIEW)
        with reading(self._engine) as connection:
            return statement.statement(connection, _row(connection, redrive_id))

    # --- running ---------------------------------------------------------------------------------------

    def start(self, who: Actor, redrive_id: int) -> Redrive:
        """Have the reviewer send what is planned. Raises `NotFound`, `Refused`, `NeedsApproval`."""
        who.must(Right.REDRIVE)
        with reading(self._engine) as connection:
            row = _startable(_row(connection, redrive_id))
        self._approvals.require(
            who,
            Kind.REDRIVE,
            {"redrive": redrive_id},
            summary=f"Start redrive {redrive_id} of {_several(row.plan['messages'], 'message')}",
            count=row.plan["messages"],
            types=row.plan["types"],
            consumers=row.plan["consumers"],
            reason=row.reason,
            edited=row.patch is not None,
        )
        return self._start(who, redrive_id)

    def _start(self, who: Actor, redrive_id: int) -> Redrive:
        def started(row: Any, at: datetime) -> dict[str, Any]:
            _startable(row)
            return {"started_at": at, "started_by": who.name} | _run(row, at)

        return self._change(who, redrive_id, "start a redrive", started)

    def pause(self, who: Actor, redrive_id: int) -> Redrive:
        """Send no more of it until it is resumed. What is on its way goes on. Raises `NotFound`, `Refused`."""

        def paused(row: Any, at: datetime) -> dict[str, Any]:
            _must_be(row, "paused", RedriveState.RUNNING)
            return {"state": RedriveState.PAUSED, "why": f"paused by {who.name}"}

        return self._change(who, redrive_id, "pause a redrive", paused)

    def resume(self, who: Actor, redrive_id: int) -> Redrive:
        """Go on with one that is paused, or that has stopped: then with a new canary. Raises `NotFound`, `Refused`."""

        def resumed(row: Any, at: datetime) -> dict[str, Any]:
            _must_be(row, "resumed", RedriveState.PAUSED, RedriveState.STOPPED)
            if row.started_at is None:
                raise Refused(f"Redrive {redrive_id} cannot be resumed: it was never started, and is {row.why}.")
            if row.state == RedriveState.STOPPED:
                return _run(row, at)
            return {"state": RedriveState.RUNNING, "why": None, "paced_at": at, "paced_from": row.sent}

        return self._change(who, redrive_id, "resume a redrive", resumed)

    def rate(self, who: Actor, redrive_id: int, rate: float | None) -> Redrive:
        """Have it send *rate* messages a second from now on; None: as fast as it goes.

        Raises `NotFound`, `Refused`, `Invalid`.
        """
        chosen = None if rate is None else _rate(rate)

        def paced(row: Any, at: datetime) -> dict[str, Any]:
            if row.state in _FINISHED:
                raise Refused(f"Redrive {redrive_id} has no rate any more: it is {row.state}.")
            return {"rate": chosen, "paced_at": at, "paced_from": row.sent}

        return self._change(who, redrive_id, "set the rate of a redrive", paced, rate=chosen)

    def cancel(self, who: Actor, redrive_id: int) -> Redrive:
        """Send no more of it, for good. What is on its way goes on. Raises `NotFound`, `Refused`.

        Takes a transaction for each 5,000 messages; one that is killed meanwhile leaves it paused.
        """

        who.must(Right.REDRIVE)
        with writing(self._engine) as connection:
            row = _locked(connection, redrive_id)
            _must_be(row, "cancelled", RedriveState.PLANNING, RedriveState.PLANNED, *_STARTED)
            _set(connection, row, {"state": RedriveState.PAUSED, "why": f"being cancelled by {who.name}"})
        while True:
            with writing(self._engine) as connection, transitions(connection) as moves:
                row = _locked(connection, redrive_id)
                _must_be(row, "cancelled", RedriveState.PAUSED)
                if self._skip(connection, who, redrive_id) == _SKIPPED:
                    continue
                counts = statement.counts(connection, redrive_id)
                is_over = not any(counts[state] for state in OPEN_ITEM_STATES)
                cancelled = {"state": RedriveState.CANCELLED, "finished_at": now(), "why": f"cancelled by {who.name}"}
                _set(connection, row, cancelled | {"counts": counts if is_over else None})
                moves.record(who, "cancel a redrive", "", details={"redrive": redrive_id})
            return self.get(who, redrive_id)

    def _skip(self, connection: Connection, who: Actor, redrive_id: int) -> int:
        planned = select(redrive_items.c.id).where(redrive_items.c.redrive_id == redrive_id, IS_PLANNED)
        ids = connection.scalars(planned.limit(_SKIPPED)).all()
        redrive.skip(connection, dict.fromkeys(ids, f"the redrive was cancelled by {who.name}"), now())
        return len(ids)

    def _change(
        self,
        who: Actor,
        redrive_id: int,
        action: str,
        decide: Callable[[Any, datetime], dict[str, Any]],
        **told: Any,
    ) -> Redrive:
        who.must(Right.REDRIVE)
        with writing(self._engine) as connection, transitions(connection) as moves:
            row = _locked(connection, redrive_id)
            _set(connection, row, decide(row, clock(connection)))
            moves.record(who, action, "", details={"redrive": redrive_id} | told)
        return self.get(who, redrive_id)


def _row(connection: Connection, redrive_id: int) -> Any:
    return _found(redrive_id, connection.execute(select(redrives).where(redrives.c.id == redrive_id)))


def _locked(connection: Connection, redrive_id: int) -> Any:
    query = select(redrives).where(redrives.c.id == redrive_id).with_for_update()
    return _found(redrive_id, connection.execute(query))


def _found(redrive_id: int, rows: CursorResult[Any]) -> Any:
    row = rows.one_or_none()
    if row is None:
        raise NotFound(f"There is no redrive {redrive_id}.")
    return row


def _set(connection: Connection, row: Any, columns: Mapping[str, Any]) -> None:
    connection.execute(update(redrives).where(redrives.c.id == row.id).values(columns))


def _must_be(row: Any, wanted: str, *states: RedriveState) -> None:
    if row.state not in states:
        raise Refused(f"Redrive {row.id} cannot be {wanted}: it is {row.state}.")


def _startable(row: Any) -> Any:
    _must_be(row, "started", RedriveState.PLANNED)
    if not row.plan["messages"]:
        raise Refused(f"Redrive {row.id} has nothing to send: none of its dead letters is eligible.")
    return row


def _run(row: Any, at: datetime) -> dict[str, Any]:
    """What a run begins with."""
    return {
        "state": RedriveState.RUNNING,
        "why": None,
        "run": row.run + 1,
        "run_from": row.sent,
        "stage": STAGES[0] if row.canary else ALL,
        "paced_at": at,
        "paced_from": row.sent,
    }


def _rate(rate: float) -> float:
    if not (math.isfinite(rate) and 0 < rate <= MAX_RATE):
        raise Invalid(f"A rate is a number of messages a second above 0, {MAX_RATE:,.0f} at most; not {rate!r}.")
    return float(rate)


def _redrive(connection: Connection, row: Any) -> Redrive:
    items = row.counts or _planned(row) or statement.counts(connection, row.id)
    fields = {name: getattr(row, name) for name in Redrive.__dataclass_fields__ if name in redrives.c}
    fields |= {
        "state": RedriveState(row.state),
        "plan": None if row.plan is None else Plan(**row.plan),
        "seconds": seconds_for(items[ItemState.PLANNED], row.rate, EXPECTED_RATE),
        "items": items,
    }
    return Redrive(**fields)


def _planned(row: Any) -> dict[str, int] | None:
    """What the items are as long as nothing has been sent: nobody has to count them."""
    if row.state not in (RedriveState.PLANNING, RedriveState.PLANNED):
        return None
    found = {ItemState.PLANNED: row.plan["messages"], ItemState.INELIGIBLE: sum(row.plan["ineligible"].values())}
    return {state.value: found.get(state, 0) for state in ItemState}


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
