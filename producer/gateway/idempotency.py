"""`Idempotency-Key`: the same request again gets the same answer, and makes no second message.

A row holds the key, what the request was (a hash of everything that matters), and the message id, which is decided
before the first publish: whoever takes a half-done request over, after a crash, publishes under the same id. Of two
equal requests at once one does the work; the other waits for its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any, NamedTuple

from sqlalchemy import Engine, and_, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from ackline.infra import database
from ackline.infra.database import DatabaseUnavailable
from ackline.infra.tables import idempotency_keys
from ackline.infra.wire import now, uuid7
from ackline.producer.gateway.problems import Refusal

log = logging.getLogger(__name__)

#: How long a key is remembered.
KEPT = timedelta(hours=24)
#: Seconds after which a request that has given no answer counts as dead, and another may take it over.
CLAIM_SECONDS = 30.0
#: Seconds that a request waits for the answer of an equal one.
_WAIT_SECONDS, _LOOK_SECONDS = 10.0, 0.1
#: Characters of a key.
MAX_KEY = 255
#: Seconds between looks for old keys, and keys of one transaction.
_CLEAN_SECONDS, _CLEAN_MOST = 600.0, 1000

#: Does the work of a request under a message id, and returns its answer. The second argument: whether somebody began it
#: before under this id, and it is not known how far that came.
Work = Callable[[str, bool], Awaitable[dict[str, Any]]]


class _Claim(NamedTuple):
    """mine: the message id when this request does the work, until when, and whether it was begun before.

    answer: the one that there is already.
    """

    mine: str | None = None
    until: datetime | None = None
    again: bool = False
    answer: dict[str, Any] | None = None


class Idempotency:
    """The idempotency keys of one database, whichever gateway a request comes to."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def once(
        self,
        owner: str,
        key: str,
        request: bytes,
        work: Work,
        is_kept: Callable[[dict[str, Any]], bool] = lambda answer: True,
    ) -> tuple[dict[str, Any], bool]:
        """The answer of *work*, done once for this key of this owner; and whether it is a repetition.

        request: everything that makes two requests equal. is_kept: whether an answer stands; the next try does the
        work again for one that does not. Raises `Refusal` when the key was used for another request,
        or an equal one is still under way; when *work* raises, the next try does it again.
        """
        if not 1 <= len(key) <= MAX_KEY or not key.isprintable():
            raise Refusal(
                HTTPStatus.UNPROCESSABLE_ENTITY, f"Idempotency-Key must have 1 to {MAX_KEY} printable characters."
            )
        digest = hashlib.sha256(request).digest()
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            claim = await asyncio.to_thread(self._claim, owner, key, digest)
            if claim.answer is not None:
                return claim.answer, True
            if claim.mine is not None:
                break
            if time.monotonic() > deadline:
                raise Refusal(
                    HTTPStatus.CONFLICT,
                    "An equal request with this Idempotency-Key is still under way: try again.",
                    headers={"Retry-After": "1"},
                )
            await asyncio.sleep(_LOOK_SECONDS)
        try:
            answer = await work(claim.mine, claim.again)
        except BaseException:
            await self._free(owner, key, claim)
            raise
        if not is_kept(answer):
            await self._free(owner, key, claim)
            return answer, False
        try:
            answer = await asyncio.to_thread(self._finish, owner, key, answer)
        except DatabaseUnavailable as error:  # the message is durable; a repetition would have the same id
            log.warning("The answer for an Idempotency-Key could not be kept: %s", error)
        return answer, False

    async def _free(self, owner: str, key: str, claim: _Claim) -> None:
        with contextlib.suppress(DatabaseUnavailable):  # then the claim runs out by itself
            await asyncio.to_thread(self._give_up, owner, key, claim)

    async def keep_clean(self) -> None:
        """Forget old keys, now and then, until it is cancelled."""
        while True:
            try:
                while await asyncio.to_thread(self._clean):
                    pass
            except Exception as error:
                log.warning("Old idempotency keys could not be deleted: %s", error)
            await asyncio.sleep(_CLEAN_SECONDS)

    # --- in a thread -----------------------------------------------------------------------------------

    def _clean(self) -> bool:
        """Forget some old keys; whether there may be more."""
        columns = idempotency_keys.c
        with database.writing(self._engine) as connection:
            old = select(columns.owner, columns.key).where(columns.created_at < now() - KEPT).limit(_CLEAN_MOST)
            rows = connection.execute(old).all()
            for row in rows:
                connection.execute(delete(idempotency_keys).where(_is(row.owner, row.key)))
        return len(rows) == _CLEAN_MOST

    def _claim(self, owner: str, key: str, digest: bytes) -> _Claim:
        at = now()
        until = at + timedelta(seconds=CLAIM_SECONDS)
        fresh = uuid7()
        try:
            with database.writing(self._engine) as connection:
                connection.execute(
                    insert(idempotency_keys).values(
                        owner=owner,
                        key=key,
                        request_sha256=digest,
                        message_id=fresh,
                        created_at=at,
                        claimed_until=until,
                    )
                )
            return _Claim(fresh, until)
        except IntegrityError:
            pass
        with database.writing(self._engine) as connection:
            row = connection.execute(select(idempotency_keys).where(_is(owner, key)).with_for_update()).one_or_none()
            if row is None:  # cleaned up meanwhile
                return _Claim()
            if row.request_sha256 != digest:
                raise Refusal(
                    HTTPStatus.UNPROCESSABLE_ENTITY,
                    "This Idempotency-Key was used for another request: take a new key for each message.",
                )
            if row.answer is not None:
                return _Claim(answer=json.loads(row.answer))
            if row.claimed_until > at:
                return _Claim()
            connection.execute(update(idempotency_keys).where(_is(owner, key)).values(claimed_until=until))
            return _Claim(row.message_id, until, again=True)

    def _finish(self, owner: str, key: str, answer: dict[str, Any]) -> dict[str, Any]:
        """Keep the answer. Returns the one that stands: who was so slow that it was taken over may find another."""
        with database.writing(self._engine) as connection:
            kept = update(idempotency_keys).where(_is(owner, key), idempotency_keys.c.answer.is_(None))
            if connection.execute(kept.values(answer=json.dumps(answer))).rowcount:
                return answer
            standing = connection.scalar(select(idempotency_keys.c.answer).where(_is(owner, key)))
            return answer if standing is None else json.loads(standing)

    def _give_up(self, owner: str, key: str, claim: _Claim) -> None:
        """Let the next try have it, under the same message id: whether this one got through may be unknown."""
        with database.writing(self._engine) as connection:
            is_ours = and_(_is(owner, key), idempotency_keys.c.claimed_until == claim.until)
            connection.execute(update(idempotency_keys).where(is_ours).values(claimed_until=now()))


def _is(owner: str, key: str) -> Any:
    return and_(idempotency_keys.c.owner == owner, idempotency_keys.c.key == key)
