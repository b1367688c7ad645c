"""Sending dead letters back: who claims a row, what is sent, and what came of it. SQL on the caller's transaction.

An item goes `planned -> issued -> confirmed -> handled | failed`; one that a person sends back at once begins as
`waiting`. *Issued* is committed before the publish and *confirmed* after it. A crash between the two leaves an issued
item whose claim runs out, and it is published again: the message may then arrive twice, and never not at all. Only a
worker's report makes it `handled`; only its dead letter makes it `failed`.

Rows are locked in one order everywhere, so that nobody waits in a circle: redrive, dead letters by their ids, items by
theirs, then what `transitions` writes.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    LargeBinary,
    Select,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from ackline.dlq import eligibility
from ackline.dlq.audit import REVIEWER
from ackline.dlq.eligibility import Judged, Takers
from ackline.dlq.errors import NoSuchDeadLetter, Refused
from ackline.dlq.lifecycle import applied_at, handled_flag
from ackline.dlq.outcome import Outcome
from ackline.dlq.rights import Actor
from ackline.dlq.transition import Transitions
from ackline.infra import many
from ackline.infra.many import among
from ackline.infra.properties import Properties
from ackline.infra.tables import (
    IS_PLANNED,
    IS_UNSENT,
    OPEN_ITEM_STATES,
    DeadLetterState,
    ItemState,
    RedriveState,
    dead_letters,
    edits,
    redrive_items,
    redrives,
)
from ackline.infra.wire import Trail, now, sent_anew, uuid7

_LETTER = redrive_items.c.dead_letter_id == dead_letters.c.id
#: An item with what it sends: the dead letter as it came, or the edit of that version.
_PARCEL = redrive_items.join(dead_letters, _LETTER).outerjoin(
    edits, and_(edits.c.dead_letter_id == dead_letters.c.id, edits.c.version == redrive_items.c.version)
)

#: What a redrive has at first, beside who asks for what.
NEW: dict[str, Any] = {
    "options": {},
    "canary": False,
    "stage": 0,
    "run": 0,
    "run_from": 0,
    "paced_from": 0,
    "sent": 0,
}


#: Edits dead letters: returns the version of each that is to be sent, or why there is none.
Patch = Callable[[Connection, Transitions, Sequence[int]], dict[int, int | str]]


@dataclass(frozen=True, slots=True)
class Requested:
    """What became of a request: the item of each dead letter that is on its way, the reason of each that is not."""

    redrive_id: int
    items: dict[int, str]
    refused: dict[int, str]


@dataclass(frozen=True, slots=True)
class Claim:
    """An item to publish now. Nobody else publishes it before the claim runs out.

    version: of the payload; 0 is what came. attempts: tries of the handler at most; None: as many as its policy allows.
    The others: what the row has.
    """

    item_id: str
    dead_letter_id: int
    consumer: str
    version: int
    payload: bytes
    attempts: int | None
    message_id: str
    stored: bytes
    trusted: bool
    exchange: str
    routing_key: str

    @property
    def properties(self) -> Properties:
        """What it is published with. Raises ValueError, TypeError, OverflowError for some that no client writes."""
        stored = Properties.from_wire(self.stored)
        if not stored.message_id:  # then the row's own is the id for life
            stored = stored.copy(message_id=self.message_id)
        way = Trail(
            consumer=self.consumer,
            attempts=self.attempts,
            redrive=self.item_id,
            exchange=self.exchange,
            routing_key=self.routing_key,
        )
        return sent_anew(stored, way, trusted=self.trusted)


# --- a person sends some back at once -----------------------------------------------------------------------------


def request(
    connection: Connection,
    moves: Transitions,
    who: Actor,
    ids: Collection[int],
    versions: Mapping[str, int],
    reason: str,
    takers: Takers,
) -> Requested:
    """Claim the dead letters *ids*; the reviewer sends them. takers: who takes what no consumer took.

    versions: by id, which ones are meant. Raises `NoSuchDeadLetter`, `Refused` when there is nothing to send.
    """
    found = eligibility.judged(connection, ids, takers, lock=True)
    going, refused = [], {row_id: f"There is no dead letter {row_id}." for row_id in ids}
    for one in found:
        fault = one.fault
        if fault is None and versions.get(str(one.row.id)) != one.row.version:
            fault = "it was edited meanwhile"
        if fault is None:
            going.append(one)
            del refused[one.row.id]
        else:
            refused[one.row.id] = f"Dead letter {one.row.id} cannot be redriven: {fault}."
    if not going:
        raise (Refused if found else NoSuchDeadLetter)(" ".join(refused[row_id] for row_id in sorted(refused)[:_SAID]))
    at = now()
    started = {"state": RedriveState.RUNNING, "started_at": at, "started_by": who.name, "run": 1, "sent": len(going)}
    row_ids = [one.row.id for one in going]
    redrive_id = begin(connection, who, reason, {"ids": row_ids}, max(row_ids), at, **started)
    items = {one.row.id: uuid7() for one in going}
    add(connection, redrive_id, [item_of(one, items[one.row.id], ItemState.WAITING, run=1) for one in going])
    _take(connection, moves, redrive_id, row_ids)
    moves.record(
        who,
        "redrive",
        reason,
        row_ids,
        DeadLetterState.IN_REVIEW,
        DeadLetterState.REDRIVING,
        {"redrive": redrive_id},
    )
    return Requested(redrive_id, items, refused)


#: Refusals that one error tells.
_SAID = 3


def begin(
    connection: Connection,
    who: Actor,
    reason: str,
    selection: dict[str, Any],
    newest_id: int,
    at: datetime,
    **columns: Any,
) -> int:
    """A new redrive's id."""
    values = NEW | {
        "created_at": at,
        "actor": who.name,
        "reason": reason,
        "selection": selection,
        "newest_id": newest_id,
        "planned_to": newest_id,
    }
    return int(connection.execute(insert(redrives).values(values | columns).returning(redrives.c.id)).scalar_one())


