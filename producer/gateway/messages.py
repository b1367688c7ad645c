"""One message in. 202 means that it is durable: RabbitMQ has it, or the outbox.

The contract is checked here, so what gets in by this door fits its type; what a contract does not accept is refused,
with the fields that are wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ValidationError

from ackline.infra import database
from ackline.infra.database import DatabaseUnavailable
from ackline.infra.properties import Properties
from ackline.infra.wire import TRACK, uuid7
from ackline.producer import callbacks, outbox
from ackline.producer.envelope import Entry
from ackline.producer.errors import InvalidMessage
from ackline.producer.gateway import parameters
from ackline.producer.gateway.acceptance import State
from ackline.producer.gateway.parameters import IDEMPOTENCY_KEY, OPTIONS, TRAVELLING, Options
from ackline.producer.gateway.problems import Refusal, faults
from ackline.producer.gateway.service import Service, service
from ackline.producer.message import contracts, encode, unknown
from ackline.producer.stamp import Stamp

log = logging.getLogger(__name__)

router = APIRouter()

#: Says that an answer was given before, to an equal request.
REPLAYED = "Idempotency-Replayed"


class Accepted(BaseModel):
    """The message is durable.

    state: `waiting` (RabbitMQ has it) or `accepted` (the outbox has it: it is due later, or the broker is away).
    status_url: where its state is, for a message that is tracked or due later; a path, and itself the permission to
    look.
    """

    id: str
    type: str
    state: State
    status_url: str | None


_DOCUMENTED: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {}}}},
    "parameters": [
        {"name": "type", "in": "path", "required": True, "schema": {"type": "string"}},
        *OPTIONS,
        IDEMPOTENCY_KEY,
        *TRAVELLING,
    ],
}


@router.post(
    "/v1/messages/{type}",
    status_code=202,
    response_model=Accepted,
    summary="Publish one message",
    openapi_extra=_DOCUMENTED,
)
async def publish(request: Request) -> Response:
    """Publish the body as a message of the type in the path, and answer when it is durable."""
    served = service(request)
    caller = served.keys.caller(request)
    name: str = request.path_params["type"]
    caller.require(name)
    model = contracts().get(name)
    if model is None:
        raise Refusal(HTTPStatus.NOT_FOUND, unknown(name))
    options = parameters.options(request, served.settings)
    travelling = parameters.travelling(request)
    body = await parameters.body(request, served.settings.max_body_bytes, "ACKLINE_MAX_BODY_BYTES")
    try:
        message = model.model_validate_json(body)
    except ValidationError as error:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"The body is no {name}.", faults(error)) from None
    except Exception as error:
        raise broken_contract(name, error) from None

    async def work(message_id: str, again: bool = False) -> dict[str, Any]:
        entry = entry_of(served, message, message_id, travelling, options)
        if again and entry.due_at is not None and await asyncio.to_thread(_is_stored, served, entry):
            return accepted(served, entry, State.ACCEPTED, tracked=True)  # a second row would be another time
        if options.callback_url is not None:
            return await _owing_a_call(served, entry, options.callback_url)
        tracked = is_tracked(served.stamps.of(message), options)
        return accepted(served, entry, await served.acceptance.accept(entry), tracked=tracked)

    key = request.headers.get("idempotency-key")
    if key is None:
        return answer(await work(uuid7()))
    # Not the trace context, of which each try has another.
    asked = repr((name, request.scope["query_string"], travelling.get("correlation_id"))).encode() + body
    return answer(*await served.idempotency.once(caller.name, key, asked, work))


def broken_contract(name: str, error: Exception) -> Refusal:
    """The refusal of a payload on which the contract's own code failed: it did not accept it."""
    log.error("a validator of %s failed", name, exc_info=error)
    return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"The body is no {name}: its contract failed on it.")


def _is_stored(served: Service, entry: Entry) -> bool:
    """Whether the outbox has it already. In a thread."""
    with database.reading(served.engine) as connection:
        return outbox.find(connection, entry.message_id) is not None


def entry_of(
    served: Service, message: BaseModel, message_id: str, travelling: Mapping[str, str], options: Options
) -> Entry:
    """The message as it will be sent. Raises `Refusal`.

    travelling: what of the request travels with it, as `parameters.travelling` gives it.
    """
    stamp = served.stamps.of(message)
    headers: dict[str, Any] = {name: value for name, value in travelling.items() if name != "correlation_id"}
    if is_tracked(stamp, options):
        headers[TRACK] = True
    try:
        headers |= stamp.key_headers(message)
        properties = stamp.properties(message_id, travelling.get("correlation_id"), headers)
        return Entry(message_id, stamp.type, Properties.from_wire(properties), encode(message), options.due_at)
    except InvalidMessage as error:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None


def is_tracked(stamp: Stamp, options: Options) -> bool:
    """Whether the deliveries of a message are accounted for by id.

    Those of a scheduled one always are: it has a status while it waits, and so must have one afterwards.
    """
    if options.callback_url is not None or options.due_at is not None:
        return True
    return stamp.track if options.track is None else options.track


def accepted(served: Service, entry: Entry, state: State, *, tracked: bool) -> dict[str, Any]:
    """`Accepted`, as JSON."""
    has_status = tracked or entry.due_at is not None
    status_url = served.signer.status_url(entry.message_id, entry.type) if has_status else None
    return {"id": entry.message_id, "type": entry.type, "state": state, "status_url": status_url}


def answer(content: dict[str, Any], repeated: bool = False, status: int = 202) -> Response:
    """*content* as a response. repeated: it was given before, to an equal request."""
    headers = {REPLAYED: "true"} if repeated else None
    return Response(json.dumps(content), status, headers=headers, media_type="application/json")


async def _owing_a_call(served: Service, entry: Entry, url: str) -> dict[str, Any]:
    """Accept a message of whose end somebody is to be told."""

    def owe() -> None:
        with database.writing(served.engine) as connection:
            callbacks.owe(connection, entry.message_id, entry.type, url)

    def owe_nothing() -> None:
        with database.writing(served.engine) as connection:
            callbacks.owe_nothing(connection, entry.message_id)

    await asyncio.to_thread(owe)
    try:
        state = await served.acceptance.accept(entry)
    except Refusal:
        with contextlib.suppress(
            DatabaseUnavailable
        ):  # then it is given up in the end: nothing is known of the message
            await asyncio.to_thread(owe_nothing)
        raise
    return accepted(served, entry, state, tracked=True)
