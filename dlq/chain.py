"""The chain of actions: what the hash of each covers, and whether a chain is as it was written. Pure.

Each action's hash is the SHA-256 of the hash before it and of the action as JSON, its dead letters included. So who
changes or removes one, in whatever way, has to make every later hash anew; and who noted the last one's number and
hash, as `ackline audit verify` prints them, finds that too. Actions are numbered without gaps.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ackline.dlq.errors import Invalid

#: What the first action's hash covers.
BEGINNING = bytes(32)
#: Items that are hashed at a time: what the largest action takes of memory.
_CHUNK = 2_000
#: What something raises that is taken for an action and is none.
DAMAGE = (ValueError, TypeError, AttributeError, LookupError, RecursionError)

Item = tuple[int, str, str]
"""A dead letter that an action was about, and its state before and after."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """An action on record. items: in the order of their ids; perhaps to be read once only, where they are many."""

    id: int
    at: datetime
    actor: str
    action: str
    reason: str
    details: Mapping[str, Any]
    count: int
    hash: bytes
    items: Iterable[Item] = ()


def chained(
    before: bytes,
    number: int,
    at: datetime,
    actor: str,
    action: str,
    reason: str,
    details: Mapping[str, Any],
    items: Iterable[Item],
) -> bytes:
    """The hash of an action that follows the one with the hash *before*. items: in the order of their ids.

    It covers that hash and the JSON array of all the others, without spaces and with sorted keys.
    """
    digest = hashlib.sha256(before)
    digest.update(compact([number, moment(at), actor, action, reason, details])[:-1].encode() + b",[")
    rest, separator = iter(items), b""
    while chunk := list(itertools.islice(rest, _CHUNK)):
        digest.update(separator + compact(chunk)[1:-1].encode())
        separator = b","
    digest.update(b"]]")
    return digest.digest()


def compact(value: Any) -> str:
    """*value* as the JSON that is hashed: only one text says it. Raises `ValueError` for a number that JSON has not."""
    return json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"), allow_nan=False)


def moment(at: datetime) -> str:
    """A time as it is hashed: UTC, to the microsecond."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


class Head(NamedTuple):
    """The end of a chain: the number of the last action, and its hash."""

    number: int
    hash: bytes

    @classmethod
    def parse(cls, written: str) -> Head:
        """What `str` wrote: "1204:9f86d0…", with 64 hexadecimal digits. Raises `Invalid`."""
        number, _, digits = written.strip().partition(":")
        try:
            head = cls(int(number), bytes.fromhex(digits))
        except ValueError:
            head = cls(-1, b"")
        if head.number < 0 or len(head.hash) != len(BEGINNING):
            raise Invalid(
                f"{written!r} is no end of a chain: that reads NUMBER:HASH, as `ackline audit verify` tells it."
            )
        return head

    def __str__(self) -> str:
        return f"{self.number}:{self.hash.hex()}"


#: Before the first action.
START = Head(0, BEGINNING)


@dataclass(frozen=True, slots=True)
class Broken:
    """The first action that is not as it was written.

    kind: "changed" (it, its dead letters or its hash), "missing", "out of order", "stray" (dead letters of no action),
    "cut off" (the chain ends before the noted end), "rewritten" (all hashes fit, but for the noted one).
    """

    id: int
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found: *count* actions that are as they were written, up to *head*, and what is not, if anything."""

    count: int
    head: Head
    broken: Broken | None = None


def verified(recorded: Iterable[Recorded | None], start: Head = START, expect: Head | None = None) -> Verdict:
    """Follow the chain of *recorded* from *start*, in bounded memory. None stands for what is no action any more.

    expect: an end that was noted once; the chain may have grown since.
    """
    head, count = start, 0
    for action in recorded:
        due = head.number + 1
        if action is not None and action.id > due:
            return Verdict(count, head, Broken(due, "missing", f"Action {due} is missing: {action.id} comes next."))
        if action is not None and action.id < due:
            return Verdict(count, head, Broken(due, "out of order", f"Action {action.id} comes where {due} should."))
        if action is None or not _fits(head, action):
            said = f"Action {due} is not as it was written: it, one of its dead letters, or its hash was changed."
            return Verdict(count, head, Broken(due, "changed", said))
        if expect is not None and expect.number == due and expect.hash != action.hash:
            said = f"Action {due} has another hash than was noted: the chain was written anew, at {due} or before."
            return Verdict(count, head, Broken(due, "rewritten", said))
        head, count = Head(due, action.hash), count + 1
    if expect is not None and expect.number > head.number:
        said = f"The chain ends with action {head.number}, but {expect.number} was noted: the later ones were removed."
        return Verdict(count, head, Broken(head.number + 1, "cut off", said))
    return Verdict(count, head)


def _fits(head: Head, action: Recorded) -> bool:
    met = 0

    def counted() -> Iterator[Item]:
        nonlocal met
        for item in action.items:
            met += 1
            yield item

    try:
        told = (action.at, action.actor, action.action, action.reason, action.details)
        return chained(head.hash, action.id, *told, counted()) == action.hash and met == action.count
    except DAMAGE:
        return False


# --- as lines, to be kept elsewhere and verified there ----------------------------------------------------------------


def line(action: Recorded, previous: bytes) -> str:
    """An action as one line of JSON that holds all that its hash covers. previous: the hash of the one before."""
    told = {
        "id": action.id,
        "at": moment(action.at),
        "actor": action.actor,
        "action": action.action,
        "reason": action.reason,
        "details": action.details,
        "items": list(action.items),
        "previous": previous.hex(),
        "hash": action.hash.hex(),
    }
    return json.dumps(told)


def verify_lines(lines: Iterable[bytes], expect: Head | None = None) -> Verdict:
    """Verify what was exported, without the database. A file that begins in the middle is verified from there on."""
    rest = iter(lines)
    first = next(rest, b"")
    opening = _parsed(first)
    start = Head(opening[0].id - 1, opening[1]) if opening and opening[0].id > 1 else START

    def recorded() -> Iterator[Recorded | None]:
        previous = start.hash
        for written in itertools.chain([first] if first else [], rest):
            parsed = _parsed(written)
            if parsed is None or parsed[1] != previous:
                yield None
                return
            yield parsed[0]
            previous = parsed[0].hash

    return verified(recorded(), start, expect)


def _parsed(written: bytes) -> tuple[Recorded, bytes] | None:
    """The action of a line, and the hash of the one before it; None unless the line is exactly what `line` wrote."""
    try:
        told = json.loads(written)
        items = [(row_id, before, after) for row_id, before, after in told["items"]]
        action = Recorded(
            int(told["id"]),
            datetime.fromisoformat(told["at"]),
            told["actor"],
            told["action"],
            told["reason"],
            told["details"],
            len(items),
            bytes.fromhex(told["hash"]),
            items,
        )
        previous = bytes.fromhex(told["previous"])
        return (action, previous) if line(action, previous).encode() == written.rstrip(b"\r\n") else None
    except DAMAGE:
        return None
