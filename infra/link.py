"""One connection to RabbitMQ that keeps itself open, on an I/O thread of its own or on an asyncio loop.

The I/O thread runs pika's event loop and nothing else: never a handler, never a database, so heartbeats go out and
`connection.blocked` and `basic.cancel` are noticed whatever handlers do. Who owns a `Link` gets its callbacks on that
thread, and uses channels on that thread only (`Link.call` goes there). `ackline.infra.loops` has the choice of place.

Publishing and consuming take two links: an alarm on the broker blocks a connection that has published, acks included.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import pika
from pika.exceptions import (
    AMQPError,
    ConnectionClosedByBroker,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    StreamLostError,
)

from ackline.infra.connection import Connection
from ackline.infra.errors import AcklineError, ConfigurationError
from ackline.infra.loops import AsyncioLoop, Loop, ThreadLoop
from ackline.infra.wire import FRAME_MAX

log = logging.getLogger(__name__)

#: Seconds between heartbeats; a half-open connection is noticed within two of them.
HEARTBEAT = 15
#: Seconds before the first reconnect, and at most; doubled in between, with jitter so that roles spread out.
BACKOFF_FIRST, BACKOFF_MOST = 0.2, 5.0

#: pika reports each failed attempt at several levels with tracebacks; `Link` reports it once, in a sentence. And what
#: it finds critical harms nobody: RabbitMQ 4.3 may deliver on a channel that it has just closed.
logging.getLogger("pika").setLevel(logging.CRITICAL + 1)


class BrokerUnreachable(AcklineError):
    """RabbitMQ does not answer, or closed the connection."""


class BrokerRefused(AcklineError):
    """RabbitMQ answers and refuses: the password, the vhost, or a permission is wrong."""


def parameters(url: str, name: str) -> pika.URLParameters:
    """Connection parameters for *url*; *name* is what the management UI shows.

    Raises `ConfigurationError` when *url* is not an AMQP address.
    """
    parts = urlsplit(url)
    try:
        if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
            raise ValueError("it must read amqp://user:password@host:port/vhost")
        found = pika.URLParameters(url)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"ACKLINE_AMQP_URL cannot be used ({shown(url)}): {error}.") from None
    found.heartbeat = HEARTBEAT
    found.client_properties = {"connection_name": name}
    found.socket_timeout = found.stack_timeout = 10
    return found


def shown(url: str) -> str:
    """A URL without its password, for people to read."""
    try:
        parts = urlsplit(url)
        secret = parts.password
    except ValueError:
        return "a URL that cannot be read"
    return url.replace(f":{secret}@", ":…@", 1) if secret else url


def address(url: str) -> str:
    """`host:port` of an AMQP URL."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or (5671 if parts.scheme == 'amqps' else 5672)}"


def explain(error: BaseException, url: str) -> AcklineError:
    """What pika or the broker said of a connection, as a sentence that says what to do."""
    parts = urlsplit(url)
    where = address(url)
    cause = _root(error)
    if isinstance(cause, ProbableAuthenticationError) or "ACCESS_REFUSED - Login" in str(cause):
        return BrokerRefused(
            f"RabbitMQ at {where} refused the user {unquote(parts.username or 'guest')!r}: "
            "wrong user or password in ACKLINE_AMQP_URL."
        )
    if (
        isinstance(cause, ProbableAccessDeniedError)
        or (isinstance(cause, ConnectionClosedByBroker) and cause.reply_code in (403, 530))
        or "NOT_ALLOWED" in str(cause)
    ):
        vhost = unquote(parts.path[1:]) or "/"
        return BrokerRefused(
            f"RabbitMQ at {where} refused the vhost {vhost!r} to user {unquote(parts.username or 'guest')!r}: "
            "create the vhost, or give the user permissions on it."
        )
    if isinstance(cause, ConnectionClosedByBroker):
        return BrokerUnreachable(f"RabbitMQ at {where} closed the connection: {cause.reply_text}.")
    if isinstance(cause, StreamLostError | ConnectionResetError):
        return BrokerUnreachable(f"The connection to RabbitMQ at {where} was lost.")
    if isinstance(cause, ConnectionRefusedError):
        return BrokerUnreachable(f"Nothing answers at {where}: is RabbitMQ running there?")
    if isinstance(cause, OSError) and cause.strerror:
        return BrokerUnreachable(f"RabbitMQ at {where} cannot be reached: {cause.strerror}.")
    return BrokerUnreachable(f"RabbitMQ at {where} cannot be reached: {str(cause) or type(cause).__name__}.")


