"""One delivery through its handler, up to a value that says what is to be sent and what becomes of the original.

Nothing here touches the broker: the worker acts on the `Settlement`.

**What is reported** of a tracked message, on `ackline.outcomes`, where the reviewer makes a status of it:

| event | when | beside the delivery, the message's key, the attempt, the time and the worker |
| --- | --- | --- |
| `started` | a handler goes on for longer than most (see `ackline.consumers.runner`) | `error`: of the attempt before |
| `retried` | it failed, and waits in a retry tier | `error`, `due`: not before then |
| `progress` | the handler tells how far it is, once a second at most | `progress`, `progress_text`, `error` |
| `handled` | it succeeded, and all that it published is confirmed; of redriven messages as well | |
| `dead` | it goes to review | `error`: why |
"""

from __future__ import annotations

import json
import logging
import random
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import to_json

from ackline.consumers.consumer import Consumer
from ackline.consumers.context import Context
from ackline.consumers.decision import Ack, Failure, InvalidBody, Park, Reject, Retry, decide
from ackline.consumers.delivery import Delivery
from ackline.consumers.masking import Mask, mask_of, mask_of_body
from ackline.consumers.shape import shape_of
from ackline.consumers.stopping import NEVER, Stopping
from ackline.infra import wire
from ackline.infra.durations import written
from ackline.infra.names import DEAD, RETRY_TIERS, RETURN, retry_tier
from ackline.infra.properties import Properties

log = logging.getLogger(__name__)

#: Seconds by which a parked message may be early: a tier's clock and ours are not the same.
_EARLY = 0.5
#: Wrong fields that a reason names at most.
_MAX_FAULTS = 3


class Outgoing(NamedTuple):
    """Something to publish, with a confirm, before the original is acked."""

    exchange: str
    routing_key: str
    properties: Properties
    body: bytes


class Report(NamedTuple):
    """What the reviewer is to know: the routing key on `ackline.outcomes`, and the event as JSON."""

    routing_key: str
    event: bytes


@dataclass(frozen=True, slots=True)
class Settlement:
    """What becomes of a delivery: send all of *outgoing*, then *report*, then ack the original; or reject it, when
    *reject* is set. Each waits for the confirms of those before, so what is reported has happened.

    fallback: what to send instead when one of *outgoing* can never be sent. confirmed: called when all of *outgoing* is
    confirmed, on any thread.
    """

    outgoing: tuple[Outgoing, ...] = ()
    report: Report | None = None
    reject: bool = False
    fallback: Callable[[BaseException], Settlement] | None = None
    confirmed: Callable[[], None] | None = None


#: Nothing follows but the ack: what most deliveries come to.
HANDLED = Settlement()


#: Takes a delivery, and what makes the report of its progress.
Tell = Callable[[Delivery, Callable[[], Report]], None]


class Way(NamedTuple):
    """One consumer, as a worker runs it.

    worker: `host:pid` for the history. call: takes the message and its context, and raises what the handler raises; see
    `ackline.consumers.calling`. wants_context: whether anybody looks at the context; it is None otherwise.
    stopping: the signal that the worker stops. tell: takes what tracked messages' handlers tell of their progress.
    in_place: of an ordered consumer, whose deliveries are tried again where they are: seconds from their arrival, at
    most.
    """

    consumer: Consumer
    worker: str
    call: Callable[[Any, Any], Any]
    wants_context: bool
    stopping: Stopping = NEVER
    tell: Tell | None = None
    in_place: float | None = None


def handle(way: Way, delivery: Delivery) -> Settlement:
    """Run the handler on a delivery, and return what follows from it. Never raises."""
    trail = trail_of(way, delivery)
    if trail is not None and trail.due is not None and (early := park_until_due(way, delivery, trail, trail.due)):
        return early
    context = error = None
    try:
        message, context = read(way, delivery, trail)
        way.call(message, context)
    except BaseException as raised:  # a handler may raise SystemExit, too; none may end the worker
        error = raised
    return settle(way, delivery, trail, context, error)