def item_of(one: Judged, item_id: str, state: ItemState, *, run: int = 0, error: str | None = None) -> dict[str, Any]:
    """The item of a dead letter in a redrive."""
    return {
        "id": item_id,
        "dead_letter_id": one.row.id,
        "consumer": one.consumer,
        "version": one.row.version,
        "fingerprint": one.row.fingerprint,
        "state": state,
        "run": run,
        "error": error,
    }


def add(connection: Connection, redrive_id: int, items: Sequence[dict[str, Any]]) -> None:
    """Have these items in the redrive."""
    if items:
        connection.execute(insert(redrive_items), [item | {"redrive_id": redrive_id} for item in items])


def _take(connection: Connection, moves: Transitions, redrive_id: int, row_ids: Sequence[int]) -> None:
    """Take these rows, which are locked and in review, for their items in the redrive."""
    mine = and_(redrive_items.c.redrive_id == redrive_id, redrive_items.c.dead_letter_id == dead_letters.c.id)
    own = dead_letters.c.consumer
    columns: dict[str, Any] = {
        "redrive_item_id": select(redrive_items.c.id).where(mine).scalar_subquery(),
        # A row that no consumer took becomes the delivery of the one that it now goes to.
        "consumer": case((own == "", select(redrive_items.c.consumer).where(mine).scalar_subquery()), else_=own),
        "send_error": None,
    }
    taken = moves.move(row_ids, DeadLetterState.IN_REVIEW, DeadLetterState.REDRIVING, **columns)
    if len(taken) != len(row_ids):
        raise RuntimeError(f"dead letters of redrive {redrive_id} were in review under our lock and are not any more")


# --- the reviewer sends them --------------------------------------------------------------------------------------


def _to_send(at: datetime) -> ColumnElement[bool]:
    items = redrive_items.c
    return and_(IS_UNSENT, or_(items.claimed_until.is_(None), items.claimed_until < at))


def looking() -> Select[tuple[bool]]:
    """The query whether there is anything to claim now: a look in a small index, for who asks three times a second."""
    return select(exists(select(redrive_items.c.id).where(_to_send(now()))))


def is_waiting(connection: Connection) -> bool:
    """Whether there is anything to claim."""
    return bool(connection.execute(looking()).scalar())


def claim(connection: Connection, limit: int, most_bytes: int, seconds: float) -> list[Claim]:
    """Mark up to *limit* items that wait, or whose claim ran out, as issued, and keep them for *seconds*.

    most_bytes: of payload in all, unless one alone has more. Publish them after the commit, not before.
    """
    at = now()
    items = redrive_items.c
    ids = connection.scalars(
        select(items.id).where(_to_send(at)).order_by(items.id).limit(limit).with_for_update(skip_locked=True)
    ).all()
    size = func.length(func.coalesce(edits.c.payload, dead_letters.c.payload))
    sized = select(items.id, size).select_from(_PARCEL).where(among(items.id, ids)).order_by(items.id)
    return _issue(connection, _within(most_bytes, connection.execute(sized)), at, seconds)


