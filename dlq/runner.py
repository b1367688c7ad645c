"""Running redrives: what each may send now is claimed, as its canary, its rate and the queues allow.

All that is known of a redrive is in the database, and its row is locked while something of it is claimed. So several
reviewers share the work, and one that dies leaves nothing behind but claims that run out (`ackline.dlq.redrive`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Engine, exists, func, select, update

from ackline.dlq import edits, redrive, statement
from ackline.dlq.audit import REVIEWER
from ackline.dlq.contracts import Contracts
from ackline.dlq.errors import Invalid
from ackline.dlq.pacing import ALL, ANEW, Facts, Send, Stop, Wait, full_at, next_step
from ackline.dlq.patching import prepare
from ackline.dlq.queues import Queues
from ackline.dlq.redrive import Claim
from ackline.dlq.transition import Transitions, transitions
from ackline.infra.database import clock, reading, writing
from ackline.infra.link import BrokerRefused, BrokerUnreachable
from ackline.infra.tables import (
    IS_PLANNED,
    IS_UNFINISHED,
    OPEN_ITEM_STATES,
    ItemState,
    RedriveState,
    dead_letters,
    redrive_items,
    redrives,
)
from ackline.infra.wire import now

log = logging.getLogger(__name__)

_ITEMS = redrive_items.c
_IS_RUNNING = (IS_UNFINISHED, redrives.c.state == RedriveState.RUNNING)
_PLANNED = exists(select(_ITEMS.id).where(_ITEMS.redrive_id == redrives.c.id, IS_PLANNED))
_OPEN = exists(select(_ITEMS.id).where(_ITEMS.redrive_id == redrives.c.id, _ITEMS.state.in_(OPEN_ITEM_STATES)))


class Runner:
    """Runs the redrives in the database behind *engine*. For one thread."""

    def __init__(self, engine: Engine, queues: Queues, contracts: Callable[[], Contracts]) -> None:
        """contracts: of the application; asked for when a redrive has a patch."""
        self._engine = engine
        self._contracts = contracts
        self._queues = queues
        #: Redrives that wait, until their queues are half of what made them wait.
        self._full: set[int] = set()

    def claims(self, limit: int, most_bytes: int, seconds: float) -> list[Claim]:
        """Up to *limit* messages to publish now, marked as issued; nobody else gets them for *seconds*.

        most_bytes: of payload, unless a single one has more. A redrive that is over is ended, and one that has to stop
        is stopped.
        """
        with reading(self._engine) as connection:
            running = connection.execute(select(redrives).where(*_IS_RUNNING, _PLANNED).order_by(redrives.c.id)).all()
            over = connection.scalars(select(redrives.c.id).where(*_IS_RUNNING, ~_PLANNED, ~_OPEN)).all()
            is_waiting = redrive.is_waiting(connection)
            facts = {row.id: _facts(connection, row) for row in running}
            at = clock(connection)
        if over:
            self._finish(over)
        claims: list[Claim] = []
        if is_waiting:
            with writing(self._engine) as connection:
                claims += redrive.claim(connection, limit, most_bytes, seconds)
        self._full &= facts.keys()
        for number, row in enumerate(running):
            # Each gets its share, so that one without a rate leaves something to the others.
            share = max((limit - len(claims)) // (len(running) - number), 1)
            step = next_step(facts[row.id], at, share)
            full = None
            if isinstance(step, Send):  # so the broker is asked, before anybody waits for the transaction
                full = self._unready(row) or self._too_full(row)
                step = Wait(full) if full else step
            if isinstance(step, Wait) and step.why == row.why:
                continue
            room = most_bytes - sum(len(claim.payload) for claim in claims)
            if room > 0 or not claims:
                patching = Patching(self._contracts(), row) if row.patch is not None and full is None else None
                with writing(self._engine) as connection, transitions(connection) as moves:
                    claims += _advance(connection, moves, row.id, full, share, room, seconds, patching)
        return claims

    def _finish(self, redrive_ids: Sequence[int]) -> None:
        with writing(self._engine) as connection:
            for redrive_id in redrive_ids:
                counts = statement.counts(connection, redrive_id)
                done = {"state": RedriveState.DONE, "finished_at": now(), "why": None, "counts": counts}
                still = (redrives.c.id == redrive_id, *_IS_RUNNING, ~_PLANNED, ~_OPEN)
                if connection.execute(update(redrives).where(*still).values(done)).rowcount:
                    log.info("redrive %d is done: %s", redrive_id, {k: v for k, v in counts.items() if v})

    def _unready(self, row: Any) -> str | None:
        """Why the patch of a redrive cannot be applied here, if so."""
        if row.patch is None:
            return None
        try:
            known = self._contracts().types
        except Exception as error:  # whatever the application's modules raise
            return f"waits: the reviewer cannot import the application: {type(error).__name__}: {error}"
        missing = sorted(set(row.plan["types"]).intersection(row.options["contracts"]).difference(known))
        return f"waits: the reviewer does not know {', '.join(missing)}; give it ACKLINE_APP" if missing else None

    def _too_full(self, row: Any) -> str | None:
        """Why nothing more can be put into the queues of a redrive, if so."""
        most = full_at(row.rate)
        half = most // 2
        try:
            for consumer in row.plan["consumers"]:
                depth = self._queues.depth(consumer)
                if depth is None:
                    return f"waits: consumer {consumer!r} has no queue; start its worker"
                if depth > (half if row.id in self._full else most):
                    self._full.add(row.id)
                    return (
                        f"waits: more than {most:,} messages are in the queue of {consumer!r}; goes on below {half:,}"
                    )
        except (BrokerUnreachable, BrokerRefused) as error:
            return f"waits: {error}"
        self._full.discard(row.id)
        return None


class Patching:
    """Makes the edits of a redrive that has a patch, as each message's turn comes."""

    def __init__(self, contracts: Contracts, row: Any) -> None:
        self._contracts = contracts
        self._patch = prepare(row.patch)
        self._row = row

    def __call__(self, connection: Connection, moves: Transitions, row_ids: Sequence[int]) -> dict[int, int | str]:
        """Edit these dead letters, which are locked and in review: the version of each, or why it cannot be patched."""
        found = edits.currents(connection, row_ids)
        made: dict[int, int | str] = {row_id: row.version for row_id, row in found.items()}
        changes = []
        for row in found.values():
            try:
                # What it reads was seen to when it was planned.
                change = edits.patched(self._contracts, row, self._patch, unmask=True)
            except Invalid as error:
                made[row.id] = str(error).removesuffix(".")
            else:
                changes += [change] if change is not None else []
        reason = self._row.reason or f"patch of redrive {self._row.id}"
        for row_id in edits.add(connection, changes, self._row.started_by, reason):
            made[row_id] = found[row_id].version + 1
        edited = [change.id for change in changes]
        moves.record(self._row.started_by, "edit", reason, edited, details={"redrive": self._row.id})
        return made


