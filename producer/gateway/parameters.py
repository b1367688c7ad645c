"""What a request asks for: its body, its parameters, and what of its headers travels with the message."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from fastapi import Request
from starlette.requests import ClientDisconnect

from ackline.infra.durations import MAX_DELAY, seconds
from ackline.infra.errors import ConfigurationError
from ackline.infra.settings import Settings
from ackline.infra.wire import now
from ackline.producer import outbound
from ackline.producer.gateway.problems import Refusal

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[\x21-\x7e]{1,100})?\Z")
_MAX_TRACESTATE = 512
OPTION_NAMES = ("delay", "deliver_at", "track", "callback_url")
#: Bytes of a text in AMQP's properties.
SHORT_TEXT = 255


def _documented(where: str, name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": where, "description": description, "schema": {"type": "string"} | schema}


#: The parameters, for OpenAPI.
OPTIONS = (
    _documented("query", "delay", "How long to wait: seconds, or '30s', '5m', '2h', '1d'; ten years at most."),
    _documented("query", "deliver_at", "When, in ISO 8601 with a time zone; instead of delay.", format="date-time"),
    _documented("query", "track", "Account for each delivery of it by id; else as its contract says.", type="boolean"),
    _documented("query", "callback_url", "Called when the message is final; makes it tracked.", format="uri"),
)
IDEMPOTENCY_KEY = _documented(
    "header",
    "Idempotency-Key",
    "The same key again gets the same answer, and makes no second message.",
    minLength=1,
    maxLength=255,
)
TRAVELLING = (
    _documented("header", "X-Correlation-Id", "Travels with the message.", maxLength=SHORT_TEXT),
    _documented("header", "traceparent", "W3C trace context, travels with the message; a malformed one is ignored."),
    _documented("header", "tracestate", "The same."),
)


class Options(NamedTuple):
    """What a caller asks for beside the payload."""

    due_at: datetime | None = None
    track: bool | None = None
    callback_url: str | None = None


def options(request: Request, settings: Settings, names: Sequence[str] = OPTION_NAMES) -> Options:
    """The query parameters of a publish, of which there are those of *names*. Raises `Refusal`."""
    if not request.scope["query_string"]:
        return Options()
    query = dict(parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True))
    strange = query.keys() - set(names)
    if strange:
        raise _wrong(min(strange)[:80], f"there is no such parameter; there are {', '.join(names)}")
    callback_url = query.get("callback_url")
    if callback_url is not None:
        try:
            outbound.check(callback_url, settings.callback_hosts)
        except outbound.NotAllowed as error:
            raise _wrong("callback_url", str(error)) from None
    return Options(_due_at(query.get("delay"), query.get("deliver_at")), _flag(query.get("track")), callback_url)


def _due_at(delay: str | None, deliver_at: str | None) -> datetime | None:
    """When a message is due; None: at once."""
    if delay is not None and deliver_at is not None:
        raise _wrong("deliver_at", "give this or delay, not both")
    if delay is not None:
        try:
            wait = seconds(delay)
        except ConfigurationError as error:
            raise _wrong("delay", str(error)) from None
        return now() + timedelta(seconds=wait) if wait else None
    if deliver_at is None:
        return None
    try:
        due = datetime.fromisoformat(deliver_at)
        if due.tzinfo is None:
            raise _wrong("deliver_at", "it needs a time zone, such as 2030-01-31T08:00:00Z")
        ahead = (due - now()).total_seconds()
    except (ValueError, OverflowError):
        raise _wrong("deliver_at", "write it as in 2030-01-31T08:00:00Z") from None
    if ahead > MAX_DELAY:
        raise _wrong("deliver_at", "it lies more than ten years ahead")
    return due.astimezone(UTC) if ahead > 0 else None


def _flag(value: str | None) -> bool | None:
    if value is None:
        return None
    if value.lower() not in ("true", "false", "1", "0"):
        raise _wrong("track", "it is true or false")
    return value.lower() in ("true", "1")


def _wrong(name: str, why: str) -> Refusal:
    return Refusal(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        f"The parameter {name} is wrong: {why.removesuffix('.')}.",
        [{"field": name, "message": why}],
    )


def content_type(request: Request) -> str:
    """The media type of the body, without its parameters; empty when the request does not say."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def body(request: Request, most: int, setting: str, more: Sequence[str] = ()) -> bytes:
    """The request's body, read no further than *most* bytes.

    It must say that it is JSON, or one of *more*: a web page may send a body without a type to any address, this
    machine's own included, but one that says JSON only where CORS permits it.
    """
    kind = content_type(request)
    if kind != "application/json" and not kind.endswith("+json") and kind not in more:
        wanted = " or ".join(["application/json", *more[:1]])
        named = kind or "without a content type"
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"The body must be {wanted}, not {named}.")
    parts: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > most:
                raise Refusal(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body has more than {most:,} bytes ({setting})."
                )
            parts.append(chunk)
    except ClientDisconnect:  # nobody reads this; but it is no failure of the gateway either
        raise Refusal(HTTPStatus.BAD_REQUEST, "The body was not sent to its end.") from None
    return b"".join(parts)


def travelling(request: Request) -> dict[str, str]:
    """What travels with every message of this request: `correlation_id`, and headers of the trace context."""
    found: dict[str, str] = {}
    correlation_id = request.headers.get("x-correlation-id")
    if correlation_id is not None:
        size = len(correlation_id.encode())
        if size > SHORT_TEXT:
            raise _wrong("X-Correlation-Id", f"it has {size} bytes; AMQP allows {SHORT_TEXT}")
        found["correlation_id"] = correlation_id
    traceparent = request.headers.get("traceparent")
    if traceparent is not None and _TRACEPARENT.match(traceparent):  # a malformed one is ignored, as W3C says
        found["traceparent"] = traceparent
        tracestate = request.headers.get("tracestate")
        if tracestate and len(tracestate) <= _MAX_TRACESTATE:
            found["tracestate"] = tracestate
    return found