def _root(error: BaseException) -> BaseException:
    """The innermost error: pika wraps the one that matters in its workflow's own."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner: Any = getattr(error, "exception", None) or (getattr(error, "exceptions", None) or [None])[-1]
        inner = inner or next((a for a in reversed(error.args) if isinstance(a, BaseException)), None)
        inner = inner or (error.__cause__ if isinstance(error, AMQPError) else None)
        if inner is None:
            return error
        error = inner
    return error


class Link:
    """A connection that reconnects by itself until it is stopped. Thread-safe but for what says otherwise.

    on_up(connection): called on the loop when the connection is open; open channels on it there.
    on_down(reason): called on the loop when an open connection is lost; its channels and delivery tags are void.
    on_refused(reason): called on the loop when the broker refuses the user, the password or the vhost.
    on_asyncio: runs on the asyncio loop that runs now, instead of an I/O thread.
    heartbeat: seconds between heartbeats; both sides notice within two of them that the other is gone.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        on_up: Callable[[Any], None],
        on_down: Callable[[AcklineError], None] = lambda reason: None,
        on_refused: Callable[[AcklineError], None] = lambda reason: None,
        on_asyncio: bool = False,
        heartbeat: int = HEARTBEAT,
    ) -> None:
        self.name = name
        self.url = url
        self._parameters = parameters(url, name)
        self._parameters.heartbeat = heartbeat
        self._on_up = on_up
        self._on_down = on_down
        self._on_refused = on_refused
        self._loop: Loop = AsyncioLoop() if on_asyncio else ThreadLoop(name)
        self._stopping = False
        self._backoff = BACKOFF_FIRST
        self._connection: Connection | None = None
        #: What has been said in the log since the connection was last open: each kind of reason once.
        self._told: set[type[AcklineError]] = set()
        self._changed = threading.Condition()
        #: Why the connection is not open; None while it is.
        self.error: AcklineError | None = BrokerUnreachable(f"RabbitMQ at {address(url)} has not answered yet.")
        #: Why the broker blocks publishing (a memory or disk alarm); None while it does not.
        self.blocked: str | None = None
        #: How often an open connection was lost.
        self.losses = 0
        #: Bytes of a frame that the broker takes; a larger one closes the connection.
        self.frame_max = FRAME_MAX

    # --- from any thread -------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._loop.start(self._connect, lambda: self.drop("after an internal error"), self._abandon)

    def wait_up(self, timeout: float) -> None:
        """Wait until the connection is open. Not on the loop.

        Raises `BrokerRefused` at once when the broker refuses it, `BrokerUnreachable` after *timeout* seconds.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while self.error is not None:
                left = deadline - time.monotonic()
                if left <= 0 or isinstance(self.error, BrokerRefused):
                    raise self.error
                self._changed.wait(left)

    @property
    def is_up(self) -> bool:
        """Whether the connection is open."""
        return self.error is None

    def call(self, function: Callable[[], None]) -> None:
        """Have *function* run on the loop soon. Nothing happens after `stop`."""
        self._loop.call(function)

    def stop(self, timeout: float = 5.0) -> None:
        """Close the connection for good, within *timeout* seconds or so; at once, and unasked, on its own loop."""
        if self._loop.here:
            self._abandon()
            return
        self.call(self._stop)
        if not self._loop.join(timeout):  # a broker that does not answer our close
            self.call(self._abandon)
            self._loop.join(1.0)

    async def astop(self, timeout: float = 5.0) -> None:
        """`stop` for asyncio: awaits the end."""
        self.call(self._stop)
        if not await self._loop.ended(timeout):
            self.call(self._abandon)
            await self._loop.ended(1.0)

    # --- on the loop -----------------------------------------------------------------------------------

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Have *function* run on the loop in *seconds*. Call on the loop only."""
        self._loop.later(seconds, function)

    def drop(self, reason: str) -> None:
        """Give up the present connection and make another. Call on the loop only."""
        log.warning("%s: %s; connecting again", self.name, reason)
        if self._connection is not None:
            self._connection.drop(AMQPError(reason))

    def _stop(self) -> None:
        self._stopping = True
        connection = self._connection
        if connection is None or connection.is_closed:
            self._loop.end()
        elif self.blocked:  # the broker reads nothing from it, so it would not see our close either
            self._abandon()
        elif not connection.is_closing:
            connection.close()

    def _abandon(self) -> None:
        """Close the socket without a word, for good."""
        self._stopping = True
        if self._connection is None or self._connection.is_closed:
            self._loop.end()
        else:
            self._connection.drop(AMQPError("closed by us"))

    def _connect(self) -> None:
        if self._stopping:
            return
        self._connection = self._loop.connection(
            self._parameters,
            on_open_callback=self._opened,
            on_open_error_callback=self._failed,
            on_close_callback=self._lost,
        )
        self._connection.add_on_connection_blocked_callback(self._alarm_on)
        self._connection.add_on_connection_unblocked_callback(self._alarm_off)

    def _opened(self, connection: Connection) -> None:
        if self._stopping:
            connection.close()
            return
        self._backoff = BACKOFF_FIRST
        self._told.clear()
        self.blocked = None
        self.frame_max = connection.params.frame_max
        log.info("%s: connected", self.name)
        self._say(None)
        self._on_up(connection)

    def _failed(self, connection: Connection, error: BaseException) -> None:
        reason = explain(error, self.url)
        if isinstance(reason, BrokerRefused):
            self._on_refused(reason)
        self._again(reason)

    def _lost(self, connection: Connection, error: BaseException) -> None:
        if connection is not self._connection:
            return
        self.losses += 1
        reason = explain(error, self.url)
        self.error = reason
        self._on_down(reason)
        self._again(reason)

    def _again(self, reason: AcklineError) -> None:
        if self._stopping:
            self._say(reason)
            self._loop.end()
            return
        if type(reason) not in self._told:  # a broker that was away may come back and refuse
            self._told.add(type(reason))
            awaited = "lets us in" if isinstance(reason, BrokerRefused) else "answers"
            log.warning("%s: %s Connecting again until it %s.", self.name, reason, awaited)
        self._say(reason)
        self.later(self._backoff * random.uniform(0.7, 1.3), self._connect)  # noqa: S311
        self._backoff = min(self._backoff * 2, BACKOFF_MOST)

    def _say(self, error: AcklineError | None) -> None:
        with self._changed:
            self.error = error
            self._changed.notify_all()

    def _alarm_on(self, connection: Connection, method: Any) -> None:
        reason = method.method.reason
        self.blocked = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        log.warning("%s: RabbitMQ blocks publishing: %s", self.name, self.blocked)

    def _alarm_off(self, connection: Connection, method: Any) -> None:
        log.info("%s: RabbitMQ takes messages again", self.name)
        self.blocked = None
