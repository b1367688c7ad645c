"""`sms.send`: a text message through a provider's HTTP API.

`ACKLINE_SMS_URL` gets `{"from", "to", "text"}` as JSON, with `Authorization: Bearer <ACKLINE_SMS_TOKEN>` and the id of
the message as `Idempotency-Key`, so that a provider that takes one sends a repeated request's text once.

A provider with another form needs a handler of a dozen lines: `request` of `ackline.consumers.handlers.http_request`.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from ackline.consumers import Breaker, Context, consumer, exponential
from ackline.consumers.handlers.http_request import Unavailable, idempotency_key, request
from ackline.infra.errors import ConfigurationError
from ackline.infra.settings import settings
from ackline.producer import message


@message("sms.send")
class SendSms(BaseModel):
    """One text to one telephone."""

    model_config = ConfigDict(extra="forbid")

    to: str = Field(pattern=r"^\+[1-9][0-9]{6,14}$", description="number as E.164 has it, such as +4915112345678")
    text: str = Field(min_length=1, max_length=1600, description="a provider sends and charges it in parts")


@consumer("sms", retry=exponential(attempts=6, first="5s", cap="5m", jitter=True), breaker=Breaker(on=(Unavailable,)))
async def send_sms(sms: SendSms, ctx: Context) -> None:
    """Hand the text to the provider."""
    configured = settings()
    if configured.sms_url is None:
        raise ConfigurationError("ACKLINE_SMS_URL is not set: http[s]://… of the provider that sends texts.")
    headers = idempotency_key(ctx)
    if configured.sms_token is not None:
        headers["Authorization"] = f"Bearer {configured.sms_token}"
    body = {"from": configured.sms_from, "to": sms.to, "text": sms.text}
    await request("POST", configured.sms_url, headers=headers, body=body)
