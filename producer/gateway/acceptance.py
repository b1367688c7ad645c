"""How a message becomes durable: confirmed by RabbitMQ, or committed to the outbox.

The usual way is straight to the broker. While that is away, blocks, or refuses for now, a message goes to the outbox
instead, from where the relay publishes it, and so does one whose confirm did not come in time, under the same id.
While a backlog waits there, new messages join it, so that the order of acceptance holds; the straight way opens again
when the broker answers *and* nothing is left in the outbox. For that to come about under steady traffic, requests are
held for the moment that the relay needs for the last few.

Everything here runs on the event loop, except the commits, which are batched in a thread: whoever comes while one is
being written shares the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Sequence
from enum import StrEnum
from http import HTTPStatus

from sqlalchemy import Engine

from ackline.infra import database
from ackline.infra.database import DatabaseUnavailable
from ackline.infra.wire import entrance
from ackline.producer import lease, outbox
from ackline.producer.errors import MessageTooLarge, NotPermitted, PublishError
from ackline.producer.gateway.problems import Refusal, unavailable
from ackline.producer.outbox import Entry
from ackline.producer.publisher import Publisher

log = logging.getLogger(__name__)

#: Seconds that a message may wait for its confirm before it goes to the outbox.
CONFIRM_SECONDS = 5.0
#: Seconds between looks whether the outbox has been emptied.
_LOOK_SECONDS = 0.1
#: With so few left in the outbox requests are held, this many seconds at most; then that is tried again after a while.
_FEW, _HOLD_SECONDS, _HOLD_AGAIN_SECONDS = 1000, 2.0, 5.0
#: Seconds between looks meanwhile.
_HOLD_LOOK_SECONDS = 0.02
#: Seconds that a request waits for its commit.
STORE_SECONDS = 30.0
#: Seconds that closing waits for a database that does not answer.
_CLOSE_SECONDS = 5.0
#: Messages of one commit at most.
_COMMIT_MOST = 1000


class State(StrEnum):
    """Where an accepted message is."""

    WAITING = "waiting"
    ACCEPTED = "accepted"


class Acceptance:
    """Makes messages durable, one gateway's all. Guarantees: what `accept` returned for is never lost."""

    def __init__(self, publisher: Publisher, engine: Engine, most: int) -> None:
        """most: messages in the outbox, above which no more are accepted."""
        #: Messages made durable since the start, by type and state.
        self.accepted: Counter[tuple[str, State]] = Counter()
        self._publisher = publisher
        self._engine = engine
        self._most = most
        self._diverting = False
        self._held: asyncio.Future[None] | None = None
        self._lacks_relay = False
        self._depth = 0
        self._stored = 0
        self._to_store: list[tuple[Entry, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def accept(self, entry: Entry) -> State:
        """Make *entry* durable. Raises `Refusal` when it cannot be: it was then not accepted."""
        if entry.due_at is None and await self._is_straight():
            try:
                await self._send(entry)
            except PublishError as error:
                self._unconfirmed(entry, error)
            else:
                self.accepted[entry.type, State.WAITING] += 1
                return State.WAITING
        await self._store(entry)
        return State.ACCEPTED

    async def accept_all(self, entries: Sequence[Entry]) -> list[State | Refusal]:
        """`accept` for each, in this order, and what became of each."""
        results: dict[int, State | Refusal] = {}
        if await self._is_straight():
            now = [index for index, entry in enumerate(entries) if entry.due_at is None]
            errors = await self._publish([entries[index] for index in now])
            for index, error in zip(now, errors, strict=True):
                try:
                    if error is None:
                        self.accepted[entries[index].type, State.WAITING] += 1
                        results[index] = State.WAITING
                    else:
                        self._unconfirmed(entries[index], error)
                except Refusal as refusal:
                    results[index] = refusal
        left = {
            index: asyncio.ensure_future(self._store(entry))
            for index, entry in enumerate(entries)
            if index not in results
        }
        for index, storing in left.items():
            try:
                await storing
                results[index] = State.ACCEPTED
            except Refusal as refusal:
                results[index] = refusal
        return [results[index] for index in range(len(entries))]

    async def cannot_store(self) -> str | None:
        """Why the outbox would not take a message now, in a sentence; None when it would."""
        try:
            await asyncio.to_thread(self._look)
        except DatabaseUnavailable as error:
            return str(error)
        return self._full()

    async def start(self) -> None:
        """Join what an earlier gateway, or another one, left waiting."""
        if await asyncio.to_thread(self._look):
            self._divert()

    async def close(self) -> None:
        """Finish what is being written, and stop looking."""
        if self._writer is not None:
            await asyncio.wait({self._writer}, timeout=_CLOSE_SECONDS)
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait({self._watcher}, timeout=_CLOSE_SECONDS)

    # --- straight to the broker ------------------------------------------------------------------------

    async def _is_straight(self) -> bool:
        """Whether a message may go straight to the broker now; waits while that is being decided."""
        if self._held is not None:
            await asyncio.shield(self._held)
        if self._diverting:
            return False
        if self._publisher.problem is None:
            return True
        self._divert()
        return False

    async def _publish(self, entries: Sequence[Entry]) -> list[PublishError | None]:
        """Publish all of them at once; what came instead of the confirm of each."""
        outcomes = await asyncio.gather(*map(self._send, entries), return_exceptions=True)
        return [_publish_error(outcome) for outcome in outcomes]

    def _send(self, entry: Entry) -> Awaitable[None]:
        exchange = entrance(entry.properties)
        return self._publisher.asend(exchange, entry.type, entry.properties, entry.payload, timeout=CONFIRM_SECONDS)

    def _unconfirmed(self, entry: Entry, error: PublishError) -> None:
        """The outbox takes it from here. Raises `Refusal` for what the broker will never take."""
        if isinstance(error, MessageTooLarge):
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from None
        if isinstance(error, NotPermitted):
            raise Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, str(error)) from None
        log.warning("%s goes to the outbox: %s", entry.message_id, error)
        self._divert()

    # --- by the outbox ---------------------------------------------------------------------------------

    async def _store(self, entry: Entry) -> None:
        if (full := self._full()) is not None:
            raise unavailable(f"{full} The message was not accepted.")
        done = asyncio.get_running_loop().create_future()
        self._to_store.append((entry, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        try:
            async with asyncio.timeout(STORE_SECONDS):
                await done
        except DatabaseUnavailable as error:
            raise unavailable(f"{error} The message may not have been accepted.") from None
        except TimeoutError:
            raise unavailable(
                f"The database has not answered for {STORE_SECONDS:g} s. The message may not have been accepted."
            ) from None

    def _full(self) -> str | None:
        waiting = self._depth + len(self._to_store)
        if waiting < self._most:
            return None
        return f"{waiting:,} messages wait in the outbox already, and ACKLINE_OUTBOX_MOST is {self._most:,}."

    async def _write(self) -> None:
        while self._to_store:
            batch, self._to_store = self._to_store[:_COMMIT_MOST], self._to_store[_COMMIT_MOST:]
            batch = [
                (entry, done) for entry, done in batch if not done.done()
            ]  # the others are not waited for any more
            error: Exception | None = None
            try:
                await asyncio.to_thread(self._commit, [entry for entry, _ in batch])
            except Exception as fault:
                error = fault
            else:
                waiting = sum(entry.due_at is None for entry, _ in batch)
                self._depth += waiting
                self._stored += waiting
                self.accepted.update((entry.type, State.ACCEPTED) for entry, _ in batch)
                if waiting:
                    self._divert()
            for _, done in batch:
                if done.done():  # its request was cancelled
                    continue
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)

    def _commit(self, entries: list[Entry]) -> None:
        with database.writing(self._engine) as connection:
            outbox.put(connection, entries)

    def _divert(self) -> None:
        """From now on everything goes to the outbox, until that is empty and the broker answers."""
        self._diverting = True
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """Open the straight way again when that can be."""
        pause = _LOOK_SECONDS
        while self._diverting:
            await asyncio.sleep(pause)
            pause = _LOOK_SECONDS
            try:
                backlogged = await asyncio.to_thread(self._look)
                if self._publisher.problem is None and await self._can_drain(backlogged):
                    await self._open()
                    pause = _HOLD_AGAIN_SECONDS
            except DatabaseUnavailable as error:
                log.warning("The outbox cannot be looked at: %s", error)
            except Exception:  # without it the gateway would go on by the outbox for ever
                log.exception("The outbox could not be looked at")
                pause = _HOLD_AGAIN_SECONDS

    async def _can_drain(self, backlogged: bool) -> bool:
        """Whether the outbox is empty, or will be in a moment."""
        if not backlogged:
            return True
        has_relay = await asyncio.to_thread(self._has_relay)
        if has_relay == self._lacks_relay:
            self._lacks_relay = not has_relay
            if has_relay:
                log.info("A relay publishes what waits in the outbox.")
            else:
                log.warning("%d messages wait in the outbox, and no relay is active: `ackline relay`.", self._depth)
        return has_relay and self._depth <= _FEW

    async def _open(self) -> None:
        """Hold requests until the outbox is empty, and open the straight way; not when that takes too long."""
        self._held = asyncio.get_running_loop().create_future()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HOLD_SECONDS):  # however long a look takes
                    while self._publisher.problem is None:
                        stored = self._stored
                        backlogged = await asyncio.to_thread(self._look)
                        # One whose confirm did not come may have been stored meanwhile, or be on its way there.
                        is_writing = self._writer is not None and not self._writer.done()
                        if not backlogged and not is_writing and stored == self._stored:
                            self._diverting = False
                            return
                        await asyncio.sleep(_HOLD_LOOK_SECONDS)
        finally:
            self._held.set_result(None)
            self._held = None

    def _look(self) -> bool:
        """Whether anything waits in the outbox to be published now. In a thread."""
        with database.reading(self._engine) as connection:
            self._depth = outbox.depth(connection)
            return outbox.is_backlogged(connection)

    def _has_relay(self) -> bool:
        """Whether somebody publishes what is in the outbox. In a thread."""
        with database.reading(self._engine) as connection:
            return lease.holder(connection, lease.RELAY) is not None


def _publish_error(outcome: BaseException | None) -> PublishError | None:
    if outcome is None or isinstance(outcome, PublishError):
        return outcome
    raise outcome
