"""An application for tests: an ordered consumer."""

from __future__ import annotations

from pydantic import BaseModel

from ackline.consumers import consumer
from ackline.producer import message


@message("test.ordered.placed", key="order_id")
class Placed(BaseModel):
    """Something about an order: the *number*-th, from 1."""

    order_id: str
    number: int = 1


@consumer("billing", ordered_by="order_id", shards=3)
def bill(placed: Placed) -> None:
    """Does nothing."""
