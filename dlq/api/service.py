"""What the routes of one running desk share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Engine

from ackline.dlq.api.watching import Watching
from ackline.dlq.desk import Desk
from ackline.infra.settings import Settings


@dataclass(frozen=True, slots=True)
class Service:
    """A running desk. Its services block: a route that uses them is a plain function, which runs in a thread."""

    settings: Settings
    engine: Engine
    desk: Desk
    watching: Watching


def service(request: Request) -> Service:
    """The desk that serves *request*."""
    found: Service = request.app.state.service
    return found


#: Parameter of routes.
Served = Annotated[Service, Depends(service)]
