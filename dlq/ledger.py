"""The ledger: whether everything that was accepted is somewhere.

For each consumer: accepted = handled + waiting + waiting for a retry + in review + redriving + discarded. Tracked
messages are accounted for by id, from the record that the broker itself made of their acceptance
(`ackline.dlq.acceptance`); all others by what RabbitMQ and the database count.

**How one moment is told of two systems that move on.** A delivery that is not finished, and has no dead letter, must be
in its consumer's queue or in a retry tier. First it is noted which messages have been accepted by now; then the broker
counts; then the database is read, and of it only those messages. What is unfinished *then* has been so all the time,
so it was in a queue when the broker counted: if there were fewer messages than that, some are gone. New messages do not
disturb that, nor do those that are handled meanwhile. But a report may be on its way, and how many messages workers
hold RabbitMQ counts every few seconds only. So where the messages that are ready do not explain everything, the ledger
looks again, until `SETTLE_SECONDS` have passed with nothing on its way to the reviewer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, Engine, func, or_, select

from ackline.dlq import ledger_rows
from ackline.dlq.broker_counts import Counts, look
from ackline.dlq.groups import recount
from ackline.dlq.ledger_rows import Delivery, Known, Place, Takers, Window
from ackline.dlq.queues import Queues
from ackline.dlq.rights import Actor, Right
from ackline.dlq.statement import statement
from ackline.infra.database import reading
from ackline.infra.settings import Settings
from ackline.infra.tables import DeadLetterState, dead_letters, redrives
from ackline.infra.wire import now
from ackline.producer.status import expected

#: Seconds for which something must seem to be missing. RabbitMQ counts what workers hold every 5 s, and the management
#: API shows that up to 5 s later.
SETTLE_SECONDS = 12.0
#: Seconds between two looks.
_LOOK_SECONDS = 1.0
#: Deliveries that cannot be found which are listed at most.
LISTED = 10_000
#: The beginning of a window that has none.
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Account:
    """The tracked deliveries to one consumer, '' for messages that none takes. *accepted* is the sum of the others.

    waiting: in its queue, those that are being handled included. missing: nowhere, for sure. unclear: beside all that,
    messages of which nothing is known, accepted before this consumer is known to have taken their type.
    """

    consumer: str
    accepted: int
    handled: int
    waiting: int
    retrying: int
    in_review: int
    redriving: int
    discarded: int
    missing: int
    unclear: int


@dataclass(frozen=True, slots=True)
class Counted:
    """One consumer by count, tracked or not; None is what nobody has counted.

    in_review to handled: dead letters that arrived in the window. ready, held: messages in its queues now, without and
    with a worker. published, acked: since RabbitMQ counts; what is retried is acked, too, and comes back.
    """

    consumer: str
    in_review: int
    redriving: int
    discarded: int
    handled: int
    ready: int | None
    held: int | None
    published: int | None
    acked: int | None


@dataclass(frozen=True, slots=True)
class Balance:
    """The ledger of a window, as of *at*.

    accounts: of tracked deliveries. counted: of all, by count, since *counted_since*. retrying: messages in the retry
    tiers, which all consumers share. to_reviewer: messages on their way into the database. missing: how many tracked
    deliveries are nowhere; candidates: those of which that many are missing, the first `LISTED`. faults: what else does
    not add up. unsure: why it cannot be told now whether something is missing; None when it can.
    """

    since: datetime
    until: datetime
    at: datetime
    accounts: list[Account]
    counted: list[Counted]
    counted_since: datetime | None
    retrying: int
    to_reviewer: Mapping[str, int]
    missing: int
    candidates: list[Delivery]
    faults: list[str]
    unsure: str | None

    @property
    def adds_up(self) -> bool:
        """Whether every delivery is accounted for, as far as can be told."""
        return not (self.missing or self.faults)


class Ledger:
    """The ledger of the database behind *engine*, whose tables are up to date, and of the broker of *settings*.

    Safe on any thread. Only reads.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        if engine.dialect.name == "postgresql":  # all that is read is of one moment, as on SQLite
            engine = engine.execution_options(isolation_level="REPEATABLE READ")
        self._engine = engine
        self._settings = settings

    def window(
        self,
        who: Actor,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        consumer: str | None = None,
        wait: float = 30.0,
    ) -> Balance:
        """The balance of what was accepted from *since* on and before *until*, of all consumers or of one.

        wait: seconds for which to look again while it cannot be told whether something is missing.
        Raises `BrokerUnreachable`, `BrokerRefused`, `DatabaseUnavailable`, `ConfigurationError`, `Forbidden`.
        """
        who.must(Right.VIEW)
        since, until = since or BEGINNING, until or now()
        in_app = expected(self._settings)
        with reading(self._engine) as connection:
            last = ledger_rows.latest(connection, until)
        # Of a message that is accepted from here on the broker may not have counted anything yet.
        window = Window(since, until if last is None else last + timedelta(microseconds=1), consumer)
        deadline = time.monotonic() + wait
        quiet_since: float | None = None
        with Queues(self._settings.broker) as queues:
            while True:
                began = time.monotonic()
                with reading(self._engine) as connection:
                    seen = ledger_rows.consumers_seen(connection)
                names = {name for some in in_app.values() for name in some} | {name for name, _ in seen}
                counts = look(self._settings, queues, names - {""})
                takers = _takers(in_app, seen, counts)
                with reading(self._engine) as connection:
                    known = ledger_rows.known(connection, window, takers, seen)
                    ready = _limits(known, counts)
                    if not _missing(known, ready, counts.tiers):
                        return _balance(connection, window, since, until, known, counts, ready)
                    quiet_since = None if any(counts.to_reviewer.values()) else quiet_since or began
                    is_settled = quiet_since is not None and began - quiet_since >= SETTLE_SECONDS
                    if is_settled or time.monotonic() >= deadline:
                        unsure = _unsure(known, counts, is_settled=is_settled, waited=wait)
                        limits = _limits(known, counts, with_held=True) if is_settled else ready
                        candidates = ledger_rows.unfinished(connection, window, takers, seen, LISTED)
                        return _balance(connection, window, since, until, known, counts, limits, candidates, unsure)
                time.sleep(_LOOK_SECONDS)


