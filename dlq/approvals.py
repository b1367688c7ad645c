"""Two people for what the rules say: a request waits until somebody else approves it, and is then carried out.

```
            approve                  carried out
 waiting ───────────► approved ───────────────────► done | failed
    └─► refused | withdrawn | expired
```

A request holds all that carrying it out needs, as it was asked for: versions and counts too. So what has changed
meanwhile makes it fail, and nothing is done that the second person was not told of. It is carried out with the rights
that its requester has then. Nobody is a second person to themselves, nor for what they edited: the database holds the
first of these too.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Row, and_, exists, insert, select, update

from ackline.dlq.audit import Entry, append
from ackline.dlq.chain import compact
from ackline.dlq.deadletter import clean
from ackline.dlq.errors import Forbidden, NeedsApproval, NotFound, Refused
from ackline.dlq.people import standing
from ackline.dlq.rights import Actor, Right, Role
from ackline.dlq.rules import RIGHT_OF, Asked, Kind, rules
from ackline.infra.database import reading, writing
from ackline.infra.errors import AcklineError
from ackline.infra.many import among
from ackline.infra.settings import Settings
from ackline.infra.tables import ApprovalState, approvals, edits, redrive_items, redrives
from ackline.infra.wire import now

_log = logging.getLogger(__name__)


Run = Callable[[Actor, Mapping[str, Any]], Mapping[str, Any] | None]
"""Carries a request out, for its requester; returns what fits into JSON and tells what was done."""


@dataclass(frozen=True, slots=True)
class Approval:
    """A request for a second person, and what became of it.

    diff: what it would change in a message, secrets masked. result: of what is done, or {"error": why it failed}.
    """

    id: int
    action: Kind
    summary: str
    diff: list[dict[str, Any]]
    rule: str
    reason: str
    requested_at: datetime
    requested_by: str
    expires_at: datetime
    state: ApprovalState
    decided_at: datetime | None
    decided_by: str | None
    decision_reason: str | None
    result: Mapping[str, Any] | None


class ApprovalPage(NamedTuple):
    """Some requests, the latest first. next: where the page after begins; None when there is none."""

    items: list[Approval]
    next: int | None


class Approvals:
    """The requests in the database behind *engine*. Safe on any thread. Raises `ConfigurationError` for wrong rules."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._rules = rules(settings)
        self._patience = timedelta(hours=settings.approval_hours)
        self._runs: dict[Kind, Run] = {}

    def register(self, action: Kind, run: Run) -> None:
        """Have approved requests of this kind carried out by *run*."""
        self._runs[action] = run

    # --- asking ----------------------------------------------------------------------------------------

    def require(
        self,
        who: Actor,
        action: Kind,
        request: Mapping[str, Any],
        *,
        summary: str,
        count: int,
        types: Collection[str],
        consumers: Collection[str],
        reason: str = "",
        edited: bool = False,
        diff: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Return when *who* may do it now; else keep the request and raise `NeedsApproval`.

        To be called before anything of it is done, and outside any transaction. Asking twice is asking once.

        request: all that `run` needs, as JSON. What it would send is named by `redrive` (an id) or `ids` (of dead
        letters): who edited one of them may not approve it. count, types, consumers: of the dead letters.
        edited: that it edits them; what was edited before, in `redrive` or `ids`, is found here. diff: what is to be
        seen of an edit, secrets masked.
        """
        if who.approval is not None or not any(rule.action == action for rule in self._rules):
            return
        with writing(self._engine) as connection:
            edited = edited or bool(_editors(connection, request))
            asked = Asked(action, count, types, consumers, edited)
            rule = next((rule for rule in self._rules if rule.meets(asked)), None)
            if rule is None:
                return
            told = compact(request)
            found = self._same(connection, who, action, told)
            if found is None:
                told_of = {"summary": clean(summary), "diff": list(diff), "rule": str(rule), "reason": clean(reason)}
                found = self._keep(connection, who, action, request, told_of)
                about = {"approval": found, "asks": action, "count": count, "rule": str(rule)}
                about["request_sha256"] = hashlib.sha256(told.encode()).hexdigest()
                append(connection, [Entry(who, "ask for approval", reason, details=about)])
        raise NeedsApproval(found, str(rule))

    def _same(self, connection: Connection, who: Actor, action: Kind, told: str) -> int | None:
        """A request of *who* for the same that waits already."""
        query = select(approvals.c.id, approvals.c.request).where(
            approvals.c.state == ApprovalState.WAITING,
            approvals.c.requested_by == clean(who.name),
            approvals.c.requested_role == who.role,
            approvals.c.action == action,
            approvals.c.expires_at > now(),
        )
        return next((row.id for row in connection.execute(query) if compact(row.request) == told), None)

    def _keep(
        self, connection: Connection, who: Actor, action: Kind, request: Mapping[str, Any], told_of: Mapping[str, Any]
    ) -> int:
        at = now()
        row = {
            **told_of,
            "action": action,
            "request": dict(request),
            "requested_at": at,
            "requested_by": clean(who.name),
            "requested_role": who.role,
            "expires_at": at + self._patience,
            "state": ApprovalState.WAITING,
        }
        kept: int = connection.execute(insert(approvals).values(row).returning(approvals.c.id)).scalar_one()
        return kept

    # --- deciding --------------------------------------------------------------------------------------

    def approve(self, who: Actor, approval_id: int, reason: str = "") -> Approval:
        """Approve a request as its second person, and carry it out; returns it, done or failed.

        Raises `NotFound`, `Refused` when it does not wait any more, `Forbidden` for its requester, for who edited what
        it would send, and for who may not do by themselves what it asks for.
        """
        who.must(Right.APPROVE)
        with self._deciding(approval_id) as (connection, row):
            who.must(RIGHT_OF[Kind(row.action)])
            if _is_same(who.name, row.requested_by):
                raise Forbidden(f"{who.name} asked for it: it takes a second person to approve request {approval_id}.")
            editors = _editors(connection, row.request) if row.action == Kind.REDRIVE else ()
            if any(_is_same(who.name, editor) for editor in editors):
                raise Forbidden(f"{who.name} edited what would be sent: somebody else approves request {approval_id}.")
            self._decide(connection, who, row, ApprovalState.APPROVED, "approve", reason)
        state, result = self._carry_out(who, row)
        told: dict[str, Any] = {"approval": approval_id, "outcome": state}
        if state == ApprovalState.FAILED:
            told |= result
        with writing(self._engine) as connection:
            change = update(approvals).where(approvals.c.id == approval_id).values(state=state, result=result)
            found = _approval(connection.execute(change.returning(*_columns())).one())
            append(connection, [Entry(row.requested_by, "carry out", "", details=told)])
        return found

    def _carry_out(self, who: Actor, row: Row[Any]) -> tuple[ApprovalState, dict[str, Any]]:
        action = Kind(row.action)
        try:
            with reading(self._engine) as connection:
                person = standing(connection, row.requested_by)
            if person is not None and person.disabled_at is not None:
                raise Forbidden(f"{row.requested_by}, who asked for it, is disabled.")
            # Who is no person of the desk acted on its machine.
            role = min(Role(row.requested_role), person.role if person else Role.ADMIN, key=lambda each: each.rank)
            requester = Actor(row.requested_by, role, approval=row.id, approved_by=clean(who.name))
            requester.must(RIGHT_OF[action])
            return ApprovalState.DONE, dict(self._runs[action](requester, row.request) or {})
        except AcklineError as error:
            return ApprovalState.FAILED, {"error": str(error)}
        except Exception:
            _log.exception("What request %d asks for could not be carried out.", row.id)
            return ApprovalState.FAILED, {"error": "It ended in an error that the log of this process has."}

    def refuse(self, who: Actor, approval_id: int, reason: str = "") -> Approval:
        """Refuse a request as its second person. Raises what `approve` raises."""
        who.must(Right.APPROVE)
        with self._deciding(approval_id) as (connection, row):
            if _is_same(who.name, row.requested_by):
                raise Forbidden(f"{who.name} asked for it, and may withdraw request {approval_id}.")
            return self._decide(connection, who, row, ApprovalState.REFUSED, "refuse", reason)

    def withdraw(self, who: Actor, approval_id: int, reason: str = "") -> Approval:
        """Withdraw one's own request. Raises `NotFound`, `Refused`, `Forbidden` for another's."""
        with self._deciding(approval_id) as (connection, row):
            if not _is_same(who.name, row.requested_by):
                raise Forbidden(f"{row.requested_by} asked for it, and nobody else withdraws request {approval_id}.")
            return self._decide(connection, who, row, ApprovalState.WITHDRAWN, "withdraw", reason)

    @contextmanager
    def _deciding(self, approval_id: int) -> Iterator[tuple[Connection, Row[Any]]]:
        """A transaction in which a request that waits is decided."""
        self._expire()
        with writing(self._engine) as connection:
            row = connection.execute(select(approvals).where(approvals.c.id == approval_id)).one_or_none()
            if row is None:
                raise NotFound(f"There is no request {approval_id}.")
            if row.state != ApprovalState.WAITING:
                raise _over(row)
            yield connection, row

    def _decide(
        self, connection: Connection, who: Actor, row: Row[Any], state: ApprovalState, action: str, reason: str
    ) -> Approval:
        decision = {
            "state": state,
            "decided_at": now(),
            "decided_by": clean(who.name),
            "decision_reason": clean(reason),
        }
        # Of two who decide at once one gets the row.
        mine = update(approvals).where(approvals.c.id == row.id, approvals.c.state == ApprovalState.WAITING)
        decided = connection.execute(mine.values(decision).returning(*_columns())).one_or_none()
        if decided is None:
            raise _over(connection.execute(select(approvals).where(approvals.c.id == row.id)).one())
        about = {"approval": row.id, "asks": row.action, "asked_by": row.requested_by}
        append(connection, [Entry(who, action, reason, details=about)])
        return _approval(decided)

    def _expire(self) -> None:
        late = and_(approvals.c.state == ApprovalState.WAITING, approvals.c.expires_at <= now())
        with reading(self._engine) as connection:  # mostly there are none, and then nobody has to wait for a writer
            if not connection.execute(select(exists().where(late))).scalar_one():
                return
        with writing(self._engine) as connection:
            connection.execute(update(approvals).where(late).values(state=ApprovalState.EXPIRED, decided_at=now()))

    # --- reading ---------------------------------------------------------------------------------------

    def page(
        self, who: Actor, states: Sequence[ApprovalState] = (), after: int | None = None, limit: int = 50
    ) -> ApprovalPage:
        """Requests in *states* (none: in any), the latest first. after: `next` of the page before."""
        who.must(Right.VIEW)
        self._expire()
        query = select(*_columns()).order_by(approvals.c.id.desc()).limit(limit + 1)
        if states:
            query = query.where(approvals.c.state.in_(states))
        if after is not None:
            query = query.where(approvals.c.id < after)
        with reading(self._engine) as connection:
            found = [_approval(row) for row in connection.execute(query)]
        return ApprovalPage(found[:limit], found[limit - 1].id if len(found) > limit else None)

    def get(self, who: Actor, approval_id: int) -> Approval:
        """One request. Raises `NotFound`."""
        who.must(Right.VIEW)
        self._expire()
        with reading(self._engine) as connection:
            found = connection.execute(select(*_columns()).where(approvals.c.id == approval_id)).one_or_none()
        if found is None:
            raise NotFound(f"There is no request {approval_id}.")
        return _approval(found)


def _editors(connection: Connection, request: Mapping[str, Any]) -> set[str]:
    """Who edited what *request* would send, by a version or by a patch of the whole."""
    queries = []
    if "redrive" in request:
        mine = redrive_items.c.redrive_id == request["redrive"]
        met = and_(edits.c.dead_letter_id == redrive_items.c.dead_letter_id, edits.c.version <= redrive_items.c.version)
        queries.append(select(edits.c.actor).join_from(redrive_items, edits, met).where(mine))
        patched = and_(redrives.c.id == request["redrive"], redrives.c.patch.is_not(None))
        queries.append(select(redrives.c.actor).where(patched))
    if "ids" in request:
        queries.append(select(edits.c.actor).where(among(edits.c.dead_letter_id, request["ids"])))
    return {name for query in queries for name in connection.execute(query.distinct()).scalars()}


def _is_same(one: str, other: str) -> bool:
    return clean(one).lower() == clean(other).lower()


def _over(row: Row[Any]) -> Refused:
    by = f", by {row.decided_by}" if row.decided_by else ""
    return Refused(f"Request {row.id} does not wait any more: it is {row.state}{by}.")


def _columns() -> list[Any]:
    return [approvals.c[field] for field in Approval.__dataclass_fields__]


def _approval(row: Row[Any]) -> Approval:
    return Approval(**{**row._mapping, "action": Kind(row.action), "state": ApprovalState(row.state)})
