"""Edits: what a person changes of a dead letter is its next version, and what is sent when it is redriven.

The original never changes, nor does a version; the message keeps its id. Who edits says which version they saw, and is
refused when there is a later one. A version is checked against its contract, like the worker will check it; its key,
and so its shard, follows the payload. All of it is kept: who, when, why, and what is different, secrets masked.

An edit sets the payload, the application's headers, or both. What Ackline and the broker write on a message is theirs.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, LargeBinary, func, insert, select, update

from ackline.consumers.masking import MASK
from ackline.dlq import difference, document, edited_headers, patching, search_values
from ackline.dlq.approvals import Approvals
from ackline.dlq.condition import ABSENT
from ackline.dlq.contracts import Contracts
from ackline.dlq.deadletter import clean, name
from ackline.dlq.difference import Difference
from ackline.dlq.document import NotJson
from ackline.dlq.errors import Fault, Invalid, NoSuchDeadLetter, NotFound, Refused
from ackline.dlq.patching import Patch
from ackline.dlq.rights import Actor, Right
from ackline.dlq.rules import Kind
from ackline.dlq.selection import Selection, rows
from ackline.dlq.transition import transitions
from ackline.dlq.unmasking import unmasked
from ackline.infra import wire
from ackline.infra.database import reading, writing
from ackline.infra.many import among
from ackline.infra.properties import Properties
from ackline.infra.tables import DeadLetterState, dead_letters, edits
from ackline.infra.terminal import moment

#: Bytes of a frame that the headers of an edit leave to those of Ackline.
_OURS = 8 * 1024
#: Changed fields that an action names, and dead letters that a preview shows, at most.
_NAMED, _SAMPLED = 50, 100


class Current(NamedTuple):
    """A dead letter as it would be sent now: its latest version, or as it came, which is version 0."""

    id: int
    state: str
    type: str
    consumer: str
    version: int
    payload: bytes
    properties: bytes


class Change(NamedTuple):
    """The version that follows `version`, to be added by `add`."""

    id: int
    version: int
    payload: bytes
    properties: bytes
    ordering_key: str | None
    diff: list[Difference]
    checked: bool


@dataclass(frozen=True, slots=True)
class Version:
    """One edit. diff: against the version before. checked: whether its contract takes it; else none was known, or it
    is what somebody reverted to.
    """

    version: int
    at: datetime
    actor: str
    reason: str
    diff: list[Difference]
    checked: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """What a patch would make of a dead letter. faults: why it cannot be patched; then diff is empty."""

    id: int
    type: str
    consumer: str
    diff: list[Difference]
    faults: list[Fault]


class Edits:
    """The edits in the database behind *engine*. Safe on any thread; a method is a transaction."""

    def __init__(self, engine: Engine, contracts: Contracts, approvals: Approvals) -> None:
        self._engine = engine
        self._contracts = contracts
        self._approvals = approvals
        approvals.register(Kind.EDIT, self._approved)

    def edit(
        self,
        who: Actor,
        dead_letter_id: int,
        payload: bytes | str | None = None,
        *,
        headers: Mapping[str, Any] | None = None,
        reason: str,
        expected_version: int,
    ) -> Version:
        """Make the next version of a dead letter in review.

        payload: the whole body, where `MASK` in place of a secret keeps that secret; None keeps the payload. headers:
        all that the application has, as JSON; None keeps them. expected_version: the one that *who* saw.

        Raises `Invalid` with every fault, `Refused` when it is not in review or somebody edited it meanwhile,
        `NoSuchDeadLetter`, `NeedsApproval`.
        """
        who.must(Right.EDIT)
        said = _reason(reason, "An edit needs a reason: say why it is changed.")
        with reading(self._engine) as connection:
            row = _editable(connection, dead_letter_id, expected_version)
        sent = row.payload if payload is None else _octets(payload)
        properties = Properties.from_wire(row.properties)
        if headers is not None:
            properties = properties.copy(headers=edited_headers.replaced(properties.headers, headers))
        change = changed(self._contracts, row, self._unmasked(row, sent), properties)
        asked = {
            "payload": None if payload is None else b64encode(sent).decode(),
            "headers": None if headers is None else document.plain(dict(headers)),
        }
        self._require(who, row, said, asked, change)
        return self._add(who, "edit", said, change)

    def revert(
        self, who: Actor, dead_letter_id: int, to_version: int, *, reason: str, expected_version: int
    ) -> Version:
        """Make a next version that equals an earlier one: 0 is the message as it came, whatever is wrong with that.

        Raises what `edit` raises, and `NotFound` when there is no such version.
        """
        who.must(Right.EDIT)
        said = _reason(reason, "A revert needs a reason: say why it is changed back.")
        with reading(self._engine) as connection:
            row = _editable(connection, dead_letter_id, expected_version)
            payload, properties = _version(connection, dead_letter_id, to_version)
        checked = self._contracts.check(row.type, payload) == []
        change = _change(self._contracts, row, payload, properties, checked=checked)
        self._require(who, row, said, {"to_version": to_version}, change)
        return self._add(who, "revert", said, change, to_version=to_version)

    def versions(self, who: Actor, dead_letter_id: int) -> list[Version]:
        """The edits of a dead letter, the first one first. Raises `NoSuchDeadLetter`."""
        who.must(Right.VIEW)
        columns = [edits.c[field] for field in Version.__dataclass_fields__]
        query = select(*columns).where(edits.c.dead_letter_id == dead_letter_id).order_by(edits.c.version)
        with reading(self._engine) as connection:
            current(connection, dead_letter_id)
            return [Version(**row._mapping) for row in connection.execute(query)]

    def preview_patch(self, who: Actor, selection: Selection, patch: Any, sample: int = 10) -> list[Preview]:
        """What *patch* (RFC 6902, as JSON) would make of the latest *sample* of *selection* that are in review.

        Nothing is changed: that does a redrive with the patch. Raises `Invalid` when it is no patch.
        """
        who.must(Right.EDIT)
        prepared = patching.prepare(patch)
        with reading(self._engine) as connection:
            chosen = replace(selection, states=(DeadLetterState.IN_REVIEW,))
            hidden = None if who.may(Right.UNMASK) else self._contracts.masked
            ids = rows(connection, chosen, limit=min(sample, _SAMPLED), hidden=hidden).ids
            found = currents(connection, ids)
        return [self._preview(who, row, prepared) for row in sorted(found.values(), reverse=True)]

    def _unmasked(self, row: Current, payload: bytes) -> bytes:
        """*payload* with the secrets that its masks stand for. Raises `Invalid`."""
        shape = self._contracts.shape(row.type)
        if shape is None or MASK.encode() not in payload:
            return payload
        try:
            edited = document.read(payload)
        except NotJson as error:
            raise Invalid(
                f"The payload is not JSON: {error}.", [Fault("payload", f"it is not JSON: {error}")]
            ) from None
        found, faults = unmasked(edited, _document(row.payload), shape)
        if faults:
            raise Invalid(f"A secret is missing: {_told(faults)}.", faults)
        return payload if document.same(found, edited) else document.write(found)

    def _preview(self, who: Actor, row: Current, patch: Patch) -> Preview:
        try:
            change = patched(self._contracts, row, patch, unmask=who.may(Right.UNMASK))
            diff, faults = [] if change is None else change.diff, []
        except Invalid as error:
            diff, faults = [], list(error.faults) or [Fault("payload", str(error))]
        return Preview(row.id, row.type, row.consumer, diff, faults)

    def _require(self, who: Actor, row: Current, reason: str, asked: Mapping[str, Any], change: Change) -> None:
        self._approvals.require(
            who,
            Kind.EDIT,
            {"ids": [row.id], "reason": reason, "expected_version": row.version, **asked},
            summary=f"edit dead letter {row.id} ({row.type})",
            count=1,
            types=[row.type],
            consumers=[row.consumer],
            reason=reason,
            edited=True,
            diff=change.diff,
        )

    def _approved(self, who: Actor, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """Carry out what a second person approved."""
        (dead_letter_id,) = asked["ids"]
        terms = {"reason": asked["reason"], "expected_version": asked["expected_version"]}
        if "to_version" in asked:
            made = self.revert(who, dead_letter_id, asked["to_version"], **terms)
        else:
            payload = None if asked["payload"] is None else b64decode(asked["payload"])
            made = self.edit(who, dead_letter_id, payload, headers=asked["headers"], **terms)
        return {"version": made.version}

    def _add(self, who: Actor, action: str, reason: str, change: Change, **details: Any) -> Version:
        with writing(self._engine) as connection, transitions(connection) as moves:
            if not add(connection, [change], who.name, reason):
                _editable(connection, change.id, change.version)  # which says what happened meanwhile
                raise RuntimeError(f"dead letter {change.id} could not be edited, and says no reason")
            changed = [found["path"] for found in change.diff if "path" in found]
            about = {
                "from_version": change.version,
                "version": change.version + 1,
                "changed": changed[:_NAMED],
                **details,
            }
            moves.record(who, action, reason, [change.id], details=about)
            columns = [edits.c[field] for field in Version.__dataclass_fields__]
            query = select(*columns).where(edits.c.dead_letter_id == change.id, edits.c.version == change.version + 1)
            return Version(**connection.execute(query).one()._mapping)


# --- what becomes of a dead letter; pure --------------------------------------------------------------------------


def patched(contracts: Contracts, row: Current, patch: Patch, *, unmask: bool) -> Change | None:
    """What *patch* makes of *row*; None when it changes nothing.

    unmask: whether it may read what is hidden. Raises `Invalid` with the faults when it does not apply, or what comes
    of it is no message of its contract.
    """
    payload = patch.apply(row.payload, None if unmask else contracts.shape(row.type))
    if document.same(document.read(payload), document.read(row.payload)):
        return None
    return changed(contracts, row, payload, Properties.from_wire(row.properties))


def changed(contracts: Contracts, row: Current, payload: bytes, properties: Properties) -> Change:
    """The version of *row* with this payload and these properties, its key made anew. Raises `Invalid`."""
    faults = contracts.check(row.type, payload)
    if faults is not None or _says_json(properties):
        try:
            document.read(payload)
        except NotJson as error:
            faults = [Fault("payload", f"it is not JSON: {error}")]
    if faults:
        raise Invalid(f"That is no message of type {row.type!r}: {_told(faults)}.", faults)
    keys = contracts.key_headers(row.type, payload)
    if keys is not None:
        properties = properties.copy(headers=edited_headers.with_keys(properties.headers, keys))
    if not wire.fits_into_a_frame(properties, wire.FRAME_MAX - _OURS):
        raise Invalid(f"The headers are too large: with Ackline's own they have to fit into {wire.FRAME_MAX:,} bytes.")
    return _change(contracts, row, payload, properties.wire, checked=faults is not None)


def _change(contracts: Contracts, row: Current, payload: bytes, properties: bytes, *, checked: bool) -> Change:
    before, after = (Properties.from_wire(raw).headers for raw in (row.properties, properties))
    shown = [edited_headers.of_application(found) for found in (before, after)]
    if payload == row.payload and shown[0] == shown[1]:
        raise Invalid("That changes nothing.")
    diff = difference.of_payloads(row.payload, payload, contracts.shape(row.type)) + difference.of_headers(*shown)
    key = after.text(wire.KEY)
    return Change(row.id, row.version, payload, properties, None if key is None else name(key), diff, checked)


def _says_json(properties: Properties) -> bool:
    return (properties.content_type or b"").split(b";")[0].strip().lower() == b"application/json"


def _told(faults: Sequence[Fault]) -> str:
    return "; ".join(f"{fault.path}: {fault.message}" for fault in faults)


# --- on a connection that the caller commits ----------------------------------------------------------------------


def current(connection: Connection, dead_letter_id: int) -> Current:
    """A dead letter as it would be sent now. Raises `NoSuchDeadLetter`."""
    found = currents(connection, [dead_letter_id])
    if not found:
        raise NoSuchDeadLetter(f"There is no dead letter {dead_letter_id}.")
    return found[dead_letter_id]


def currents(connection: Connection, ids: Sequence[int]) -> dict[int, Current]:
    """The same of those of *ids* that exist."""
    columns = dead_letters.c
    query = select(
        *(columns[field] for field in ("id", "state", "type", "consumer", "version")),
        search_values.CURRENT,
        func.coalesce(edits.c.properties, columns.properties, type_=LargeBinary),
    ).outerjoin_from(dead_letters, edits, search_values.LATEST_EDIT)
    found: dict[int, Current] = {}
    for row in connection.execute(query.where(among(columns.id, ids)).order_by(columns.id)):
        *about, payload, properties = row
        found[row.id] = Current._make([*about, bytes(payload), bytes(properties)])
    return found


def add(
    connection: Connection,
    changes: Sequence[Change],
    actor: str,
    reason: str,
    state: DeadLetterState = DeadLetterState.IN_REVIEW,
) -> list[int]:
    """Add these versions, each if its dead letter is in *state* and nobody has edited it since. Returns which are."""
    columns = dead_letters.c
    added = []
    at = wire.now()
    for change in sorted(changes, key=lambda change: change.id):
        updated = connection.execute(
            update(dead_letters)
            .where(columns.id == change.id, columns.version == change.version, columns.state == state)
            .values(version=change.version + 1, ordering_key=change.ordering_key)
        )
        if updated.rowcount != 1:
            continue
        added.append(change.id)
        row = {
            "dead_letter_id": change.id,
            "version": change.version + 1,
            "at": at,
            "actor": actor,
            "reason": reason,
            **{field: getattr(change, field) for field in ("payload", "properties", "diff", "checked")},
        }
        connection.execute(insert(edits), row)
        search_values.replace(connection, change.id, change.payload)
    return added


def _editable(connection: Connection, dead_letter_id: int, expected_version: int) -> Current:
    """The dead letter as *expected_version* has it. Raises `Refused` unless it is in review and has no later one."""
    row = current(connection, dead_letter_id)
    if row.version != expected_version:
        query = select(edits.c.actor, edits.c.at).where(
            edits.c.dead_letter_id == dead_letter_id, edits.c.version == row.version
        )
        last = connection.execute(query).one_or_none()
        edited = f"{last.actor} edited it at {moment(last.at)}" if last else "nobody has edited it"
        raise Refused(
            f"Dead letter {dead_letter_id} has version {row.version}, not {expected_version}: {edited}. "
            "Look at it again, and edit what it is now."
        )
    if row.state != DeadLetterState.IN_REVIEW:
        raise Refused(f"Dead letter {dead_letter_id} cannot be edited: it is {row.state}.")
    return row


def _version(connection: Connection, dead_letter_id: int, version: int) -> tuple[bytes, bytes]:
    """The payload and the properties of a version; 0 is what came. Raises `NotFound`."""
    query = select(dead_letters.c.payload, dead_letters.c.properties).where(dead_letters.c.id == dead_letter_id)
    if version:
        query = select(edits.c.payload, edits.c.properties).where(
            edits.c.dead_letter_id == dead_letter_id, edits.c.version == version
        )
    found = connection.execute(query).one_or_none()
    if found is None:
        raise NotFound(f"Dead letter {dead_letter_id} has no version {version}.")
    return bytes(found[0]), bytes(found[1])


# --- what a person says -------------------------------------------------------------------------------------------


def _octets(payload: bytes | str) -> bytes:
    try:
        return payload.encode() if isinstance(payload, str) else payload
    except UnicodeEncodeError:
        raise Invalid("The payload is no text that UTF-8 can hold.") from None


def _document(payload: bytes) -> Any:
    try:
        return document.read(payload)
    except NotJson:
        return ABSENT


def _reason(reason: str, missing: str) -> str:
    said = clean(reason.strip())
    if not said:
        raise Invalid(missing, [Fault("reason", "is missing")])
    return said
