"""What Ackline writes on a message, and what it believes of what is written there.

A message that fails travels: consumer queue -> retry tier -> `ackline.return` -> the same consumer, and in the end
`ackline.dead` -> the reviewer -> `ackline.return`. What it must remember on the way is in headers `ackline-*`:

| header | holds |
| --- | --- |
| `ackline-consumer` | the consumer whose delivery this is |
| `ackline-attempt` | number of the attempt to come (on a dead letter: of the last one) |
| `ackline-attempts` | attempts at most, where that is fewer than the consumer's policy allows: a redrive's canary |
| `ackline-first-failed-at` | time of the first failure, ISO 8601, UTC |
| `ackline-history` | JSON array of `{attempt, at, worker, error, message}`, bounded: the first and the latest |
| `ackline-reason` | on a dead letter: why, for a person |
| `ackline-traceback` | on a dead letter: the end of the traceback |
| `ackline-due` | not before this time (UTC milliseconds): a delay longer than the longest tier |
| `ackline-redrive` | id of the redrive that sent it |
| `ackline-track` | true: every delivery is accounted for by id |
| `ackline-key` | the message's key, as text: ordered consumers handle the messages of a key in order |
| `ackline-slot` | CRC-32 of the key's UTF-8, modulo 64, as an integer: it decides the shard of an ordered consumer |
| `ackline-original` | table: `exchange`, `routing_key`, and the properties set aside |

**Whom to believe.** Upstream clients may write to `ackline.messages` only. So these headers are read on what came
through `ackline.return` or to `ackline.dead`, where only Ackline writes, and are somebody's invention on what came from
anywhere else: ignored, and dropped when the message is published again. But for `ackline-track`, which anybody may ask
for: it is believed wherever it comes from, on a message that has an id to be found by. And but for `ackline-key` and
`ackline-slot`, which are the publisher's: they travel with the message for life.

**What is set aside** when a message is published again: `expiration` (it would vanish from a retry tier before its
time), `user_id` (another's closes the channel), `reply_to`, and the headers `CC` and `BCC` (the message would go to
unrelated queues). `x-death` and its kin are removed: brokers before 4.0.1 read them as a cycle and drop the message.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from ackline.infra.names import MESSAGES, RETURN, TRACKED
from ackline.infra.properties import PERSISTENT, Properties
from ackline.infra.table import Table, text

CONSUMER = "ackline-consumer"
ATTEMPT = "ackline-attempt"
ATTEMPTS = "ackline-attempts"
FIRST_FAILED_AT = "ackline-first-failed-at"
HISTORY = "ackline-history"
REASON = "ackline-reason"
TRACEBACK = "ackline-traceback"
DUE = "ackline-due"
REDRIVE = "ackline-redrive"
TRACK = "ackline-track"
KEY = "ackline-key"
SLOT = "ackline-slot"
ORIGINAL = "ackline-original"

#: Bytes of a reason, a traceback and a history at most; all of our headers together stay below 8 KB.
MAX_REASON, MAX_TRACEBACK, MAX_HISTORY, MAX_ERROR = 1024, 3072, 3072, 400

#: Control characters, which JSON would write in six bytes each, so that two long errors would not fit into a history.
_CONTROLS = {code: f"\\x{code:02x}" for code in range(32) if chr(code) not in "\n\r\t"}

#: A key is spread over this many slots, and an ordered consumer's shards share them out: it has so many at most.
SLOTS = 64
#: Bytes of a key; of a longer one the SHA-256 goes along.
MAX_KEY = 200

#: More attempts than any policy allows; what says more lies.
MAX_ATTEMPT = 1_000_000

_BROKER_HEADERS = (b"x-death", b"x-delivery-count", b"x-acquired-count")
_BROKER_PREFIXES = (b"x-first-death-", b"x-last-death-")
_SET_ASIDE_HEADERS = (b"CC", b"BCC")
_PUBLISHERS_HEADERS = (KEY.encode(), SLOT.encode())
_SET_ASIDE_PROPERTIES = ("expiration", "user_id", "reply_to")

#: Octets of a header frame besides the properties: frame header (7), class, weight and size (12), frame end (1).
HEADER_FRAME_OVERHEAD = 20
#: RabbitMQ's default `frame_max`, also the most that pika asks for.
FRAME_MAX = 131_072


#: Random octets, taken from the system many at a time: a call costs more than the id.
_RANDOM_POOL = 4096
#: Hexadecimal digits of an id that are random: the last 16, but for the one that holds the variant.
_RANDOM_DIGITS = 15

_last_uuid7 = 0
_random = ""
_random_at = 0
_uuid7_lock = threading.Lock()


def uuid7() -> str:
    """A new message id: UUIDv7 (RFC 9562), increasing within a process, thread-safe."""
    global _last_uuid7, _random, _random_at
    with _uuid7_lock:
        # 48 bits of milliseconds, then 12 bits of their fraction (RFC 9562, 6.2, method 3).
        _last_uuid7 = stamp = max(time.time_ns() * 4096 // 1_000_000, _last_uuid7 + 1)
        end = _random_at + _RANDOM_DIGITS
        if end > len(_random):
            _random, _random_at, end = os.urandom(_RANDOM_POOL).hex(), 0, _RANDOM_DIGITS
        tail, _random_at = _random[_random_at:end], end
    head = f"{stamp:015x}"
    return f"{head[:8]}-{head[8:12]}-7{head[12:]}-8{tail[:3]}-{tail[3:]}"


def uuid8(of: str) -> str:
    """The id that follows from a text: UUIDv8 (RFC 9562) of its SHA-256."""
    digest = bytearray(hashlib.sha256(of.encode("utf-8", "surrogateescape")).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return str(UUID(bytes=bytes(digest)))


def _forget_randomness() -> None:
    """In a forked child: what the parent has left would make the same ids, and its lock may be held."""
    global _random, _uuid7_lock
    _random = ""
    _uuid7_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_randomness)


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One recorded try of a handler that failed."""

    attempt: int
    at: str
    worker: str
    error: str
    message: str

    def as_dict(self) -> dict[str, Any]:
        """As the history header holds it."""
        return {name: getattr(self, name) for name in ("attempt", "at", "worker", "error", "message")}


