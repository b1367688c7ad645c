"""How many messages wait in a consumer's queues. Asks the broker, by declaring them passively: that needs no right."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from amqp.exceptions import NotFound
from kombu import Connection
from kombu.exceptions import OperationalError

from ackline.infra.link import BrokerRefused, BrokerUnreachable, explain, parameters
from ackline.infra.topology import connection_errors

#: Seconds to wait for an answer of the broker.
_ANSWER_SECONDS = 5
#: Seconds that RabbitMQ gives a quorum queue to tell its counts; of one that is slower it says that there is nothing
#: (`rabbit_quorum_queue:stat`). How often a queue is asked that may have been too slow.
_COUNTED_SECONDS, _COUNTED_TIMES = 0.25, 4
#: Seconds for which an answer serves.
_FRESH_SECONDS = 1.0
#: Bytes of a queue's name, which AMQP has no more of.
_MAX_NAME = 255


class Queues:
    """The queues on the broker at *url*; connects when it is first asked. For one thread."""

    def __init__(self, url: str | None) -> None:
        """url: None when no broker is configured; then it cannot be reached."""
        self._url = url
        self._connection: Connection | None = None
        self._known: dict[str, tuple[float, int | None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self.close()

    def depth(self, consumer: str) -> int | None:
        """How many messages wait for *consumer*, a second ago at most; None when it has no queue.

        Of an ordered consumer: in all its shards. Raises `BrokerUnreachable`, `BrokerRefused`.
        """
        at, depth = self._known.get(consumer, (0.0, None))
        if time.monotonic() - at > _FRESH_SECONDS:
            at, depth = self._known[consumer] = time.monotonic(), self._ask(consumer)
        return depth

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, consumer: str) -> int | None:
        if self._url is None:
            raise BrokerUnreachable("No broker is configured: set ACKLINE_AMQP_URL.")
        try:
            if self._connection is None:
                parameters(self._url, "queues")  # says clearly what is wrong with a URL
                ssl = urlsplit(self._url).scheme == "amqps"
                answers = {"read_timeout": _ANSWER_SECONDS, "write_timeout": _ANSWER_SECONDS}
                self._connection = Connection(
                    self._url, connect_timeout=_ANSWER_SECONDS, ssl=ssl, transport_options=answers
                )
                self._connection.connect()
            depth = self._waiting(self._connection, consumer)
            shard = 1
            while depth is None or shard > 1:
                found = self._waiting(self._connection, f"{consumer}.{shard}")
                if found is None:
                    break
                depth, shard = (depth or 0) + found, shard + 1
            return depth
        except (BrokerUnreachable, BrokerRefused):
            self.close()
            raise
        except (OperationalError, *connection_errors()) as error:
            self.close()
            raise explain(error.__cause__ or error, self._url) from None

    @staticmethod
    def _waiting(connection: Connection, queue: str) -> int | None:
        if len(queue.encode()) > _MAX_NAME:
            return None
        channel = connection.channel()
        try:
            for _ in range(_COUNTED_TIMES):
                began = time.monotonic()
                found = channel.queue_declare(queue, passive=True)
                if found.message_count or found.consumer_count or time.monotonic() - began < _COUNTED_SECONDS:
                    break
            return int(found.message_count)
        except NotFound:  # the broker has closed the channel
            return None
        finally:
            channel.close()