def _within(most_bytes: int, sized: Iterable[Any]) -> list[Any]:
    """The first of *sized*, (name, bytes) each, that have *most_bytes* in all; one at least."""
    kept: list[Any] = []
    for name, size in sized:
        most_bytes -= size
        if kept and most_bytes < 0:
            break
        kept.append(name)
    return kept


def claim_planned(
    connection: Connection,
    moves: Transitions,
    redrive: Any,
    limit: int,
    most_bytes: int,
    seconds: float,
    patch: Patch | None = None,
) -> list[Claim]:
    """Take up to *limit* planned items of *redrive*, the oldest dead letters first, and mark them as issued.

    Those whose dead letter has been changed since the plan are skipped, with the reason. The redrive's row is locked.
    """
    at = now()
    items = redrive_items.c
    planned = connection.execute(
        select(items.id, items.dead_letter_id, items.consumer, items.version)
        .where(items.redrive_id == redrive.id, IS_PLANNED)
        .order_by(items.dead_letter_id)
        .limit(limit)
    ).all()
    rows = {
        row.id: row for row in eligibility.letters(connection, [item.dead_letter_id for item in planned], lock=True)
    }
    holders = eligibility.holders(connection, rows.values())
    skipped: dict[str, str] = {}
    going: dict[int, Judged] = {}
    for item in planned:
        row = rows.get(item.dead_letter_id)
        fault = _changed(row, item.version, holders)
        if fault is not None or row is None:
            skipped[item.id] = fault or _GONE
        else:
            going[row.id] = Judged(row, item.consumer, None)
    item_of_row = {item.dead_letter_id: item.id for item in planned}
    for row_id, fault in eligibility.had_already(connection, going.values()).items():
        skipped[item_of_row[row_id]] = fault
        del going[row_id]
    size = func.length(dead_letters.c.payload)
    sized = select(dead_letters.c.id, size).where(among(dead_letters.c.id, going)).order_by(dead_letters.c.id)
    row_ids = _within(most_bytes, connection.execute(sized).all())
    if patch is not None:
        patched = patch(connection, moves, row_ids)
        skipped |= {item_of_row[row_id]: why for row_id, why in patched.items() if isinstance(why, str)}
        versions = {row_id: version for row_id, version in patched.items() if isinstance(version, int)}
        row_ids = list(versions)
        if versions:
            own = and_(items.redrive_id == redrive.id, items.dead_letter_id == bindparam("row_id"))
            connection.execute(
                update(redrive_items).where(own).values(version=bindparam("edited")),
                [{"row_id": row_id, "edited": version} for row_id, version in versions.items()],
            )
    skip(connection, skipped, at)
    if not row_ids:
        return []
    ids = [item_of_row[row_id] for row_id in row_ids]
    _take(connection, moves, redrive.id, row_ids)
    before, after = DeadLetterState.IN_REVIEW, DeadLetterState.REDRIVING
    moves.record(redrive.started_by, "redrive", redrive.reason, row_ids, before, after, {"redrive": redrive.id})
    return _issue(connection, ids, at, seconds, run=redrive.run)


_GONE = "it has been deleted, after it was handled or discarded"


def _changed(row: Any | None, version: int, holders: dict[str, str]) -> str | None:
    """What has happened to a dead letter since the plan, so that it is not to be sent; None: nothing."""
    if row is None:
        return _GONE
    if row.state != DeadLetterState.IN_REVIEW:
        return eligibility.state_fault(row, holders)
    if row.version != version:
        return "it was edited after the redrive was planned"
    return None


def skip(connection: Connection, why: dict[str, str], at: datetime) -> None:
    """These planned items are not sent."""
    own = and_(redrive_items.c.id == bindparam("item"), IS_PLANNED)
    values = {"state": ItemState.SKIPPED, "error": bindparam("why"), "finished_at": bindparam("at")}
    rows = [{"item": item_id, "why": reason, "at": at} for item_id, reason in sorted(why.items())]
    if rows:
        connection.execute(update(redrive_items).where(own).values(values), rows)