@dataclass(frozen=True, slots=True)
class Trail:
    """What a delivery remembers of its way. Made by `trail`; written by `republished`."""

    consumer: str | None = None
    attempt: int = 1
    #: At most so many; None: as many as the consumer's policy allows.
    attempts: int | None = None
    first_failed_at: str | None = None
    history: tuple[Attempt, ...] = ()
    due: datetime | None = None
    redrive: str | None = None
    track: bool = False
    exchange: str = ""
    routing_key: str = ""
    set_aside: Table = field(default_factory=Table)

    def failed(self, attempt: Attempt) -> Trail:
        """This trail after one more failed attempt."""
        return replace(
            self,
            attempt=attempt.attempt,
            first_failed_at=self.first_failed_at or attempt.at,
            history=(*self.history, attempt),
        )


def message_type(properties: Properties, routing_key: str) -> str:
    """The type of a message: its property `type`, else the routing key that it was first published with."""
    return text(properties.type) if properties.type else routing_key


def message_id(properties: Properties) -> str | None:
    """The id of a message for people and databases; None when it has none."""
    return text(properties.message_id) if properties.message_id else None


def entrance(properties: Properties) -> str:
    """The exchange that a message is first published to: of a tracked one the acceptance is on record."""
    return TRACKED if properties.headers.flag(TRACK) else MESSAGES


def trail(
    properties: Properties,
    exchange: str,
    routing_key: str,
    *,
    trusted: bool | None = None,
    consumer: str | None = None,
) -> Trail:
    """What the headers tell of a delivery's way, where they can be believed. Never raises.

    exchange, routing_key: as the broker says them of this delivery. trusted: whether only Ackline can have written the
    headers; when None, that is so for what came through `ackline.return`. consumer: whose delivery it is, where that is
    known without the headers.
    """
    headers = properties.headers
    track = is_tracked(properties)
    if not (exchange == RETURN if trusted is None else trusted):
        return Trail(consumer=consumer, track=track, exchange=exchange, routing_key=routing_key)
    original = headers.table(ORIGINAL)
    attempt, attempts = headers.number(ATTEMPT) or 1, headers.number(ATTEMPTS)
    return Trail(
        consumer=consumer or headers.text(CONSUMER),
        attempt=attempt if 1 <= attempt <= MAX_ATTEMPT else 1,
        attempts=attempts if attempts is not None and attempts >= 1 else None,
        first_failed_at=headers.text(FIRST_FAILED_AT),
        history=_read_history(headers.text(HISTORY)),
        due=_due(headers.number(DUE)),
        redrive=headers.text(REDRIVE),
        track=track,
        exchange=original.text("exchange") or "",
        routing_key=original.text("routing_key") or routing_key,
        set_aside=_set_aside(original),
    )


def sent_anew(properties: Properties, way: Trail, *, trusted: bool) -> Properties:
    """The properties for a message that begins again at *way*: `republished`, with what was set aside still so.

    trusted: whether only Ackline can have written the headers.
    """
    aside = _set_aside(properties.headers.table(ORIGINAL)) if trusted else Table()
    return republished(properties, replace(way, track=is_tracked(properties), set_aside=aside))


def is_tracked(properties: Properties) -> bool:
    """Whether every delivery of the message is accounted for by id."""
    return bool(properties.message_id) and properties.headers.flag(TRACK)


def _set_aside(original: Table) -> Table:
    return original.select(lambda name: name not in (b"exchange", b"routing_key"))