def _balance(
    connection: Connection,
    window: Window,
    since: datetime,
    until: datetime,
    known: Mapping[str, Known],
    counts: Counts,
    limits: Mapping[str, int],
    candidates: Sequence[Delivery] = (),
    unsure: str | None = None,
) -> Balance:
    names = sorted(known.keys() | {name for name, depth in counts.consumers.items() if depth is not None})
    missing = _missing(known, limits, counts.tiers)
    suspects = {name for name, found in known.items() if _excess(found, limits[name])} if missing else set()
    return Balance(
        since,
        until,
        now(),
        [_account(name, known[name], limits[name], counts.tiers) for name in names if name in known],
        _counted(connection, since, until, window.consumer, names, counts),
        counts.since,
        counts.tiers,
        counts.to_reviewer,
        missing,
        [
            found
            for found in candidates
            if missing and (found.consumer in suspects or found.last == ledger_rows.SENT_TO_REVIEW)
        ],
        [*_wrong_counters(connection), *_wrong_redrives(connection, since, until)],
        unsure if missing else None,
    )


# --- what the figures mean --------------------------------------------------------------------------------------------


def _takers(in_app: Takers, seen: Mapping[tuple[str, str], datetime], counts: Counts) -> dict[str, Sequence[str]]:
    """The consumers of each type: the application's; of a type that it does not know, those that have had it."""
    takers = {type_: list(names) for type_, names in in_app.items()}
    for consumer, type_ in sorted(seen):
        if consumer and type_ not in in_app and counts.consumers.get(consumer) is not None:
            takers.setdefault(type_, []).append(consumer)
    return {type_: tuple(names) for type_, names in takers.items()}


def _unfinished(known: Known) -> int:
    return known.untold + known.at(*ledger_rows.UNFINISHED)


def _limits(known: Mapping[str, Known], counts: Counts, *, with_held: bool = False) -> dict[str, int]:
    """How many messages each one's queues have at most: the ready ones, and those that workers hold where counted."""
    limits = dict.fromkeys(known, 0)
    for name, depth in counts.consumers.items():
        if depth is not None:
            limits[name] = depth.most if with_held and depth.most is not None else depth.ready
    return limits


def _excess(known: Known, limit: int) -> int:
    """Deliveries that are not in the consumer's queues, and can only be in a retry tier."""
    return max(0, _unfinished(known) - limit)