def _issue(
    connection: Connection, ids: Collection[str], at: datetime, seconds: float, run: int | None = None
) -> list[Claim]:
    """Mark these items as issued, with the hash of what is sent; the oldest dead letters first. run: that they are of,
    when that is new.
    """
    items, columns = redrive_items.c, dead_letters.c
    query = select(
        items.id,
        columns.id,
        items.consumer,
        items.version,
        func.coalesce(edits.c.payload, columns.payload, type_=LargeBinary),
        # What a canary sends is to tell soon whether it fails.
        case((redrives.c.stage > 0, 1)),
        columns.message_id,
        func.coalesce(edits.c.properties, columns.properties, type_=LargeBinary),
        columns.trusted,
        columns.exchange,
        columns.routing_key,
    ).select_from(_PARCEL.join(redrives, redrives.c.id == items.redrive_id))
    issued: dict[str, Any] = {
        "state": ItemState.ISSUED,
        "issued_at": at,
        "claimed_until": at + timedelta(seconds=seconds),
        "body_sha256": select(columns.body_sha256).where(_LETTER).scalar_subquery(),
    }
    change = update(redrive_items).where(among(items.id, ids))
    connection.execute(change.values(issued if run is None else issued | {"run": run}))
    found = connection.execute(query.where(among(items.id, ids)).order_by(columns.id))
    claims = [Claim(*row) for row in found]
    edited = [
        {"item": claim.item_id, "sent": hashlib.sha256(claim.payload).digest()} for claim in claims if claim.version
    ]
    if edited:
        own = update(redrive_items).where(items.id == bindparam("item"))
        connection.execute(own.values(body_sha256=bindparam("sent")), edited)
    return claims


def confirmed(connection: Connection, item_ids: Sequence[str]) -> None:
    """The broker has these. A worker may have answered already: then that stands."""
    _lock(connection, item_ids)
    connection.execute(
        update(redrive_items)
        .where(among(redrive_items.c.id, item_ids), redrive_items.c.state == ItemState.ISSUED)
        .values(state=ItemState.CONFIRMED, confirmed_at=now(), error=None)
    )


def put_off(connection: Connection, why: dict[str, str], seconds: float) -> None:
    """These are not known to be sent: publish them again in *seconds*."""
    own = and_(redrive_items.c.id == bindparam("item"), redrive_items.c.state == ItemState.ISSUED)
    values = {"claimed_until": now() + timedelta(seconds=seconds), "error": bindparam("why")}
    rows = [{"item": item_id, "why": reason} for item_id, reason in sorted(why.items())]
    if rows:
        connection.execute(update(redrive_items).where(own).values(values), rows)


def not_sent(connection: Connection, moves: Transitions, why: dict[str, str]) -> None:
    """These cannot be sent: their dead letters are in review again, with the reason."""
    before, after = DeadLetterState.REDRIVING, DeadLetterState.IN_REVIEW
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for item_id, reason in why.items():
        alike[reason].append(item_id)
    for reason, item_ids in alike.items():
        held = select(dead_letters.c.id).join_from(redrive_items, dead_letters, _LETTER)
        held = held.where(among(redrive_items.c.id, item_ids), dead_letters.c.redrive_item_id == redrive_items.c.id)
        freed = moves.move(connection.scalars(held).all(), before, after, redrive_item_id=None, send_error=reason)
        _finish(connection, item_ids, ItemState.NOT_SENT, reason)
        moves.record(REVIEWER, "not sent", reason, freed, before, after)


# --- a worker reports it ------------------------------------------------------------------------------------------