def republished(properties: Properties, trail: Trail, extra: Mapping[str, Any] | None = None) -> Properties:
    """The properties under which a message is published again, by rule 3 of the design (see the top of this page).

    Everything else is sent on as it came, raw. A message without an id or a type gets them here, for life.
    extra: further headers of ours.
    """
    headers = properties.headers
    aside_values = {name: value for name in _SET_ASIDE_PROPERTIES if (value := getattr(properties, name)) is not None}
    original = Table.of(
        {"exchange": trail.exchange, "routing_key": trail.routing_key}
        | {name: value.decode("utf-8", "surrogateescape") for name, value in aside_values.items()}
    )
    original = original.filled(trail.set_aside).filled(headers.select(_SET_ASIDE_HEADERS.__contains__))
    ours: dict[str, Any] = {ORIGINAL: original}
    if trail.consumer:
        ours[CONSUMER] = trail.consumer
    if trail.attempt > 1 or trail.history:
        ours[ATTEMPT] = trail.attempt
    if trail.attempts is not None:
        ours[ATTEMPTS] = trail.attempts
    if trail.history:
        ours[HISTORY] = _write_history(trail.history)
    if trail.first_failed_at:
        ours[FIRST_FAILED_AT] = trail.first_failed_at
    if trail.redrive:
        ours[REDRIVE] = trail.redrive
    if trail.track:
        ours[TRACK] = True
    if trail.due:
        ours[DUE] = int(trail.due.timestamp() * 1000)
    return properties.copy(
        headers=headers.select(travels).plus(ours | dict(extra or {})),
        message_id=properties.message_id or uuid7(),
        type=properties.type or trail.routing_key.encode("utf-8", "surrogateescape")[:255],
        delivery_mode=PERSISTENT,
        expiration=None,
        user_id=None,
        reply_to=None,
    )


def stripped(properties: Properties) -> Properties:
    """A message's own properties, without what the broker and Ackline wrote on its way: what a person published."""
    return properties.copy(headers=properties.headers.select(_travels_or_aside))


def travels(name: bytes) -> bool:
    """Whether a header of that name is sent on as it came, when a message is published again."""
    return _travels_or_aside(name) and name not in _SET_ASIDE_HEADERS


def _travels_or_aside(name: bytes) -> bool:
    if name.startswith(b"ackline-"):
        return name in _PUBLISHERS_HEADERS
    return not (name in _BROKER_HEADERS or name.startswith(_BROKER_PREFIXES))


def key_headers(key: str) -> dict[str, Any]:
    """The headers of a message that has this key. Raises UnicodeEncodeError for a lone surrogate.

    A client in any language can write them, so that its messages meet those of the same key from Python.
    """
    raw = key.encode()
    if len(raw) > MAX_KEY:
        key = hashlib.sha256(raw).hexdigest()
    return {KEY: key, SLOT: zlib.crc32(raw) % SLOTS}


def fits_into_a_frame(properties: Properties, frame_max: int = FRAME_MAX) -> bool:
    """Whether the header frame is small enough; a larger one closes the connection."""
    return sum(map(len, properties.encode())) + HEADER_FRAME_OVERHEAD <= frame_max


def cut(value: str, size: int) -> str:
    """*value* in at most *size* bytes of UTF-8, with a mark where it was cut."""
    raw = value.encode("utf-8", "backslashreplace")
    return raw.decode() if len(raw) <= size else raw[: size - 3].decode("utf-8", "ignore") + "…"


def cut_start(value: str, size: int) -> str:
    """The last *size* bytes of *value*, with a mark where it was cut: the end of a traceback says most."""
    raw = value.encode("utf-8", "backslashreplace")
    return raw.decode() if len(raw) <= size else "…" + raw[len(raw) - size + 3 :].decode("utf-8", "ignore")


def attempt_of(number: int, worker: str, error: BaseException, mask: Callable[[str], str] = str) -> Attempt:
    """The record of a try that ended with *error*, now. mask: takes from its text what nobody is to read."""
    at = now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
    said = text(mask(str(error))[: MAX_ERROR + 1].encode("utf-8", "replace")).translate(_CONTROLS)
    return Attempt(number, at, worker, type(error).__name__[:100], cut(said, MAX_ERROR))


def due_in(seconds: float) -> datetime:
    """The time that lies *seconds* ahead."""
    return now() + timedelta(seconds=seconds)


def _due(milliseconds: int | None) -> datetime | None:
    try:
        return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _write_history(history: tuple[Attempt, ...]) -> str:
    """The history as JSON in MAX_HISTORY bytes: the first failure stays, the oldest of the others go."""
    entries = [attempt.as_dict() for attempt in history]
    while len((written := json.dumps(entries, ensure_ascii=False)).encode()) > MAX_HISTORY and len(entries) > 1:
        del entries[1]
    return written


def _read_history(written: str | None) -> tuple[Attempt, ...]:
    try:
        entries = json.loads(written or "[]")
        return tuple(
            Attempt(int(e["attempt"]), str(e["at"]), str(e["worker"]), str(e["error"]), str(e["message"]))
            for e in entries
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return ()
