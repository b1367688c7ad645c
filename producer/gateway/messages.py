"""Messages in. 202 means that the message is durable.

The contract is checked here, so what gets in by this door fits its type; what a contract does not accept is refused,
with the fields that are wrong.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, ValidationError

from ackline.producer.errors import InvalidMessage, MessageTooLarge, NotPermitted, PublishError
from ackline.producer.gateway.problems import Refusal, faults, unavailable
from ackline.producer.gateway.service import Called, Served
from ackline.producer.message import contracts

router = APIRouter()

#: Seconds that a request waits for the broker's confirm before it is told that the outcome is unknown.
CONFIRM_SECONDS = 5.0


class Accepted(BaseModel):
    """The message is durable."""

    id: str
    type: str
    state: str = "waiting"


@router.post("/v1/messages/{type}", status_code=202, response_model=Accepted, summary="Publish one message")
async def publish(
    type: str,  # noqa: A002 - the name of the path parameter, which clients see
    request: Request,
    served: Served,
    caller: Called,
    x_correlation_id: Annotated[str | None, Header()] = None,
    traceparent: Annotated[str | None, Header()] = None,
) -> Accepted:
    """Publish the body as a message of the type in the path, and answer when RabbitMQ has confirmed it."""
    model = contracts().get(type)
    if model is None:
        known = ", ".join(sorted(contracts())) or "none"
        raise Refusal(HTTPStatus.NOT_FOUND, f"There is no message type {type!r}; this gateway has: {known}.")
    body = await _body(request, served.settings.max_body_bytes)
    try:
        message = model.model_validate_json(body)
    except ValidationError as error:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"The body is no {type}.", faults(error)) from None
    if served.publisher.problem is not None:
        raise unavailable(served.publisher.problem + " The message was not sent.")
    try:
        receipt = await served.publisher.apublish(
            message,
            correlation_id=x_correlation_id,
            headers={"traceparent": traceparent} if traceparent else None,
            timeout=CONFIRM_SECONDS,
        )
    except (MessageTooLarge, InvalidMessage) as error:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from None
    except NotPermitted as error:
        raise Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, str(error)) from None
    except PublishError as error:
        raise unavailable(str(error)) from None
    return Accepted(id=receipt.message_id, type=receipt.type)


async def _body(request: Request, most: int) -> bytes:
    """The request's body, read no further than *most* bytes."""
    # It must be said: a web page may send a body without a type to any address, this machine's own included, but one
    # that says JSON only where CORS permits it.
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        named = content_type or "without a content type"
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"The body must be application/json, not {named}.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body has more than {most:,} bytes (ACKLINE_MAX_BODY_BYTES)."
            )
    return bytes(body)
