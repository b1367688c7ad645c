"""What a running worker is told from outside: that consumers are paused, and resumed.

Who pauses writes it into the database and says so on the fanout exchange `ackline.control`, where each worker has a
queue of its own (exclusive: it goes with the worker's connection). The database is the truth. A worker that has one
configured reads it before it takes its first message, whenever it is told that something has changed, and every minute
for the case that it was not told; so what is said on the exchange, in whatever order and by whomever, can make it look
and do no more. A worker without a database does what it is told, for as long as it runs.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple

from pika.channel import Channel
from pydantic import BaseModel, Field, ValidationError

from ackline.infra.connection import Connection
from ackline.infra.errors import AcklineError
from ackline.infra.link import Link
from ackline.infra.names import CONTROL
from ackline.infra.settings import Settings
from ackline.infra.wire import now

log = logging.getLogger(__name__)

#: Seconds between looks into the database without being told; and while it does not answer.
LOOK_SECONDS, AGAIN_SECONDS = 60.0, 5.0
#: Seconds between looks at least, however often it is told.
_CALM_SECONDS = 0.1
#: Seconds before a queue on the exchange is tried again.
_REOPEN_SECONDS = 5.0
#: Bytes of what is said at most; anything longer is not from here.
_MAX_BYTES = 1024 * 1024


class Pause(NamedTuple):
    """That a consumer is paused: since when, by whom, and why (empty: not said)."""

    at: datetime
    actor: str
    reason: str


class Change(BaseModel):
    """What is said on `ackline.control`, as JSON."""

    event: Literal["paused", "resumed"]
    consumers: Annotated[list[str], Field(max_length=10_000)]
    actor: str
    reason: str = ""


def reader(configured: Settings) -> Callable[[], Mapping[str, Pause]] | None:
    """What reads the paused consumers from the configured database; None, after saying so, where there is none.

    Raises `ConfigurationError` when the database's URL cannot be used.
    """
    if not configured.has_database:
        log.warning("no database is configured (ACKLINE_DATABASE_URL): of pauses only those made from now on are known")
        return None
    try:
        from ackline.consumers import pauses  # it brings SQLAlchemy, which a worker without a database does not need
    except ModuleNotFoundError as error:
        log.warning("of pauses only those made from now on are known: %s. pip install 'ackline[database]'", error)
        return None
    return pauses.reader(configured.database)


class Control:
    """Keeps the consumers of one worker paused, or not, as they are to be."""

    def __init__(
        self,
        link: Link,
        consumers: Iterable[str],
        *,
        worker: str,
        limit: Callable[[str, int | None], None],
        read: Callable[[], Mapping[str, Pause]] | None,
    ) -> None:
        """link: the connection to listen on. worker: its name, for that of the queue.

        limit: bounds what a consumer of that name holds unacked: 0, it takes nothing; None, no bound. read: which
        consumers are paused, from the database; None without one. It may raise, and take its time.
        """
        self._link = link
        self._consumers = tuple(consumers)
        self._worker = worker
        self._limit = limit
        self._read = read
        self._paused: dict[str, Pause] = {}
        self._channel: Channel | None = None
        self._deaf = False
        self._blind = False
        self._woken = threading.Event()
        self._looked = threading.Event()
        self._stopping = threading.Event()

    # --- from the worker's main thread -----------------------------------------------------------------

    def start(self, timeout: float = 15.0) -> None:
        """Pause what is to be paused, and go on looking. Returns when that is known, or after *timeout* seconds.

        Where the database does not answer, the worker says so, and takes messages meanwhile.
        """
        if self._read is not None:
            threading.Thread(target=self._watch, args=(self._read,), name="control", daemon=True).start()
            self._looked.wait(timeout)

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        self._woken.set()

    # --- on a thread of its own ------------------------------------------------------------------------

    def _watch(self, read: Callable[[], Mapping[str, Pause]]) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            self._look(read)
            self._looked.set()
            self._stopping.wait(_CALM_SECONDS)
            self._woken.wait(AGAIN_SECONDS if self._blind else LOOK_SECONDS)

    def _look(self, read: Callable[[], Mapping[str, Pause]]) -> None:
        try:
            paused = read()
        except Exception as error:
            if not self._blind:
                log.error(
                    "it cannot be learned which consumers are paused, so they stay as they are; looking again every "
                    "%g s: %s",
                    AGAIN_SECONDS,
                    error,
                    exc_info=None if isinstance(error, AcklineError) else error,
                )
            self._blind = True
            return
        if self._blind:
            log.info("it is known again which consumers are paused")
        self._blind = False
        self._apply(paused)

    def _apply(self, paused: Mapping[str, Pause]) -> None:
        """Pause and resume what has changed."""
        for name in self._consumers:
            pause = paused.get(name)
            if pause is not None and name not in self._paused:
                self._limit(name, 0)
                since = pause.at.strftime("%Y-%m-%d %H:%M:%SZ")
                log.warning("%s: paused since %s by %r, who says %r", name, since, pause.actor, pause.reason)
            elif pause is None and name in self._paused:
                self._limit(name, None)
                log.info("%s: resumed", name)
        self._paused = {name: paused[name] for name in self._consumers if name in paused}

    # --- on the I/O thread -----------------------------------------------------------------------------

    def open(self, connection: Connection) -> None:
        """Listen on a new channel of *connection*."""
        if connection.is_open and self._channel is None:
            self._channel = connection.channel(on_open_callback=self._opened)
            self._channel.add_on_close_callback(self._closed)

    def lost(self) -> None:
        """The connection is gone, and the queue with it."""
        self._channel = None

    def _opened(self, channel: Channel) -> None:
        channel.add_on_cancel_callback(lambda _frame: channel.close())
        # A name that tells what it is for; the rest, since a lost connection may hold on to its queue for a while.
        queue = f"{CONTROL}.{self._worker}.{uuid.uuid4().hex[:8]}"
        channel.queue_declare(queue, exclusive=True, auto_delete=True, callback=_nothing)
        channel.queue_bind(queue, CONTROL, callback=_nothing)
        channel.basic_consume(queue, self._told, auto_ack=True, callback=self._listening)

    def _listening(self, _frame: Any) -> None:
        self._deaf = False
        self._woken.set()  # of what was said before, nothing was heard

    def _closed(self, channel: Channel, reason: Any) -> None:
        if channel is not self._channel:
            return
        self._channel = None
        connection = channel.connection
        if not connection.is_open:
            return
        if not self._deaf:
            log.warning("%s cannot be heard, so a pause is not noticed at once: %s", CONTROL, reason.reply_text)
        self._deaf = True
        self._link.later(_REOPEN_SECONDS, lambda: self.open(connection))

    def _told(self, _channel: Channel, _method: Any, _properties: Any, body: bytes) -> None:
        try:
            if len(body) > _MAX_BYTES:
                raise ValueError(f"{len(body)} bytes")
            change = Change.model_validate_json(body)
        except ValueError as error:
            what = f"{error.error_count()} errors" if isinstance(error, ValidationError) else error
            log.warning("what was said on %s is not from here, and ignored: %s", CONTROL, what)
            return
        if self._read is not None:
            self._woken.set()
            return
        told = dict.fromkeys(change.consumers, Pause(now(), change.actor, change.reason))
        if change.event == "paused":
            self._apply(told | self._paused)
        else:
            self._apply({name: pause for name, pause in self._paused.items() if name not in told})


def _nothing(_frame: Any) -> None:
    """pika sends a request without waiting for its answer unless it is given somebody to tell."""
