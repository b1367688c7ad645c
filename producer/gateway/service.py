"""What the routes of one running gateway share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Engine

from ackline.infra.settings import Settings
from ackline.producer.gateway.acceptance import Acceptance
from ackline.producer.gateway.idempotency import Idempotency
from ackline.producer.gateway.keys import Caller, Keys
from ackline.producer.gateway.signing import Signer
from ackline.producer.gateway.upload_storage import UploadStorage
from ackline.producer.publisher import Publisher
from ackline.producer.stamp import Stamps


@dataclass(frozen=True, slots=True)
class Service:
    """A running gateway. engine: its database; blocking, so a route uses it in a thread (`asyncio.to_thread`)."""

    settings: Settings
    publisher: Publisher
    stamps: Stamps
    engine: Engine
    acceptance: Acceptance
    idempotency: Idempotency
    keys: Keys
    signer: Signer
    uploads: UploadStorage


def service(request: Request) -> Service:
    """The gateway that serves *request*."""
    found: Service = request.app.state.service
    return found


async def caller(request: Request) -> Caller:
    """Whose request it is. Raises `Refusal`."""
    return service(request).keys.caller(request)


#: Parameters of routes.
Served = Annotated[Service, Depends(service)]
Called = Annotated[Caller, Depends(caller)]