def succeeded(connection: Connection, moves: Transitions, outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Note that these were handled. Returns those that answer no redrive of ours.

    One that was handled twice, for it was sent twice, is counted as a duplicate. The same report twice is not.
    """
    by_item: dict[str, Outcome] = {}
    repeated: Counter[str] = Counter()
    for outcome in outcomes:
        known = by_item.setdefault(outcome.redrive_item_id, outcome)
        repeated[outcome.redrive_item_id] += known.at != outcome.at
    answered: list[tuple[Any, Outcome]] = []
    columns = dead_letters.c
    query = (
        select(
            redrive_items.c.id.label("item_id"),
            redrive_items.c.consumer.label("sent_to"),
            redrive_items.c.state.label("item_state"),
            columns.id,
            columns.state,
            columns.redrive_item_id,
            columns.fingerprint,
            columns.flags,
            columns.handled_at,
        )
        .join_from(redrive_items, dead_letters, _LETTER)
        .where(among(redrive_items.c.id, by_item))
        .order_by(columns.id)
        .with_for_update(of=dead_letters)
    )
    for row in connection.execute(query).all():
        if row.sent_to == by_item[row.item_id].consumer:
            answered.append((row, by_item.pop(row.item_id)))
    awaited = [
        (row, outcome)
        for row, outcome in answered
        if row.state == DeadLetterState.REDRIVING and row.redrive_item_id == row.item_id
    ]
    _handled(connection, moves, awaited)
    for row, outcome in answered:
        if row.state != DeadLetterState.REDRIVING or row.redrive_item_id != row.item_id:
            _handled_out_of_turn(connection, moves, row, outcome)
    again = [{"row_id": row.id, "more": repeated[row.item_id]} for row, _ in answered if repeated[row.item_id]]
    if again:
        more = dead_letters.c.duplicates + bindparam("more")
        connection.execute(
            update(dead_letters).where(dead_letters.c.id == bindparam("row_id")).values(duplicates=more), again
        )
    item_ids = [row.item_id for row, _ in answered]
    _lock(connection, item_ids)
    done = update(redrive_items).where(among(redrive_items.c.id, item_ids), redrive_items.c.state != ItemState.HANDLED)
    connection.execute(done.values(state=ItemState.HANDLED, finished_at=now(), error=None))
    return list(by_item.values())


def _handled(connection: Connection, moves: Transitions, answered: Sequence[tuple[Any, Outcome]]) -> None:
    """These were sent, and are handled: each by the redrive that has it."""
    if not answered:
        return
    before, after = DeadLetterState.REDRIVING, DeadLetterState.HANDLED
    at = now()
    columns = {"id": dead_letters.c.id.type, "at": dead_letters.c.handled_at.type}
    done = many.rows(connection, "done", columns, [(row.id, applied_at(at, outcome.at)) for row, outcome in answered])
    connection.execute(
        update(dead_letters)
        .where(dead_letters.c.id == done.c.id)
        .values(state=after, handled_at=done.c.at, redrive_item_id=None, send_error=None)
    )
    by_worker: defaultdict[str, list[int]] = defaultdict(list)
    for row, outcome in answered:
        moves.count(row.fingerprint, before, -1)
        moves.count(row.fingerprint, after, 1)
        by_worker[outcome.worker].append(row.id)
    for worker, row_ids in by_worker.items():
        moves.record(REVIEWER, "handled", f"by {worker}", row_ids, before, after)


def _handled_out_of_turn(connection: Connection, moves: Transitions, row: Any, outcome: Outcome) -> None:
    """It was handled, and this was not waited for: its failure came first, or another redrive, or it came before."""
    columns: dict[str, Any] = {}
    at = applied_at(now(), outcome.at)
    if row.state not in (DeadLetterState.HANDLED, DeadLetterState.DISCARDED):
        before, after = DeadLetterState(row.state), DeadLetterState.HANDLED
        moves.move([row.id], before, after, handled_at=at, redrive_item_id=None, send_error=None)
        moves.record(REVIEWER, "handled", f"by {outcome.worker}", [row.id], before, after)
    elif row.item_state == ItemState.HANDLED and row.handled_at != at:  # not the same report once more
        columns["duplicates"] = dead_letters.c.duplicates + 1
    flag = handled_flag(row.state, row.redrive_item_id == row.item_id)
    if flag and flag not in row.flags:
        columns["flags"] = [*row.flags, flag]
    if columns:
        connection.execute(update(dead_letters).where(dead_letters.c.id == row.id).values(columns))
    if row.redrive_item_id not in (None, row.item_id):
        _finish(connection, [row.redrive_item_id], ItemState.SUPERSEDED, "an earlier redrive was handled")


def _finish(connection: Connection, item_ids: Sequence[str], state: ItemState, why: str) -> None:
    connection.execute(
        update(redrive_items)
        .where(among(redrive_items.c.id, item_ids), redrive_items.c.state.in_(OPEN_ITEM_STATES))
        .values(state=state, finished_at=now(), error=why)
    )


def _lock(connection: Connection, item_ids: Sequence[str]) -> None:
    """Lock these items in their order; SQLite has one writer, and needs none of it."""
    if connection.dialect.name != "sqlite":
        items = redrive_items.c.id
        connection.execute(select(items).where(among(items, item_ids)).order_by(items).with_for_update())
