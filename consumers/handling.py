"""One delivery through its handler, up to a value that says what is to be sent and what becomes of the original.

Nothing here touches the broker: the worker acts on the `Settlement`.

**What is reported** of a tracked message, on `ackline.outcomes`, where the reviewer makes a status of it:

| event | when | beside the delivery, the attempt, the time and the worker |
| --- | --- | --- |
| `started` | a handler goes on for longer than most (see `running`) | `error`: of the attempt before |
| `retried` | it failed, and waits in a retry tier | `error`, `due`: not before then |
| `handled` | it succeeded, and all that it published is confirmed; of redriven messages as well | |
| `dead` | it goes to review | `error`: why |
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from ackline.consumers.consumer import Consumer
from ackline.consumers.context import Context
from ackline.consumers.decision import Ack, Failure, InvalidBody, Retry, decide
from ackline.infra import wire
from ackline.infra.names import DEAD, OUTCOMES, RETRY_TIERS, retry_tier
from ackline.infra.properties import PERSISTENT, Properties

log = logging.getLogger(__name__)

#: Seconds by which a parked message may be early: a tier's clock and ours are not the same.
_EARLY = 0.5
#: Wrong fields that a reason names at most.
_MAX_FAULTS = 3
#: Of every report: it needs no id of its own, and two of them go out for most tracked messages.
_REPORT_PROPERTIES = Properties(content_type=b"application/json", delivery_mode=PERSISTENT)


class Delivery(NamedTuple):
    """A message as the broker delivered it."""

    exchange: str
    routing_key: str
    properties: Properties
    body: bytes


class Outgoing(NamedTuple):
    """Something to publish, with a confirm, before the original is acked."""

    exchange: str
    routing_key: str
    properties: Properties
    body: bytes


@dataclass(frozen=True, slots=True)
class Settlement:
    """What becomes of a delivery: send all of *outgoing*, then *report*, then ack the original; or reject it, when
    *reject* is set. Each waits for the confirms of those before, so what is reported has happened.

    fallback: what to send instead when one of *outgoing* can never be sent.
    """

    outgoing: tuple[Outgoing, ...] = ()
    report: Outgoing | None = None
    reject: bool = False
    fallback: Callable[[BaseException], Settlement] | None = None


Call = Callable[[Consumer, BaseModel, Context], Any]
#: Watches a handler that runs inside it, and sends the report that it began when it goes on for long.
Running = Callable[[Callable[[], Outgoing]], AbstractContextManager[None]]


def handle(consumer: Consumer, delivery: Delivery, *, worker: str, call: Call, running: Running) -> Settlement:
    """Run the handler of *consumer* on a delivery and return what follows from it. Never raises.

    worker: `host:pid` for the history. call: runs the handler, and raises what it raises. running: entered around the
    handler of a tracked message.
    """
    trail = replace(wire.trail(delivery.properties, delivery.exchange, delivery.routing_key), consumer=consumer.name)
    if trail.due is not None:
        left = (trail.due - wire.now()).total_seconds()
        if left > _EARLY:
            return _settle_by_publishing(delivery, trail, retry_tier(left)[0], consumer.name)
        trail = replace(trail, due=None)
    context: Context | None = None
    failure: Failure | None = None
    try:
        message, context = _read(consumer, delivery, trail)
        if trail.track:
            with running(partial(_started, delivery, trail, worker, wire.now())):
                call(consumer, message, context)
        else:
            call(consumer, message, context)
    except BaseException as error:  # a handler may raise SystemExit, too; none may end the worker
        failure = Failure(_nameable(error), trail.attempt)
    decision = decide(failure, consumer.retry)
    if isinstance(decision, Ack):
        assert context is not None  # noqa: S101
        return _succeeded(delivery, trail, context, worker)
    assert failure is not None  # noqa: S101
    trail = trail.failed(wire.attempt_of(trail.attempt, worker, failure.error))
    what = f"{wire.message_type(delivery.properties, trail.routing_key)} {wire.message_id(delivery.properties)}"
    if isinstance(decision, Retry):
        tier, waits = retry_tier(decision.delay)
        log.warning("%s: %s failed, retry in %s: %r", consumer.name, what, tier.rsplit(".", 1)[-1], failure.error)
        due = wire.due_in(decision.delay) if decision.delay > RETRY_TIERS[-1][1] else None
        report = None
        if trail.track:
            report = _report(
                "retried", delivery, trail, worker, error=_last_error(trail), due=due or wire.due_in(waits)
            )
        trail = replace(trail, attempt=trail.attempt + 1, due=due)
        return _settle_by_publishing(delivery, trail, tier, consumer.name, report=report)
    log.error("%s: %s goes to review: %s", consumer.name, what, decision.reason)
    return _dead(delivery, trail, decision.reason, failure.error, worker)


def _nameable(error: BaseException) -> BaseException:
    """*error*, or what stands for it when its own text cannot be had, which everything from here on asks for."""
    try:
        str(error), repr(error)
    except Exception as broken:
        said = f"{type(error).__name__}, which cannot say more: its text raises {type(broken).__name__}"
        return RuntimeError(said).with_traceback(error.__traceback__)
    return error


def _read(consumer: Consumer, delivery: Delivery, trail: wire.Trail) -> tuple[BaseModel, Context]:
    """The message and its context. Raises `InvalidBody` with a reason for a person."""
    type_ = wire.message_type(delivery.properties, trail.routing_key)
    model = consumer.types.get(type_)
    if model is None:
        raise InvalidBody(_foreign_type(consumer, type_, trail.routing_key))
    try:
        message = model.model_validate_json(delivery.body)
    except ValidationError as error:
        raise InvalidBody(_faults(type_, error)) from None
    return message, Context(
        consumer=consumer.name,
        message_id=wire.message_id(delivery.properties),
        message_type=type_,
        attempt=trail.attempt,
        properties=delivery.properties,
    )


def _foreign_type(consumer: Consumer, type_: str, routing_key: str) -> str:
    takes = ", ".join(sorted(consumer.types))
    if routing_key in consumer.types:
        return f"its type says {type_!r}, but it was published as {routing_key!r}: {consumer.name} takes {takes}"
    return f"{consumer.name} does not take messages of type {type_!r}; it takes {takes}"


def _faults(type_: str, error: ValidationError) -> str:
    """What a body lacks to be a message of that type; values are left out, they may be secret."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    if faults[0]["type"] == "json_invalid":
        return f"the body is not JSON: {faults[0]['msg'].removeprefix('Invalid JSON: ')}"
    named = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in faults[:_MAX_FAULTS])
    more = f"; and {len(faults) - _MAX_FAULTS} more" if len(faults) > _MAX_FAULTS else ""
    return f"the body is no {type_}: {named}{more}"


