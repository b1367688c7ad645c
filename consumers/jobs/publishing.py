"""How a job is published: as a message is, through Ackline's own `Publisher`, with Celery's protocol 2 within.

| what | goes to, under the name of its queue |
| --- | --- |
| a new job | `ackline.messages`, or `ackline.tracked`; the worker parks it until its ETA |
| one that is not due within an hour | a row of the outbox, which the relay publishes when it is due |
| `apply_async(outbox=transaction)` | a row of the outbox in that transaction: it is published if that is committed |
| the job that runs now, once more: a retry | a tier `ackline.retry.*`; due at once, `ackline.return` |

So who publishes jobs needs to be allowed to write where everybody does, and a retry keeps in its headers what it has
been through (`ackline.infra.wire`). Each waits for its confirm. Whoever is forked has a connection of its own.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any

from celery import signals
from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu.serialization import dumps

from ackline.consumers.decision import Reject
from ackline.consumers.handling import nameable
from ackline.infra import wire
from ackline.infra.errors import ConfigurationError
from ackline.infra.names import MESSAGES, RETRY_TIERS, RETURN, tier_within
from ackline.infra.properties import PERSISTENT, Properties
from ackline.infra.settings import process_name, settings
from ackline.producer.envelope import Entry
from ackline.producer.errors import MessageTooLarge, PublishTimeout
from ackline.producer.publisher import TIMEOUT, Publisher
from ackline.producer.tracing import trace_headers

#: The broker of an app while none is configured: jobs can be declared, and shown, without one.
NOWHERE = "amqp://no-broker-is-configured"
#: Seconds ahead from which on a job waits in the outbox.
_FAR = RETRY_TIERS[-1][1]
#: Headers of ours that are for whoever publishes.
_PUBLISHERS = (wire.TRACK, wire.KEY, wire.SLOT)

_put: ContextVar[Callable[[Entry], None] | None] = ContextVar("put", default=None)


@contextmanager
def publishing_to(put: Callable[[Entry], None]) -> Iterator[None]:
    """Have *put* called with each job that is published in the block, a chain's and a group's too, and no more."""
    token = _put.set(put)
    try:
        yield
    finally:
        _put.reset(token)


class Sender:
    """Stands where Celery has its `send_task_message`: publishes a job, and returns when the broker has it."""

    def __init__(self, app: Any) -> None:
        self._app = app

    @cached_property
    def publisher(self) -> Publisher:
        """The publisher of this process; it begins anew in a forked child.

        Raises `ConfigurationError` when no broker is configured.
        """
        url = self._app.conf.broker_write_url
        found = settings()
        return Publisher(found.broker if url == NOWHERE else url, name="jobs publishes", app_id=found.service)

    def __call__(
        self,
        producer: Any,
        name: str,
        message: Any,
        *,
        queue: Any = None,
        routing_key: str | None = None,
        headers: Mapping[str, Any] | None = None,
        serializer: str | None = None,
        priority: int | None = None,
        confirm_timeout: float | None = None,
        outbox: Any = None,
        **_options: Any,
    ) -> None:
        """Publish *message*, a protocol 2 task. confirm_timeout: seconds to wait for the confirm.

        outbox: a transaction, as of `producer.outbox`: the job is a row of that database, which its relay publishes.

        Raises `PublishError`; `ConfigurationError` for another serializer than JSON; `kombu.exceptions.EncodeError` for
        arguments that JSON does not hold.
        """
        if serializer not in (None, "json"):
            raise ConfigurationError(
                f"The job {name} cannot be published as {serializer}: jobs are JSON, for anybody to read."
            )
        told, body = message.headers | dict(headers or {}), message.body
        target = self._queue(queue, routing_key)
        if signals.before_task_publish.receivers:
            signals.before_task_publish.send(
                sender=name, body=body, exchange=MESSAGES, routing_key=target, headers=told, properties={}
            )
        _, _, encoded = dumps(body, "json")
        payload = encoded.encode() if isinstance(encoded, str) else encoded
        put = _put.get()
        if put is not None:
            put(Entry(told["id"], target, self._new(name, told, priority), payload, self._due(told)))
        elif outbox is not None:
            self._put(outbox, target, told, self._new(name, told, priority), payload)
        else:
            self._send(target, name, told, payload, priority, TIMEOUT if confirm_timeout is None else confirm_timeout)
        if signals.after_task_publish.receivers:
            signals.after_task_publish.send(sender=name, body=body, headers=told, exchange=MESSAGES, routing_key=target)

    def _queue(self, queue: Any, routing_key: str | None) -> str:
        # A retry names the queue that it came from by the routing key; Celery's router adds the default queue to that.
        queues = self._app.amqp.queues
        if routing_key is not None and routing_key in queues:
            return routing_key
        if queue is None:
            return str(self._app.conf.task_default_queue)
        return str(queues[queue].name if isinstance(queue, str) else queue.name)

    def _send(
        self, queue: str, name: str, told: dict[str, Any], payload: bytes, priority: int | None, timeout: float
    ) -> None:
        current = self._app.current_worker_task
        left = self._seconds_left(told)
        if current is not None and current.request.id == told["id"]:
            told["submitted_at"] = vars(current.request).get("submitted_at")
            properties = _continued(current.request, queue, told["retries"], self._properties(name, told, priority))
            exchange = RETURN if left <= 0 else tier_within(left)
        else:
            properties = self._new(name, told, priority)
            if left > _FAR and current is None:
                self._schedule(queue, told, properties, payload)
                return
            exchange = wire.entrance(properties)
        future = self.publisher.send(exchange, queue, properties, payload, timeout=timeout)
        try:
            # The I/O thread fails the future at its deadline; the second is for an I/O thread that is itself held up.
            future.result(timeout + 1.0)
        except TimeoutError:
            raise PublishTimeout(
                "No confirm in time: this process did not get to look for it. The job may have arrived.", told["id"]
            ) from None

    def _due(self, told: Mapping[str, Any]) -> datetime | None:
        eta = told.get("eta")
        return maybe_make_aware(maybe_iso8601(eta), self._app.timezone) if eta else None

    def _seconds_left(self, told: Mapping[str, Any]) -> float:
        due = self._due(told)
        return 0.0 if due is None else (due - wire.now()).total_seconds()

    def _new(self, name: str, told: dict[str, Any], priority: int | None) -> Properties:
        """The properties of a job that is published for the first time."""
        told["submitted_at"] = wire.now().isoformat()
        track = bool(told.pop(wire.TRACK, getattr(self._app.tasks.get(name), "track", False)))
        return self._properties(name, told | ({wire.TRACK: True} if track else {}), priority)

    def _properties(self, name: str, told: Mapping[str, Any], priority: int | None) -> Properties:
        """Those of a job. Headers of ours that somebody hands on are left out, but for those that are a publisher's."""
        headers = {key: value for key, value in told.items() if not key.startswith("ackline-") or key in _PUBLISHERS}
        try:
            return Properties(
                content_type="application/json",
                content_encoding="utf-8",
                headers=trace_headers() | headers,
                delivery_mode=PERSISTENT,
                priority=priority,
                correlation_id=told["id"],
                message_id=told["id"],
                timestamp=int(time.time()),
                type=name,
                app_id=settings().service,
            )
        except (ValueError, TypeError, struct.error) as error:
            raise MessageTooLarge(f"The job {name} cannot be sent: {error}.", told["id"]) from None

    def _schedule(self, queue: str, told: Mapping[str, Any], properties: Properties, payload: bytes) -> None:
        # Only who does so needs a database, and what comes with one.
        from ackline.infra.database import opened, writing

        with opened(settings().database) as engine, writing(engine) as connection:
            self._put(connection, queue, told, properties, payload)

    def _put(
        self, transaction: Any, queue: str, told: Mapping[str, Any], properties: Properties, payload: bytes
    ) -> None:
        from ackline.producer import outbox

        outbox.put(transaction, [Entry(told["id"], queue, properties, payload, self._due(told))])


def _continued(request: Any, queue: str, retries: int, properties: Properties) -> Properties:
    """*properties* of the job that runs now, which is published once more: with what it has been through.

    Raises `Reject` when that would be a try more than it may have.
    """
    told = {name: value for name, value in vars(request).items() if name.startswith("ackline-")}
    info = request.delivery_info
    before = Properties(message_id=request.id, headers=told)
    trail = wire.trail(before, info["exchange"], info["routing_key"], consumer=queue)
    if retries > request.retries:
        error = nameable(sys.exc_info()[1] or RuntimeError("asked to be retried"))
        if trail.attempts is not None and trail.attempt >= trail.attempts:
            raise Reject(f"failed after the {trail.attempts} that it may have now: {type(error).__name__}: {error}")
        trail = trail.failed(wire.attempt_of(trail.attempt, process_name(), error))
        trail = replace(trail, attempt=trail.attempt + 1)
    return wire.republished(properties, trail)