async def ahandle(way: Way, delivery: Delivery) -> Settlement:
    """`handle` for a handler that is a coroutine function."""
    trail = trail_of(way, delivery)
    if trail is not None and trail.due is not None and (early := park_until_due(way, delivery, trail, trail.due)):
        return early
    context = error = None
    try:
        message, context = read(way, delivery, trail)
        await way.call(message, context)
    except BaseException as raised:
        error = raised
    return settle(way, delivery, trail, context, error)


def started(way: Way, delivery: Delivery, since: datetime) -> Report | None:
    """The report that a handler has run *since* then; None when nobody asks for this message."""
    trail = trail_of(way, delivery)
    if trail is None or not trail.track:
        return None
    return report_of("started", way.worker, delivery, trail, at=since, error=_last_error(trail))


def trail_of(way: Way, delivery: Delivery) -> wire.Trail | None:
    """What the delivery remembers of its way; None when that is nothing, as for most."""
    if delivery.exchange != RETURN and not delivery.properties.has_headers:
        return None
    return wire.trail(delivery.properties, delivery.exchange, delivery.routing_key, consumer=way.consumer.name)


def _whole_trail(way: Way, delivery: Delivery, trail: wire.Trail | None) -> wire.Trail:
    if trail is not None:
        return trail
    return wire.Trail(consumer=way.consumer.name, exchange=delivery.exchange, routing_key=delivery.routing_key)


def park_until_due(way: Way, delivery: Delivery, trail: wire.Trail, due: datetime) -> Settlement | None:
    """Back through a retry tier, when it is not due yet."""
    left = (due - wire.now()).total_seconds()
    return park(way, delivery, trail, left) if left > _EARLY else None