def _advance(
    connection: Connection,
    moves: Transitions,
    redrive_id: int,
    full: str | None,
    limit: int,
    most_bytes: int,
    seconds: float,
    patching: Patching | None,
) -> list[Claim]:
    """Take the next step of a redrive, unless another reviewer is at it."""
    mine = select(redrives).where(redrives.c.id == redrive_id, *_IS_RUNNING).with_for_update(skip_locked=True)
    row = connection.execute(mine).one_or_none()
    if row is None:
        return []
    at = clock(connection)
    step = next_step(replace(_facts(connection, row), full=full), at, limit)
    change = update(redrives).where(redrives.c.id == redrive_id)
    if isinstance(step, Stop):
        log.warning("redrive %d has stopped: %s", redrive_id, step.why)
        connection.execute(change.values(state=RedriveState.STOPPED, why=step.why))
        moves.record(REVIEWER, "stop a redrive", step.why, details={"redrive": redrive_id})
        return []
    columns: dict[str, Any] = {"why": None if isinstance(step, Send) else step.why}
    if isinstance(step, Send):
        columns["stage"] = step.stage
        if step.pace_anew:
            columns |= {"paced_at": at - ANEW, "paced_from": row.sent}
    if any(getattr(row, name) != value for name, value in columns.items()):
        connection.execute(change.values(columns))
    if isinstance(step, Wait):
        return []
    claims = redrive.claim_planned(connection, moves, row, step.limit, most_bytes, seconds, patching)
    connection.execute(change.values(sent=redrives.c.sent + len(claims)))
    return claims


def _facts(connection: Connection, row: Any) -> Facts:
    own = (_ITEMS.redrive_id == row.id, _ITEMS.run == row.run)
    unanswered = row.stage != ALL and connection.scalar(
        select(exists(select(_ITEMS.id).where(*own, _ITEMS.state.in_(OPEN_ITEM_STATES))))
    )
    planned = connection.scalar(select(exists(select(_ITEMS.id).where(_ITEMS.redrive_id == row.id, IS_PLANNED))))
    return Facts(
        rate=row.rate,
        paced_at=row.paced_at,
        paced_from=row.paced_from,
        sent=row.sent,
        run_from=row.run_from,
        stage=row.stage,
        planned=bool(planned),
        unanswered=bool(unanswered),
        trouble=_trouble(connection, row) if row.canary else None,
    )


def _trouble(connection: Connection, row: Any) -> str | None:
    """Why a redrive with a canary has to stop, if so."""
    failed = (
        select(func.count().over(), _ITEMS.dead_letter_id, _ITEMS.error)
        .where(
            _ITEMS.redrive_id == row.id,
            _ITEMS.run == row.run,
            _ITEMS.state.in_((ItemState.FAILED, ItemState.NOT_SENT)),
        )
        .order_by(_ITEMS.finished_at, _ITEMS.id)
        .limit(1)
    )
    if row.stage == ALL:  # from here on others may fail, but not as before
        same = (dead_letters.c.id == _ITEMS.dead_letter_id, dead_letters.c.fingerprint == _ITEMS.fingerprint)
        failed = failed.where(*same, _ITEMS.fingerprint != "")
    found = connection.execute(failed).one_or_none()
    if found is None:
        return None
    count, row_id, error = found
    sent = row.sent - row.run_from
    what = (
        f"the canary failed: {count:,} of the first {sent:,}"
        if row.stage
        else f"the failure is back: {count:,} of {sent:,}"
    )
    return f"{what} failed again, as dead letter {row_id} did: {error}"
