"""Who calls: the API keys of a gateway, what each may publish, and how fast.

A request is compared with what is in memory, which a thread reads again every two seconds. So a request costs no query,
keys go on working while the database is away, and one that is revoked stops within seconds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from datetime import datetime
from http import HTTPStatus
from typing import Any, NamedTuple, NoReturn

from fastapi import Request
from sqlalchemy import Engine, select

from ackline.infra import database
from ackline.infra.tables import api_keys
from ackline.producer.api_key import LENGTH, PREFIX, digest, is_damaged
from ackline.producer.gateway.limits import Bucket
from ackline.producer.gateway.problems import Refusal

log = logging.getLogger(__name__)

#: Seconds that closing waits for a database that does not answer.
_CLOSE_SECONDS = 5.0
#: Seconds between looks into the database.
REFRESH_SECONDS = 2.0
#: The name of callers whose key is in ACKLINE_API_KEYS; no key in the database can have it.
CONFIGURED = "(configured)"

#: `Authorization` headers whose caller is remembered. There is one per key, unless somebody plays with blanks.
_REMEMBERED = 4096


class Caller:
    """Who made a request: the holder of a key, or anybody when the gateway is open."""

    __slots__ = ("_all", "_bucket", "_exact", "_prefixes", "_types", "name")

    def __init__(self, name: str, types: Iterable[str] = (), bucket: Bucket | None = None) -> None:
        """name: of the key; empty for anybody. types: that it may publish, `order.*` for any ending; none: all."""
        self.name = name
        self._types = tuple(types)
        self._exact = frozenset(self._types)
        self._prefixes = tuple(type_[:-1] for type_ in self._types if type_.endswith("*"))
        self._all = not self._types
        self._bucket = bucket

    def may_use(self, type_: str) -> bool:
        """Whether it may publish messages of *type_*."""
        return self._all or type_ in self._exact or type_.startswith(self._prefixes)

    def require(self, type_: str) -> None:
        """Raise `Refusal` (403) unless it may publish messages of *type_*."""
        if not self.may_use(type_):
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                f"The key {self.name!r} is for messages of type {_listed(self._types)}, not {type_!r}.",
            )

    def admit(self) -> None:
        """Count one message. Raises `Refusal` (429) when that is more than the key's rate."""
        if self._bucket is not None and (wait := self._bucket.admit()):
            self._refuse(self._bucket, wait)

    def take(self, messages: int) -> None:
        """Count *messages* more, in a call that was admitted as one: the rest of a batch.

        A batch may be longer than the rate: the calls after it then wait for it. Raises `Refusal` (429) when an
        earlier batch is still being waited for.
        """
        if self._bucket is not None and (wait := self._bucket.charge(messages)):
            self._refuse(self._bucket, wait)

    def _refuse(self, bucket: Bucket, wait: int) -> NoReturn:
        raise Refusal(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"The key {self.name!r} is limited to {bucket.rate:,} a second, each message of a batch counted: "
            f"try again in {wait:,} s.",
            # The second and third as draft-ietf-httpapi-ratelimit-headers has them.
            headers={
                "Retry-After": str(wait),
                "RateLimit-Policy": f'"key";q={bucket.rate};w=1',
                "RateLimit": f'"key";r=0;t={wait}',
            },
        )


def _listed(types: tuple[str, ...]) -> str:
    return " or ".join(filter(None, [", ".join(types[:-1]), types[-1]]))


class _Known(NamedTuple):
    """A key in memory. revoked_at: it is refused since then."""

    caller: Caller
    revoked_at: datetime | None


class Keys:
    """The keys that a gateway takes: those of ACKLINE_API_KEYS, and those in the database.

    With neither it is open (and listens on loopback only: `check_address`). It closes when the first key is there, and
    stays closed, though every key be revoked.
    """

    def __init__(self, engine: Engine, configured: tuple[str, ...]) -> None:
        """Reads the keys once. Raises `DatabaseUnavailable`."""
        self._engine = engine
        self._configured = {digest(key.encode()): _Known(Caller(CONFIGURED), None) for key in configured}
        #: Whether anybody may call.
        self.is_open = not configured
        self._rows: dict[bytes, tuple[Any, ...]] = {}
        self._known = dict(self._configured)
        self._callers: dict[bytes, Caller] = {}
        self._anybody = Caller("")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_fresh, name="keys", daemon=True)
        self.refresh()

    # --- the request path ------------------------------------------------------------------------------

    def caller(self, request: Request) -> Caller:
        """Whose request it is; counts it. Never waits. Raises `Refusal` (401, 429)."""
        if self.is_open:
            return self._anybody
        for name, value in request.scope["headers"]:
            if name == b"authorization":
                # An attacker learns nothing from the time that a dict takes: it compares only where Python's keyed
                # hash of the header is the same, or, below, the SHA-256 of a key.
                caller = self._callers.get(value) or self._identify(value)
                caller.admit()
                return caller
        raise _unauthorized("This gateway wants a key: Authorization: Bearer KEY.")

    def _identify(self, header: bytes) -> Caller:
        callers = self._callers  # of the keys that are known now: a refresh begins another
        scheme, _, key = header.partition(b" ")
        key = key.strip()
        if scheme.lower() != b"bearer" or not key:
            raise _unauthorized(
                "The Authorization header does not hold a key. It must read: Authorization: Bearer KEY."
            )
        known = self._known.get(digest(key))
        if known is None:
            if is_damaged(key):
                raise _unauthorized(f"This is no key ({PREFIX} and {LENGTH} letters and digits): copy the whole of it.")
            raise _unauthorized("This gateway does not know the key.")
        if known.revoked_at is not None:
            raise _unauthorized(
                f"The key {known.caller.name!r} was revoked at {known.revoked_at:%Y-%m-%d %H:%M:%SZ}: use another."
            )
        if len(callers) >= _REMEMBERED:
            callers.clear()
        callers[header] = known.caller
        return known.caller

    # --- keeping fresh ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Read the keys again every two seconds from now on, until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Stop doing so."""
        self._stop.set()
        self._thread.join(_CLOSE_SECONDS)

    def _keep_fresh(self) -> None:
        failed = False
        while not self._stop.wait(REFRESH_SECONDS):
            try:
                self.refresh()
                failed = False
            except Exception as error:  # whatever it is: without this thread no key could be revoked
                if not failed:
                    log.warning("the keys cannot be read; those that are known go on: %s", error)
                failed = True

    def refresh(self) -> None:
        """Read the keys. What a key's bucket holds is kept unless its rate changed. Raises `DatabaseUnavailable`."""
        wanted = select(
            api_keys.c.key_sha256, api_keys.c.name, api_keys.c.types, api_keys.c.rate, api_keys.c.revoked_at
        )
        with database.reading(self._engine) as connection:
            rows = {hashed: tuple(row) for hashed, *row in connection.execute(wanted)}
        if rows == self._rows:
            return
        known = dict(self._configured)
        for hashed, row in rows.items():
            if self._rows.get(hashed) == row:
                known[hashed] = self._known[hashed]
            else:
                name, types, rate, revoked_at = row
                known[hashed] = _Known(Caller(name, types, None if rate is None else Bucket(rate)), revoked_at)
        self._rows = rows
        self._known = known
        self._callers = {}
        self.is_open = self.is_open and not known


def _unauthorized(detail: str) -> Refusal:
    return Refusal(HTTPStatus.UNAUTHORIZED, detail, headers={"WWW-Authenticate": "Bearer"})
