"""`call.<service>`: a request to another service, made until it succeeds.

Each service has a message type, a consumer and so a queue of its own: one that is down holds up nobody's calls but its
own, can be paused by itself, and a gateway key (`--type call.billing`) says who may call what. Whoever publishes names
a path, never a host, and sends no secrets: address and headers are the application's.

What answers mean is in `ackline.consumers.handlers.http_request`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, create_model

from ackline.consumers import Breaker, Context, RetryPolicy, consumer, exponential
from ackline.consumers.handlers.http_request import SECONDS, Unavailable, checked_address, idempotency_key, request
from ackline.producer import message

#: RFC 3986: what may stand in a path and a query.
_PATH = re.compile(r"/(?:[A-Za-z0-9._~:/?@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*")
#: A segment that leads out of the path which the application gave the service, as any server may read it: with slashes
#: that are encoded, or with parameters after it.
_DOTS = re.compile(r"(?:/|%2f|%5c)(?:\.|%2e){1,2}(?=[/?;]|%2f|%5c)", re.IGNORECASE)
#: Nine tries in a quarter of an hour, beside the time that the circuit is open.
_RETRY = exponential(attempts=9, first="1s", cap="15m", jitter=True)


def _check_path(value: str) -> str:
    if not _PATH.fullmatch(value) or _DOTS.search(value.partition("?")[0] + "?"):
        raise ValueError("is no path such as /invoices?notify=1, without . and .. in it")
    return value


class HttpCall(BaseModel):
    """A request to a service. What it answers is looked at for success only."""

    model_config = ConfigDict(extra="forbid")

    method: Literal["POST", "PUT", "PATCH", "DELETE"] = "POST"
    path: Annotated[str, Field(max_length=2000), AfterValidator(_check_path)] = Field(
        description="below the address of the service, with a query if need be"
    )
    body: JsonValue = Field(default=None, description="sent as JSON; null: no body")


def calls(
    service: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    seconds: float = SECONDS,
    retry: RetryPolicy | None = None,
    rate: str | None = None,
) -> type[HttpCall]:
    """Have messages of the type `call.<service>` made requests to *url*, by a consumer `call-<service>`.

    Returns the contract, for those who publish in Python. Each request carries `Idempotency-Key`, the id of its
    message: where the service takes it, a request that is repeated has its effect once.

    service: letters, digits, `_` and `-`. url: what paths are appended to. headers: of every request, such as
    `Authorization`. seconds: for all of a call. retry: nine tries in a quarter of an hour by default. rate: requests
    that are begun at most, such as "50/s".

    While the service is `Unavailable` nothing is taken from the queue, and no attempt is counted (`Breaker`).
    Raises `ConfigurationError` for what is no address, or a name that is taken.
    """
    address, own_headers = checked_address(url), dict(headers or {})
    contract = create_model(f"Call{service.title()}", __base__=HttpCall, __doc__=f"A request to {service}.")

    async def call(wanted: Any, ctx: Context) -> None:
        await request(
            wanted.method,
            address + wanted.path,
            headers=own_headers | idempotency_key(ctx),
            body=wanted.body,
            seconds=seconds,
        )

    call.__annotations__["wanted"] = message(f"call.{service}")(contract)
    consumer(f"call-{service}", retry=retry or _RETRY, breaker=Breaker(on=(Unavailable,)), rate=rate)(call)
    return contract