def _failing_for(trail: wire.Trail) -> float:
    """Seconds since the first failure, by the clocks of those who noted it and who asks."""
    try:
        first = datetime.fromisoformat(trail.first_failed_at or "")
        return max((wire.now() - first).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def park(way: Way, delivery: Delivery, trail: wire.Trail, delay: float) -> Settlement:
    """Back through a retry tier, without an attempt."""
    return settle_by_publishing(delivery, trail, retry_tier(delay)[0], way.consumer.name)


def settle(
    way: Way, delivery: Delivery, trail: wire.Trail | None, context: Context | None, error: BaseException | None
) -> Settlement:
    """What follows from a try that ended with *error*, or well."""
    if error is None and trail is None and (context is None or not context.has_enlisted):
        return HANDLED
    consumer = way.consumer
    trail = _whole_trail(way, delivery, trail)
    failure = None if error is None else Failure(nameable(error), trail.attempt, _failing_for(trail))
    decision = decide(failure, consumer.retry.at_most(trail.attempts), random.random())  # noqa: S311
    if way.in_place is not None and isinstance(decision, Retry) and failure is not None:
        decision = _while_in_place(way.in_place, delivery, failure, decision)
    if isinstance(decision, Ack):
        return _succeeded(way, delivery, trail, context)
    if isinstance(decision, Park):
        return park(way, delivery, trail, decision.delay)
    assert failure is not None  # noqa: S101
    mask = mask_for(way, delivery, trail)
    trail = replace(trail.failed(wire.attempt_of(trail.attempt, way.worker, failure.error, mask)), due=None)
    what = f"{wire.message_type(delivery.properties, trail.routing_key)} {wire.message_id(delivery.properties)}"
    if isinstance(decision, Retry):
        tier, waits = retry_tier(decision.delay)
        said = mask(repr(failure.error))
        log.warning("%s: %s failed, retry in %s: %s", consumer.name, what, tier.rsplit(".", 1)[-1], said)
        due = wire.due_in(decision.delay) if decision.delay > RETRY_TIERS[-1][1] else None
        report = None
        if trail.track:
            shown_due = due or wire.due_in(waits)
            report = report_of("retried", way.worker, delivery, trail, error=_last_error(trail), due=shown_due)
        trail = replace(trail, attempt=trail.attempt + 1, due=due)
        return settle_by_publishing(delivery, trail, tier, consumer.name, report=report)
    reason = mask(decision.reason)
    log.error("%s: %s goes to review: %s", consumer.name, what, reason)
    return _dead(way, delivery, trail, reason, failure.error, mask)


def mask_for(way: Way, delivery: Delivery, trail: wire.Trail) -> Mask:
    """What takes the message's secrets out of a text. The message is read again: few failures have any."""
    model = way.consumer.types.get(wire.message_type(delivery.properties, trail.routing_key))
    try:
        shape = None if model is None else shape_of(model)
        if model is None or shape is None:
            return str
        message = model.__pydantic_validator__.validate_json(delivery.body)
        return mask_of(message, list(shape.secrets(json.loads(delivery.body))))
    except Exception:  # as it was when it was to be handled; so nobody can tell which values are secret
        return mask_of_body(delivery.body)


def _while_in_place(most: float, delivery: Delivery, failure: Failure, decision: Retry) -> Retry | Reject:
    """*decision*, or a reason when the delivery would then have been held for longer than *most* seconds."""
    held = time.monotonic() - delivery.arrived + max(decision.delay, retry_tier(decision.delay)[1])
    if held <= most:
        return decision
    return Reject(
        f"given up after attempt {failure.attempt}, for the next one would be later than {written(most)} after the "
        f"delivery, and the broker wants an answer: {type(failure.error).__name__}: {failure.error}"
    )


def nameable(error: BaseException) -> BaseException:
    """*error*, or what stands for it when its own text cannot be had, which everything from here on asks for."""
    try:
        str(error), repr(error)
    except Exception as broken:
        said = f"{type(error).__name__}, which cannot say more: its text raises {type(broken).__name__}"
        return RuntimeError(said).with_traceback(error.__traceback__)
    return error


def read(way: Way, delivery: Delivery, trail: wire.Trail | None) -> tuple[Any, Context | None]:
    """What the handler gets, and its context if anybody wants one. Raises `InvalidBody` with a reason for a person."""
    consumer = way.consumer
    routing_key = delivery.routing_key if trail is None else trail.routing_key
    type_ = wire.message_type(delivery.properties, routing_key)
    message: Any = delivery.body
    if not consumer.takes_bytes:
        model = consumer.types.get(type_)
        if model is None:
            raise InvalidBody(_foreign_type(consumer, type_, routing_key))
        try:
            message = model.__pydantic_validator__.validate_json(message)
        except ValidationError as error:
            raise InvalidBody(_faults(type_, error)) from None
    if not way.wants_context:
        return message, None
    return message, Context(
        consumer=consumer.name,
        message_id=wire.message_id(delivery.properties),
        message_type=type_,
        attempt=1 if trail is None else trail.attempt,
        properties=delivery.properties,
        raw=delivery.body,
        stopping=way.stopping,
        tell=None if trail is None or not trail.track or way.tell is None else partial(_tell, way, delivery, trail),
    )


def _tell(way: Way, delivery: Delivery, trail: wire.Trail, done: float, text: str) -> None:
    assert way.tell is not None  # noqa: S101
    at, error = wire.now(), _last_error(trail)
    way.tell(
        delivery, partial(report_of, "progress", way.worker, delivery, trail, at=at, error=error, progress=(done, text))
    )


def _foreign_type(consumer: Consumer, type_: str, routing_key: str) -> str:
    takes = ", ".join(sorted(consumer.types))
    if routing_key in consumer.types:
        return f"its type says {type_!r}, but it was published as {routing_key!r}: {consumer.name} takes {takes}"
    return f"{consumer.name} does not take messages of type {type_!r}; it takes {takes}"


def _faults(type_: str, error: ValidationError) -> str:
    """What a body lacks to be a message of that type; values are left out."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    if faults[0]["type"] == "json_invalid":
        return f"the body is not JSON: {faults[0]['msg'].removeprefix('Invalid JSON: ')}"
    named = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in faults[:_MAX_FAULTS])
    more = f"; and {len(faults) - _MAX_FAULTS} more" if len(faults) > _MAX_FAULTS else ""
    return f"the body is no {type_}: {named}{more}"


def _succeeded(way: Way, delivery: Delivery, trail: wire.Trail, context: Context | None) -> Settlement:
    report = report_of("handled", way.worker, delivery, trail) if trail.track or trail.redrive is not None else None
    if context is None or not context.has_enlisted:
        return Settlement(report=report) if report is not None else HANDLED
    enlisted = tuple(Outgoing(*message) for message in context.enlisted())
    return Settlement(enlisted, report, fallback=partial(cannot_be_sent, way, delivery), confirmed=context.on_confirmed)


def cannot_be_sent(way: Way, delivery: Delivery, error: BaseException) -> Settlement:
    """What follows instead when a message that the handler published can never be sent."""
    trail = _whole_trail(way, delivery, trail_of(way, delivery))
    failed = trail.failed(wire.attempt_of(trail.attempt, way.worker, error))
    reason = f"the handler succeeded, but a message that it published cannot be sent: {error}"
    return _dead(way, delivery, failed, reason, error)


def report_of(
    event: str,
    worker: str,
    delivery: Delivery,
    trail: wire.Trail,
    *,
    at: datetime | None = None,
    error: str | None = None,
    due: datetime | None = None,
    progress: tuple[float, str] | None = None,
) -> Report:
    """The report of *event*: see the table above. worker: `host:pid`."""
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
    key = delivery.properties.headers.text(wire.KEY)
    if key is not None:
        told["key"] = key
    if error:
        told["error"] = error
    if due is not None:
        told["due"] = due.isoformat()
    if progress is not None:
        told["progress"], told["progress_text"] = progress
    return Report(f"{event}.{trail.consumer}", to_json(told))


def _last_error(trail: wire.Trail) -> str | None:
    return f"{trail.history[-1].error}: {trail.history[-1].message}" if trail.history else None


def _dead(
    way: Way, delivery: Delivery, trail: wire.Trail, reason: str, error: BaseException, mask: Mask = str
) -> Settlement:
    order = way.consumer.order
    if order is not None:
        key = delivery.properties.headers.text(wire.KEY)
        whose = order.by if key is None else f"{order.by} = {wire.cut(key, wire.MAX_KEY)}"
        reason = wire.cut(reason, wire.MAX_REASON // 2) + f" (ordered by {whose}: later messages of this key go on)"
    # The stack of an invalid body is ours, and says nothing about the message.
    told = None if isinstance(error, InvalidBody) else mask("".join(traceback.format_exception(error)))
    extra = said_of_dead(reason, told)
    report = report_of("dead", way.worker, delivery, trail, error=extra[wire.REASON]) if trail.track else None
    return settle_by_publishing(delivery, trail, DEAD, str(trail.consumer), extra, report)


def said_of_dead(reason: str, traceback: str | None) -> dict[str, str]:
    """The headers that say of a dead letter why, bounded."""
    extra = {wire.REASON: wire.cut(_printable(reason), wire.MAX_REASON)}
    if traceback is not None:
        extra[wire.TRACEBACK] = wire.cut_start(_printable(traceback), wire.MAX_TRACEBACK)
    return extra


def _printable(value: str) -> str:
    return value.replace("\x00", "\\x00")


def settle_by_publishing(
    delivery: Delivery,
    trail: wire.Trail,
    exchange: str,
    routing_key: str,
    extra: dict[str, Any] | None = None,
    report: Report | None = None,
) -> Settlement:
    """Publish the message of *delivery* there, with its *trail* and *extra* headers; then report, and ack."""
    properties = wire.republished(delivery.properties, trail, extra)
    if not wire.fits_into_a_frame(properties):
        log.error(
            "%s: the headers of %s leave no room for ours; rejected, to review by the broker",
            trail.consumer,
            wire.message_id(delivery.properties),
        )
        return Settlement(reject=True)
    return Settlement((Outgoing(exchange, routing_key, properties, delivery.body),), report)
