"""The inbox: a message that is delivered twice has its effect once.

A message is delivered again after a crash between its effect and its ack, after a lost connection, and when somebody
publishes it again under its id. What has been handled is a row, (consumer, message id), in the database of the effect:

- `inbox`: the effect is in that database. The row is written first, the handler writes on `ctx.session`, and both
  commit in one transaction, or neither. A repeated delivery finds the row and is acked; the handler is not run.
- `claim`: the effect is elsewhere. The row is committed before the handler, with an expiry, and marked afterwards. So
  no two run at once, and what was marked is not run again; a crash between the effect and the mark runs it again.

**What the handler publishes** (`ctx.publish`) is sent after the commit, for before it nobody may know. A worker that
dies between the two would leave an effect that nobody hears of: the repeated delivery is acked without running. So
these messages are in the row too, in the same transaction, and a repeated delivery publishes them from there, under the
same ids, until the broker's confirms are noted.

**What is no duplicate.** A message whose id was handled with another body goes to review: to take it for a duplicate
might lose it, to run it might repeat an effect. One without an id is run, for there is nothing to know it by.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from copy import copy
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from ackline.consumers import inbox_database, inbox_rows
from ackline.consumers.context import Context
from ackline.consumers.decision import AlreadyHandled, Park, Reject
from ackline.consumers.inbox_database import InboxDatabase
from ackline.consumers.inbox_rows import Key, Row
from ackline.infra.database import clock
from ackline.infra.durations import seconds
from ackline.infra.errors import AcklineError, ConfigurationError
from ackline.infra.tables import create_missing, inbox_metadata

__all__ = ["Inbox", "claim", "create_tables", "inbox", "inbox_metadata"]

log = logging.getLogger(__name__)

#: How long a row is kept: longer than a message may take to come again, redrives included.
KEEP = "7d"
#: Seconds after which a message comes back that another worker has claimed, at most: that one may have failed.
CLAIMED_SECONDS = 60.0

Call: TypeAlias = Callable[[Any, Any], Any]
#: What is known of each message: None when it is to be handled, or was; else why not, as the worker takes it.
Verdicts: TypeAlias = list[BaseException | None]


def inbox(database_url: str | None = None, *, keep: str | float = KEEP) -> Inbox:
    """Have the effect of each message once: `@consumer("billing", inbox=inbox())`.

    The handler writes on `ctx.session`, a `Session`, or an `AsyncSession` when it is async. What it writes there
    commits together with the note that the message is handled, after the handler returned; nothing when it raises.

    database_url: SQLAlchemy URL of the database that the handler writes to, PostgreSQL or SQLite;
    `ACKLINE_INBOX_DATABASE_URL` when not given, and Ackline's own without that. keep: how long it is known what was
    handled, in seconds when it is a number; a duplicate that comes later is handled again.

    Raises `ConfigurationError` for a keep that is no duration.
    """
    return _Transactional(database_url, timedelta(seconds=seconds(keep)))


def claim(expires: str | float, database_url: str | None = None, *, keep: str | float = KEEP) -> Inbox:
    """Have the effect of each message once as far as that can be, where it is not in a database of ours.

    A message is claimed before its handler runs and marked as handled after it. A duplicate of a handled one is acked
    without running; one that comes meanwhile is parked, and asks again. When the handler raises, the claim is given up;
    when its worker dies, the claim ends after *expires*, and the message is handled again.

    expires: longer than the handler takes. database_url, keep: as for `inbox`.
    Raises `ConfigurationError` for what is no duration, and a keep that is shorter than *expires*.
    """
    kept, lasts = timedelta(seconds=seconds(keep)), timedelta(seconds=seconds(expires))
    if not timedelta() < lasts <= kept:
        raise ConfigurationError(f"A claim that expires after {expires!r}, and is kept for {keep!r}, is of no use.")
    return _Claiming(database_url, kept, lasts)


def create_tables(bind: Engine | Connection) -> None:
    """Create the table of an inbox where it is missing: in a transaction of its own, or in that of a connection.

    Safe when several do it at once. A service with migrations of its own adds `inbox_metadata` to them instead.
    """
    create_missing(bind, inbox_metadata)


class Inbox(ABC):
    """What keeps the messages of a consumer from being handled twice: made by `inbox` or `claim`.

    Everything in here is about several messages, as a batch handler has them; a single one is a batch of one.
    """

    def __init__(self, database_url: str | None, keep: timedelta) -> None:
        self._url = database_url
        self._keep = keep
        self._has_said = False

    def at(self, database_url: str) -> Inbox:
        """The same, but in that database."""
        found = copy(self)
        found._url = database_url
        return found

    def open(self, connections: int) -> None:
        """Before the first message, for *connections* handlers at once: see that the table is there.

        Raises `ConfigurationError`, `DatabaseUnavailable`, `AcklineError`.
        """
        self._database.open(connections)

    def close(self) -> None:
        """After the last message, while the event loop of async handlers still runs."""
        self._database.close()

    def around(self, call: Call, *, is_async: bool, is_batch: bool) -> Call:
        """*call*, which takes a message and its context, or lists of them, run once for each message.

        Raises `ConfigurationError` when a package that async handlers need is missing.
        """
        if is_async:
            self._database.check_async()
            return self._around_async(call) if is_batch else _single_async(self._around_async(_batch_async(call)))
        return self._around(call) if is_batch else _single(self._around(_batch(call)))

    @abstractmethod
    def _around(self, call: Call) -> Call: ...

    @abstractmethod
    def _around_async(self, call: Call) -> Call: ...

    @property
    def _database(self) -> InboxDatabase:
        return inbox_database.of(self._url)

    def _take(
        self, contexts: Sequence[Context], expires: timedelta | None, connection: Connection
    ) -> tuple[datetime | None, Verdicts]:
        """Write rows of the messages that are to be handled. Until when they are claimed, and what is known of each.

        `AlreadyHandled`: its context publishes what the broker may not have of it. `Park`: another worker has it.
        `Reject`: its id was that of another message.
        """
        keys = [self._key(context) for context in contexts]
        digests: dict[Key, bytes] = {}
        for key, context in zip(keys, contexts, strict=True):
            if key is not None:
                digests.setdefault(key, _digest(context))
        if not digests:
            return None, [None] * len(contexts)
        until, there = inbox_rows.take(connection, digests, keep=self._keep, expires=expires)
        verdicts: Verdicts = []
        for key, context in zip(keys, contexts, strict=True):
            if key is None:
                verdicts.append(None)
            elif key in there:
                verdicts.append(self._taken_before(connection, key, there[key], context))
            else:
                verdicts.append(None if digests.pop(key, None) else Park(0, "the same message is in this batch"))
        return until, verdicts

    def _taken_before(self, connection: Connection, key: Key, row: Row, context: Context) -> BaseException:
        if row.claimed_until is not None:
            left = (row.claimed_until - clock(connection)).total_seconds()
            return Park(min(max(left, 0.0), CLAIMED_SECONDS), "another worker has claimed it")
        if row.body_sha256 != _digest(context):
            return Reject("a message with the same id, but another body, has been handled already")
        if row.unconfirmed:
            context.enlist_again(row.unconfirmed)
            context.on_confirmed = partial(inbox_database.confirmed, self._database.url, key)
        return AlreadyHandled()

    def _key(self, context: Context) -> Key | None:
        """Whose row the message has; None when it has no id."""
        if context.id is not None:
            return Key(context.consumer, context.id.replace("\x00", "\\x00"))  # PostgreSQL has no texts with a NUL
        if not self._has_said:
            self._has_said = True
            log.warning(
                "%s: a message of type %s has no id; such are handled as often as they come",
                context.consumer,
                context.type,
            )
        return None

    def _enlisted(self, contexts: Sequence[Context]) -> dict[Key, inbox_rows.Enlisted]:
        """What the handlers of these published; it will be known when the broker has it."""
        found = {}
        for context in contexts:
            key = self._key(context)
            if key is not None and (enlisted := context.enlisted()):
                found[key] = [message[1:] for message in enlisted]
                context.on_confirmed = partial(inbox_database.confirmed, self._database.url, key)
        return found

    def _keys(self, contexts: Sequence[Context]) -> list[Key]:
        return [key for context in contexts if (key := self._key(context)) is not None]


class _Transactional(Inbox):
    """The handler writes in the transaction of its row."""

    def _around(self, call: Call) -> Call:
        def run(messages: list[Any], contexts: list[Context]) -> Verdicts:
            connection, (_, verdicts) = self._database.begin(partial(self._take, contexts, None))
            with connection:
                fresh = _Fresh(messages, contexts, verdicts)
                if fresh.contexts:
                    with _HandlersSession(connection) as session:
                        fresh.lend(session)
                        fresh.over(call(fresh.messages, fresh.contexts))
                        session.flush()
                        self._record(fresh, connection)
                        connection.commit()
            return verdicts

        return run

    def _around_async(self, call: Call) -> Call:
        from sqlalchemy.ext.asyncio import AsyncSession

        async def run(messages: list[Any], contexts: list[Context]) -> Verdicts:
            connection, (_, verdicts) = await self._database.begin_async(partial(self._take, contexts, None))
            async with aclosing(connection):
                fresh = _Fresh(messages, contexts, verdicts)
                if fresh.contexts:
                    async with AsyncSession(connection, sync_session_class=_HandlersSession) as session:
                        fresh.lend(session)
                        fresh.over(await call(fresh.messages, fresh.contexts))
                        await session.flush()
                        await connection.run_sync(partial(self._record, fresh))
                        await connection.commit()
            return verdicts

        return run

    def _record(self, fresh: _Fresh, connection: Connection) -> None:
        """The last that the transaction does: keep what is to be published after it, forget what failed."""
        for key, enlisted in self._enlisted(fresh.handled).items():
            inbox_rows.note_unconfirmed(connection, key, enlisted)
        inbox_rows.forget(connection, self._keys(fresh.failed))


class _Claiming(Inbox):
    """The row is committed before the handler runs, and marked afterwards."""

    def __init__(self, database_url: str | None, keep: timedelta, expires: timedelta) -> None:
        super().__init__(database_url, keep)
        self._expires = expires

    def _around(self, call: Call) -> Call:
        def run(messages: list[Any], contexts: list[Context]) -> Verdicts:
            until, verdicts = self._database.write(partial(self._take, contexts, self._expires))
            fresh = _Fresh(messages, contexts, verdicts)
            if fresh.contexts:
                try:
                    fresh.over(call(fresh.messages, fresh.contexts))
                except BaseException:
                    with suppress(Park):  # the claim then ends by itself
                        self._database.write(partial(self._release, fresh.contexts, until))
                    raise
                self._database.write(partial(self._conclude, fresh, until))
            return verdicts

        return run

    def _around_async(self, call: Call) -> Call:
        async def run(messages: list[Any], contexts: list[Context]) -> Verdicts:
            until, verdicts = await self._database.write_async(partial(self._take, contexts, self._expires))
            fresh = _Fresh(messages, contexts, verdicts)
            if fresh.contexts:
                try:
                    fresh.over(await call(fresh.messages, fresh.contexts))
                except BaseException:
                    with suppress(Park):
                        await self._database.write_async(partial(self._release, fresh.contexts, until))
                    raise
                await self._database.write_async(partial(self._conclude, fresh, until))
            return verdicts

        return run

    def _conclude(self, fresh: _Fresh, until: datetime | None, connection: Connection) -> None:
        enlisted = self._enlisted(fresh.handled)
        for key in self._keys(fresh.handled):
            inbox_rows.finish(connection, key, enlisted.get(key))
        self._release(fresh.failed, until, connection)

    def _release(self, contexts: Sequence[Context], until: datetime | None, connection: Connection) -> None:
        if until is not None:
            inbox_rows.forget(connection, self._keys(contexts), until)


class _Fresh:
    """Those of some messages that are to be handled, and what comes of them."""

    def __init__(self, messages: list[Any], contexts: list[Context], verdicts: Verdicts) -> None:
        self._verdicts = verdicts
        self._places = [place for place, verdict in enumerate(verdicts) if verdict is None]
        self.messages = [messages[place] for place in self._places]
        self.contexts = [contexts[place] for place in self._places]

    def lend(self, session: Any) -> None:
        for context in self.contexts:
            context.lend(session)

    def over(self, results: Verdicts | None) -> None:
        """The handler returned this: None for all of them, or None or an exception for each."""
        if results is not None:
            for place, result in zip(self._places, results, strict=True):
                self._verdicts[place] = result

    @property
    def handled(self) -> list[Context]:
        return self._that(lambda verdict: verdict is None)

    @property
    def failed(self) -> list[Context]:
        return self._that(lambda verdict: verdict is not None)

    def _that(self, chosen: Callable[[BaseException | None], bool]) -> list[Context]:
        of_each = zip(self._places, self.contexts, strict=True)
        return [context for place, context in of_each if chosen(self._verdicts[place])]


class _HandlersSession(Session):
    """Commits what was flushed no sooner than the inbox does, and undoes nothing behind its back."""

    def rollback(self) -> None:
        raise AcklineError(
            "The transaction is the inbox's: raise to undo all of it, or put what may fail into session.begin_nested()."
        )


def _digest(context: Context) -> bytes:
    return hashlib.sha256(context.raw).digest()


def _batch(call: Call) -> Call:
    """A handler of one message, as one of a list."""

    def run(messages: list[Any], contexts: list[Context]) -> None:
        call(messages[0], contexts[0])

    return run


def _batch_async(call: Call) -> Call:
    async def run(messages: list[Any], contexts: list[Context]) -> None:
        await call(messages[0], contexts[0])

    return run


def _single(run: Call) -> Call:
    """The way back: from lists of one to the message."""

    def call(message: Any, context: Context) -> None:
        _raise(run([message], [context])[0])

    return call


def _single_async(run: Call) -> Call:
    async def call(message: Any, context: Context) -> None:
        _raise((await run([message], [context]))[0])

    return call


def _raise(verdict: BaseException | None) -> None:
    """A duplicate is no failure: middleware is to see none."""
    if verdict is not None and not isinstance(verdict, AlreadyHandled):
        raise verdict