def _missing(known: Mapping[str, Known], limits: Mapping[str, int], tiers: int) -> int:
    """How many deliveries can be nowhere; those that no consumer takes would be with the reviewer by now."""
    excess = sum(_excess(found, limits[name]) for name, found in known.items())
    return max(0, excess - tiers) + sum(found.at(Place.REPORTED_DEAD) for found in known.values())


def _unsure(known: Mapping[str, Known], counts: Counts, *, is_settled: bool, waited: float) -> str | None:
    """Why what seems to be missing may be somewhere; None when it cannot."""
    uncounted = [
        name
        for name, found in known.items()
        if (depth := counts.consumers.get(name)) is not None and depth.most is None and _excess(found, depth.ready)
    ]
    if uncounted:
        names = ", ".join(sorted(uncounted))
        why = counts.problem or "RabbitMQ has not counted them yet."
        return f"Workers of {names} may hold messages, which is not known: {why}"
    if is_settled:
        return None
    waiting = [f"{count:,} in {queue}" for queue, count in counts.to_reviewer.items() if count]
    if waiting:
        return f"Messages wait for the reviewer ({', '.join(waiting)}): does it run? Then ask again."
    return f"{waited:g} s were too short to tell what moves from what is missing: wait for {2 * SETTLE_SECONDS:g} s."


def _account(consumer: str, known: Known, limit: int, tiers: int) -> Account:
    gone = max(0, _excess(known, limit) - tiers)
    in_queue, in_tier = known.untold + known.at(Place.BEING_HANDLED), known.at(Place.WAITING_FOR_RETRY)
    gone_of_queue = min(gone, in_queue)
    # What nothing is known of is this consumer's, as long as its queue has more messages than it must.
    surely = min(known.doubtful, max(0, limit - _unfinished(known)))
    lost_on_the_way = known.at(Place.REPORTED_DEAD)
    return Account(
        consumer=consumer,
        accepted=sum(known.places.values()) + known.untold + surely,
        handled=known.at(Place.HANDLED, Place.HANDLED_AFTER_REVIEW),
        waiting=in_queue - gone_of_queue + surely,
        retrying=in_tier - (gone - gone_of_queue),
        in_review=known.at(Place.IN_REVIEW),
        redriving=known.at(Place.REDRIVING),
        discarded=known.at(Place.DISCARDED),
        missing=gone + lost_on_the_way,
        unclear=known.doubtful - surely,
    )


def _counted(
    connection: Connection,
    since: datetime,
    until: datetime,
    consumer: str | None,
    names: Sequence[str],
    counts: Counts,
) -> list[Counted]:
    columns = dead_letters.c
    query = select(columns.consumer, columns.state, func.count()).group_by(columns.consumer, columns.state)
    query = query.where(columns.received_at >= since, columns.received_at < until)
    letters: dict[str, dict[str, int]] = {}
    for name, state, count in connection.execute(query):
        letters.setdefault(name, {})[state] = count
    found = []
    for name in sorted(letters.keys() | set(names)):
        if consumer not in (None, name):
            continue
        states, depth = letters.get(name, {}), counts.consumers.get(name)
        found.append(
            Counted(
                name,
                states.get(DeadLetterState.IN_REVIEW, 0),
                states.get(DeadLetterState.REDRIVING, 0),
                states.get(DeadLetterState.DISCARDED, 0),
                states.get(DeadLetterState.HANDLED, 0),
                depth.ready if depth else None,
                depth.held if depth else None,
                depth.published if depth else None,
                depth.acked if depth else None,
            )
        )
    return found


# --- what else must add up --------------------------------------------------------------------------------------------


def _wrong_counters(connection: Connection) -> list[str]:
    return [
        f"Group {found.fingerprint} has {found.counted:,} dead letters {found.state}, and {found.kept:,} are counted."
        for found in recount(connection)
    ]


def _wrong_redrives(connection: Connection, since: datetime, until: datetime) -> list[str]:
    columns = redrives.c
    query = select(redrives).where(
        columns.created_at < until, or_(columns.finished_at.is_(None), columns.finished_at >= since)
    )
    wrong = []
    for row in connection.execute(query.order_by(columns.id)).all():
        told = statement(connection, row)
        if told.adds_up:
            continue
        odd = "; ".join(f"{row_id}: {said}" for row_id, said in told.odd.items())
        sums = f"{sum(told.items.values()):,} of {told.planned:,} messages are accounted for"
        wrong.append(f"Redrive {row.id} does not add up: {sums}{f' ({odd})' if odd else ''}.")
    return wrong