def _succeeded(delivery: Delivery, trail: wire.Trail, context: Context, worker: str) -> Settlement:
    enlisted = tuple(Outgoing(*message) for message in context.enlisted())
    report = _report("handled", delivery, trail, worker) if trail.track or trail.redrive is not None else None

    def cannot_be_sent(error: BaseException) -> Settlement:
        failed = trail.failed(wire.attempt_of(trail.attempt, worker, error))
        reason = f"the handler succeeded, but a message that it published cannot be sent: {error}"
        return _dead(delivery, failed, reason, error, worker)

    return Settlement(enlisted, report, fallback=cannot_be_sent if enlisted else None)


def _report(
    event: str,
    delivery: Delivery,
    trail: wire.Trail,
    worker: str,
    *,
    at: datetime | None = None,
    error: str | None = None,
    due: datetime | None = None,
) -> Outgoing:
    told: dict[str, Any] = {
        "event": event,
        "message_id": wire.message_id(delivery.properties),
        "consumer": trail.consumer,
        "type": wire.message_type(delivery.properties, trail.routing_key),
        "attempt": trail.attempt,
        "at": (at or wire.now()).isoformat(),
        "worker": worker,
    }
    if trail.redrive is not None:
        told["redrive"] = trail.redrive
    if error:
        told["error"] = error
    if due is not None:
        told["due"] = due.isoformat()
    return Outgoing(OUTCOMES, f"{event}.{trail.consumer}", _REPORT_PROPERTIES, json.dumps(told).encode())


def _started(delivery: Delivery, trail: wire.Trail, worker: str, at: datetime) -> Outgoing:
    return _report("started", delivery, trail, worker, at=at, error=_last_error(trail))


def _last_error(trail: wire.Trail) -> str | None:
    return f"{trail.history[-1].error}: {trail.history[-1].message}" if trail.history else None


def _dead(delivery: Delivery, trail: wire.Trail, reason: str, error: BaseException, worker: str) -> Settlement:
    reason = wire.cut(_printable(reason), wire.MAX_REASON)
    extra = {wire.REASON: reason}
    if not isinstance(error, InvalidBody):  # its stack is ours, and says nothing about the message
        shown = "".join(traceback.format_exception(error))
        extra[wire.TRACEBACK] = wire.cut_start(_printable(shown), wire.MAX_TRACEBACK)
    report = _report("dead", delivery, trail, worker, error=reason) if trail.track else None
    return _settle_by_publishing(delivery, trail, DEAD, str(trail.consumer), extra, report)


def _printable(value: str) -> str:
    return value.replace("\x00", "\\x00")


def _settle_by_publishing(
    delivery: Delivery,
    trail: wire.Trail,
    exchange: str,
    routing_key: str,
    extra: dict[str, Any] | None = None,
    report: Outgoing | None = None,
) -> Settlement:
    properties = wire.republished(delivery.properties, trail, extra)
    if not wire.fits_into_a_frame(properties):
        log.error(
            "%s: the headers of %s leave no room for ours; rejected, to review by the broker",
            trail.consumer,
            wire.message_id(delivery.properties),
        )
        return Settlement(reject=True)
    return Settlement((Outgoing(exchange, routing_key, properties, delivery.body),), report)
