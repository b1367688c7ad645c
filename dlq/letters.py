"""Dead letters as people work with them: found, read, noted on, discarded and restored, exported and imported.

Every method is one transaction but for `export` and `import_`, is safe on any thread, and raises `DatabaseUnavailable`
when the database is away: then nothing of it happened. *who* is the person that acts; `Forbidden` says that the role
does not allow it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, LargeBinary, exists, func, or_, select

from ackline.dlq import search_values, transfer
from ackline.dlq.approvals import Approvals
from ackline.dlq.contracts import Contracts
from ackline.dlq.deadletter import clean
from ackline.dlq.edited_headers import of_application
from ackline.dlq.edits import Version
from ackline.dlq.errors import AmbiguousMessageId, Invalid, NoSuchDeadLetter, NotFound, Refused
from ackline.dlq.readable import MAX_READ, readable
from ackline.dlq.rights import Actor, Right
from ackline.dlq.rules import Kind
from ackline.dlq.selection import SCAN_ROWS, Selection, counts, rows
from ackline.dlq.transfer import Imported
from ackline.dlq.transition import transitions
from ackline.dlq.view import Action, Detail, GroupOf, Note, Page, Related, Sent, Summary
from ackline.infra.database import reading, writing
from ackline.infra.many import among
from ackline.infra.properties import Properties
from ackline.infra.tables import (
    DeadLetterState,
    action_items,
    actions,
    dead_letters,
    edits,
    fingerprints,
    notes,
    redrive_items,
)
from ackline.infra.terminal import plain
from ackline.infra.wire import now

#: Above so many dead letters, who discards them has to say exactly how many they are.
CONFIRM_ABOVE = 100
#: Dead letters that a page has, and that `export` reads at once, at most.
MAX_PAGE, _EXPORTED = 1000, 100
#: Characters of a note.
MAX_NOTE = 10_000
#: Related dead letters that `get` tells of.
_RELATED = 20
#: Searches of which each reads `SCAN_ROWS` payloads, for all of a selection.
_SEARCHES = 10


@dataclass(frozen=True, slots=True)
class Done:
    """What was done: to how many dead letters, and under which number it is on record."""

    count: int
    action: int


class Letters:
    """The dead letters in the database behind *engine*, whose tables are up to date."""

    def __init__(self, engine: Engine, contracts: Contracts, approvals: Approvals) -> None:
        self._engine = engine
        self._contracts = contracts
        self._approvals = approvals
        approvals.register(Kind.DISCARD, self._discard_approved)
        approvals.register(Kind.RESTORE, self._restore_approved)

    # --- finding ---------------------------------------------------------------------------------------

    def page(self, who: Actor, selection: Selection, after: int | None = None, limit: int = 50) -> Page:
        """Up to *limit* dead letters of *selection*, latest first. after: `next` of the page before this one."""
        who.must(Right.VIEW)
        limit = min(limit, MAX_PAGE)
        with reading(self._engine) as connection:
            found = rows(connection, selection, after=after, limit=limit, hidden=self._contracts.masked)
            query = select(*_columns(Summary)).where(dead_letters.c.id.in_(found.ids))
            summaries = connection.execute(query.order_by(dead_letters.c.id.desc()))
            return Page([Summary(**row._mapping) for row in summaries], found.next, found.scanned)

    def counts(self, who: Actor, selection: Selection) -> dict[str, int]:
        """How many dead letters of *selection* are in each state; every state is there.

        Raises `Refused` when too many payloads would have to be read for it.
        """
        who.must(Right.VIEW)
        with reading(self._engine) as connection:
            if selection.where:
                found: Mapping[str, int] = Counter(_states(connection, self._all(connection, selection)))
            else:
                found = counts(connection, selection)
        return {state.value: found.get(state.value, 0) for state in DeadLetterState}

    def find(self, who: Actor, reference: str) -> Summary:
        """The dead letter that *reference* names: a number is an id, all else a message id.

        Raises `NoSuchDeadLetter`, `AmbiguousMessageId`.
        """
        who.must(Right.VIEW)
        if reference.isascii() and reference.isdigit() and len(reference) < 19:
            wanted = dead_letters.c.id == int(reference)
        else:
            wanted = dead_letters.c.message_id == clean(reference)
        query = select(*_columns(Summary)).where(wanted)
        with reading(self._engine) as connection:
            found = connection.execute(query.order_by(dead_letters.c.id).limit(10)).all()
        if not found:
            raise NoSuchDeadLetter(f"There is no dead letter {reference!r}; `ackline dlq list` shows what there is.")
        if len(found) > 1:
            ids = ", ".join(f"{row.id} ({row.consumer or 'no consumer'}, {row.state})" for row in found)
            raise AmbiguousMessageId(
                f"Several dead letters have the message id {reference!r}: {ids}. Name one by its id."
            )
        return Summary(**found[0]._mapping)

    def _all(self, connection: Connection, selection: Selection) -> list[int]:
        """All of *selection*, newest first. Raises `Refused` when too many payloads would have to be read for it."""
        ids: list[int] = []
        after = None
        searches = 0
        while True:
            found = rows(connection, selection, after=after, limit=MAX_PAGE, hidden=self._contracts.masked)
            ids += found.ids
            if found.next is None:
                return ids
            after = found.next
            searches += len(found.ids) < MAX_PAGE
            if searches == _SEARCHES:
                raise Refused(
                    f"More than {_SEARCHES * SCAN_ROWS:,} payloads may have to be read for that: narrow it, by type, "
                    "consumer or time, or have its path indexed (ACKLINE_SEARCH_PATHS)."
                )

    # --- reading one -----------------------------------------------------------------------------------

    def get(self, who: Actor, dead_letter_id: int, unmask: str | None = None) -> Detail:
        """All of one dead letter.

        unmask: why *who* must see what the contract hides too; that they did is put on record. Raises
        `NoSuchDeadLetter`, and `Invalid` for a blank reason.
        """
        who.must(Right.VIEW)
        with self._seeing(who, dead_letter_id, unmask) as connection:
            row = connection.execute(_detail(dead_letter_id)).one()
            columns = {name: getattr(row, name) for name in _names(Detail)}
            properties = Properties.from_wire(bytes(row.properties_now))
            hides = unmask is None and self._contracts.shape(row.type) is not None
            mask = (lambda body: self._contracts.mask(row.type, body)) if hides else None
            return Detail(
                **columns | {"body_sha256": bytes(row.body_sha256).hex()},
                properties=plain(Properties.from_wire(bytes(row.properties_then)).decoded()),
                headers=of_application(properties.headers),
                payload=readable(properties, bytes(row.body or b""), row.size, mask),
                masked=hides,
                group=_group(connection, row.fingerprint),
                actions=_of(connection, Action, _actions(dead_letter_id)),
                edits=_of(connection, Version, _edits(dead_letter_id)),
                notes=_of(connection, Note, _notes(dead_letter_id)),
                redrives=_of(connection, Sent, _redrives(dead_letter_id)),
                related=_of(connection, Related, _related(dead_letter_id, row.message_id, row.correlation_id)),
            )

    def payload(self, who: Actor, dead_letter_id: int, version: int | None = None, unmask: str | None = None) -> bytes:
        """The whole payload as it is now, or as that *version* of it is (0: as it came).

        Byte by byte, unless its contract hides something and *unmask* gives no reason to see it; see `get`. Raises
        `NoSuchDeadLetter`, `NotFound` when there is no such version.
        """
        who.must(Right.VIEW)
        with self._seeing(who, dead_letter_id, unmask) as connection:
            columns = dead_letters.c
            query = select(columns.type, search_values.CURRENT, columns.payload)
            query = query.outerjoin_from(dead_letters, edits, search_values.LATEST_EDIT).where(
                columns.id == dead_letter_id
            )
            type_, found, original = connection.execute(query).one()
            if version == 0:
                found = original
            elif version is not None:
                of_version = (edits.c.dead_letter_id == dead_letter_id, edits.c.version == version)
                found = connection.scalar(select(edits.c.payload).where(*of_version))
        if found is None:
            raise NotFound(f"Dead letter {dead_letter_id} has no version {version}.")
        if unmask is None and self._contracts.shape(type_) is not None:
            return self._contracts.masked_payload(type_, bytes(found))
        return bytes(found)

    @contextmanager
    def _seeing(self, who: Actor, dead_letter_id: int, unmask: str | None) -> Iterator[Connection]:
        """A transaction in which *who* reads; it is on record when they see what is hidden from others."""
        if unmask is None:
            with reading(self._engine) as connection:
                _state(connection, dead_letter_id)
                yield connection
            return
        who.must(Right.UNMASK)
        reason = _said(unmask, "What is masked is shown for a reason: say which.")
        with writing(self._engine) as connection, transitions(connection) as moves:
            state = DeadLetterState(_state(connection, dead_letter_id))
            moves.record(who, "unmask", reason, [dead_letter_id], state, state)
            yield connection

    # --- changing --------------------------------------------------------------------------------------

    def note(self, who: Actor, dead_letter_id: int, text: str) -> None:
        """Leave a note with a dead letter. Raises `NoSuchDeadLetter`, `Invalid` when it says nothing, or too much."""
        who.must(Right.NOTE)
        said = _said(text, "A note says something.")
        if len(said) > MAX_NOTE:
            raise Invalid(f"A note has at most {MAX_NOTE:,} characters; this one has {len(said):,}.")
        with writing(self._engine) as connection, transitions(connection) as moves:
            state = DeadLetterState(_state(connection, dead_letter_id))
            row = {"dead_letter_id": dead_letter_id, "at": now(), "actor": clean(who.name), "text": said}
            connection.execute(notes.insert().values(row))
            moves.record(who, "note", said, [dead_letter_id], state, state)

    def discard(self, who: Actor, selection: Selection, reason: str, expect: int | None = None) -> Done:
        """Take those of *selection* that are in review out of it for good. They are kept, with who did it and why.

        expect: how many they are; above `CONFIRM_ABOVE` it must be said. All of them are discarded, or none: raises
        `Refused` when they are not that many, when one that was named by its id is not in review, or when somebody does
        something else with one at the same moment; `NoSuchDeadLetter`; `Invalid` for a blank reason; `NeedsApproval`.
        """
        who.must(Right.DISCARD)
        said = _said(reason, "A dead letter is discarded for a reason: say which.")
        with reading(self._engine) as connection:
            ids = self._in(connection, selection, DeadLetterState.IN_REVIEW, "discarded")
            types, consumers = _kinds(connection, ids)
        if expect is None and len(ids) > CONFIRM_ABOVE:
            raise Refused(f"These are {len(ids):,} dead letters: say that you expect {len(ids)}, or narrow them.")
        if expect is not None and expect != len(ids):
            raise Refused(f"These are {len(ids):,} dead letters, not {expect:,}: nothing was discarded. Look again.")
        request = {"ids": ids, "reason": said}
        summary = f"discard {_told(ids)} ({', '.join(types)})"
        self._approvals.require(
            who, Kind.DISCARD, request, summary=summary, count=len(ids), types=types, consumers=consumers, reason=said
        )
        return self._discard(who, ids, said)

    def _discard(self, who: Actor, ids: Sequence[int], reason: str) -> Done:
        before, after = DeadLetterState.IN_REVIEW, DeadLetterState.DISCARDED
        columns = {"discarded_at": now(), "discarded_by": clean(who.name), "discard_reason": reason}
        return self._move(who, "discard", "discarded", ids, reason, before, after, columns)

    def _discard_approved(self, who: Actor, request: Mapping[str, Any]) -> Mapping[str, Any]:
        done = self._discard(who, request["ids"], request["reason"])
        return {"count": done.count, "action": done.action}

    def restore(self, who: Actor, ids: Iterable[int], reason: str) -> Done:
        """Bring these dead letters, which were discarded, back into review: all of them, or none.

        Raises `Refused` when one of them is not discarded, `NoSuchDeadLetter`, `Invalid` for a blank reason,
        `NeedsApproval`.
        """
        who.must(Right.RESTORE)
        said = _said(reason, "A dead letter is restored for a reason: say which.")
        with reading(self._engine) as connection:
            selection = Selection(ids=tuple(dict.fromkeys(ids)))
            found = self._in(connection, selection, DeadLetterState.DISCARDED, "restored")
        return self._ask_to_restore(who, found, said, {})

    def undo(self, who: Actor, action_id: int, reason: str) -> Done:
        """Bring back into review what that action discarded, but for what somebody has restored since.

        Raises `NotFound`, `Refused` when it discarded nothing, or nothing that still is, and what `restore` raises.
        """
        who.must(Right.RESTORE)
        said = _said(reason, "A discard is undone for a reason: say which.")
        later = action_items.alias()
        changed_since = exists().where(
            later.c.dead_letter_id == action_items.c.dead_letter_id,
            later.c.action_id > action_items.c.action_id,
            later.c.state_before != later.c.state_after,
        )
        of_action = action_items.c.action_id == action_id
        discarded = action_items.c.state_after == DeadLetterState.DISCARDED
        with reading(self._engine) as connection:
            action = connection.scalar(select(actions.c.action).where(actions.c.id == action_id))
            if action is None:
                raise NotFound(f"There is no action {action_id}.")
            query = select(action_items.c.dead_letter_id).where(of_action, discarded, ~changed_since)
            ids = list(connection.scalars(query.order_by(action_items.c.dead_letter_id)))
        if not ids:
            raise Refused(f"Action {action_id} ({action}) discarded nothing that is discarded still.")
        return self._ask_to_restore(who, ids, said, {"undoes": action_id})

    def _ask_to_restore(self, who: Actor, ids: Sequence[int], reason: str, details: Mapping[str, Any]) -> Done:
        with reading(self._engine) as connection:
            types, consumers = _kinds(connection, ids)
        request = {"ids": list(ids), "reason": reason, "details": dict(details)}
        summary = f"restore {_told(ids)} ({', '.join(types)})"
        self._approvals.require(
            who, Kind.RESTORE, request, summary=summary, count=len(ids), types=types, consumers=consumers, reason=reason
        )
        return self._restore(who, ids, reason, details)

    def _restore(self, who: Actor, ids: Sequence[int], reason: str, details: Mapping[str, Any]) -> Done:
        before, after = DeadLetterState.DISCARDED, DeadLetterState.IN_REVIEW
        columns = {"discarded_at": None, "discarded_by": None, "discard_reason": None}
        return self._move(who, "restore", "restored", ids, reason, before, after, columns, details)

    def _restore_approved(self, who: Actor, request: Mapping[str, Any]) -> Mapping[str, Any]:
        done = self._restore(who, request["ids"], request["reason"], request["details"])
        return {"count": done.count, "action": done.action}

    def _in(self, connection: Connection, selection: Selection, state: DeadLetterState, done: str) -> list[int]:
        """Those of *selection* in *state*: of those named by id alone, all. Raises `Refused` when there are none."""
        found = self._all(connection, selection)
        held = _ids_in(connection, found, state)
        if selection.ids is not None and selection == Selection(ids=selection.ids):
            _all_in(connection, selection.ids, held, done)
        if not held:
            raise Refused(f"Nothing of that is {state}: nothing was {done}.")
        return held

    def _move(
        self,
        who: Actor,
        action: str,
        done: str,
        ids: Sequence[int],
        reason: str,
        before: DeadLetterState,
        after: DeadLetterState,
        columns: Mapping[str, Any],
        details: Mapping[str, Any] | None = None,
    ) -> Done:
        with writing(self._engine) as connection:
            with transitions(connection) as moves:
                moved = moves.move(ids, before, after, **columns)
                if len(moved) != len(ids):
                    _all_in(connection, ids, moved, done)
                moves.record(who, action, reason, moved, before, after, details)
            return Done(len(moved), moves.last_action)

    # --- out of this database, and into another ----------------------------------------------------------

    def export(self, who: Actor, selection: Selection, unmask: str | None = None) -> Iterator[dict[str, Any]]:
        """All dead letters of *selection*, latest first, each with its payload, history, edits and notes, as JSON.

        It is on record who exported what. What a contract hides is masked, and such a line cannot be imported; unmask:
        why *who* must have that too. Raises `Invalid` for a blank reason.
        """
        who.must(Right.EXPORT)
        said = ""
        if unmask is not None:
            who.must(Right.UNMASK)
            said = _said(unmask, "What is masked is exported for a reason: say which.")
        with writing(self._engine) as connection, transitions(connection) as moves:
            about = {"selection": selection.as_json(), "unmasked": unmask is not None}
            moves.record(who, "export", said, details=about)
        return self._exported(selection, unmask is not None)

    def _exported(self, selection: Selection, unmasked: bool) -> Iterator[dict[str, Any]]:
        after = None
        while True:
            with reading(self._engine) as connection:
                found = rows(connection, selection, after=after, limit=_EXPORTED, hidden=self._contracts.masked)
                lines = transfer.written(connection, found.ids, None if unmasked else self._contracts)
            yield from lines
            if found.next is None:
                return
            after = found.next

    def import_(self, who: Actor, lines: Iterable[bytes | str]) -> Imported:
        """Take in what `export` wrote. All of it comes in in review; what is here already is left alone, and counted.

        A line that cannot be used is told by its number, and costs no other line anything. Some hundred lines are one
        transaction, and one action on record; when it ends early, the same lines may be imported again.
        """
        who.must(Right.IMPORT)
        return transfer.take(self._engine, who, lines)


# --- SQL --------------------------------------------------------------------------------------------------------------

#: What a detail has that is no column of the table.
_MADE = frozenset(
    ("properties", "headers", "payload", "masked", "group", "actions", "edits", "notes", "redrives", "related")
)


def _names(kind: type[Summary]) -> list[str]:
    return [field for field in kind.__dataclass_fields__ if field not in _MADE]


def _columns(kind: type[Summary]) -> list[Any]:
    return [dead_letters.c[name] for name in _names(kind)]


def _detail(dead_letter_id: int) -> Any:
    columns = dead_letters.c
    return (
        select(
            *_columns(Detail),
            columns.properties.label("properties_then"),
            func.coalesce(edits.c.properties, columns.properties, type_=LargeBinary).label("properties_now"),
            func.substr(search_values.CURRENT, 1, MAX_READ + 1, type_=LargeBinary).label("body"),
            func.length(search_values.CURRENT).label("size"),
        )
        .outerjoin_from(dead_letters, edits, search_values.LATEST_EDIT)
        .where(columns.id == dead_letter_id)
    )


def _of(connection: Connection, kind: Any, query: Any) -> list[Any]:
    return [kind(**row._mapping) for row in connection.execute(query)]


def _group(connection: Connection, fingerprint: str) -> GroupOf | None:
    columns = [fingerprints.c[field] for field in GroupOf.__dataclass_fields__]
    found = connection.execute(select(*columns).where(fingerprints.c.fingerprint == fingerprint)).one_or_none()
    return None if found is None else GroupOf(**found._mapping)


def _actions(dead_letter_id: int) -> Any:
    columns = dict(actions.c) | {name: action_items.c[name] for name in ("state_before", "state_after")}
    query = select(*[columns[field] for field in Action.__dataclass_fields__]).join_from(actions, action_items)
    return query.where(action_items.c.dead_letter_id == dead_letter_id).order_by(actions.c.id)


def _edits(dead_letter_id: int) -> Any:
    columns = [edits.c[field] for field in Version.__dataclass_fields__]
    return select(*columns).where(edits.c.dead_letter_id == dead_letter_id).order_by(edits.c.version)


def _notes(dead_letter_id: int) -> Any:
    columns = [notes.c[field] for field in Note.__dataclass_fields__]
    return select(*columns).where(notes.c.dead_letter_id == dead_letter_id).order_by(notes.c.id)


def _redrives(dead_letter_id: int) -> Any:
    columns = [redrive_items.c[field] for field in Sent.__dataclass_fields__]
    return select(*columns).where(redrive_items.c.dead_letter_id == dead_letter_id).order_by(redrive_items.c.id)


def _related(dead_letter_id: int, message_id: str, correlation_id: str | None) -> Any:
    columns = dead_letters.c
    same = [columns.message_id == message_id]
    if correlation_id is not None:
        same.append(columns.correlation_id == correlation_id)
    query = select(*[columns[field] for field in Related.__dataclass_fields__])
    return query.where(or_(*same), columns.id != dead_letter_id).order_by(columns.id.desc()).limit(_RELATED)


def _state(connection: Connection, dead_letter_id: int) -> str:
    state = connection.scalar(select(dead_letters.c.state).where(dead_letters.c.id == dead_letter_id))
    if state is None:
        raise NoSuchDeadLetter(f"There is no dead letter {dead_letter_id}.")
    return str(state)


def _states(connection: Connection, ids: Sequence[int]) -> list[str]:
    return list(connection.scalars(select(dead_letters.c.state).where(among(dead_letters.c.id, ids))))


def _ids_in(connection: Connection, ids: Sequence[int], state: DeadLetterState) -> list[int]:
    query = select(dead_letters.c.id).where(among(dead_letters.c.id, ids), dead_letters.c.state == state)
    return list(connection.scalars(query.order_by(dead_letters.c.id)))


def _all_in(connection: Connection, ids: Sequence[int], held: Sequence[int], done: str) -> None:
    """Raise unless *held*, which are in the right state, are all of *ids*; and say what the others are."""
    others = sorted(set(ids) - set(held))
    if not others:
        return
    told = [f"{row_id} is {_state(connection, row_id)}" for row_id in others[:10]]
    more = f", and {len(others) - 10:,} more" if len(others) > 10 else ""
    if len(ids) == 1:
        state = _state(connection, others[0])
        raise Refused(f"Dead letter {others[0]} cannot be {done}: it is {state}.")
    raise Refused(
        f"{len(others):,} of these {len(ids):,} cannot be {done}: {', '.join(told)}{more}. Nothing was {done}."
    )


def _kinds(connection: Connection, ids: Sequence[int]) -> tuple[list[str], list[str]]:
    """The types and the consumers of these dead letters."""
    kinds = select(dead_letters.c.type, dead_letters.c.consumer).where(among(dead_letters.c.id, ids)).distinct()
    found = connection.execute(kinds).all()
    return sorted({type_ for type_, _ in found}), sorted({consumer for _, consumer in found})


def _said(text: str, blank: str) -> str:
    said = clean(text.strip())
    if not said:
        raise Invalid(blank)
    return said


def _told(ids: Sequence[int]) -> str:
    return f"dead letter {ids[0]}" if len(ids) == 1 else f"{len(ids):,} dead letters"
