"""An application whose contracts are odd, for tests of what is told of contracts."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, Field

from ackline.consumers import consumer
from ackline.producer import message


class Line(BaseModel):
    sku: str
    count: int | None = None


@message("odd.order", version="2026-01", track=True)
class Order(BaseModel):
    """An order."""

    lines: list[Line]
    limit: float = math.nan


@message("odd.tree")
class Tree(BaseModel):
    children: list[Tree] = []


class Anything:
    pass


@message("odd.unschematic")
class Unschematic(BaseModel):
    at: Any = Field(default=None, json_schema_extra={"example": Anything()})  # type: ignore[dict-item]


@consumer("odd/consumer")
def handle(order: Order | Tree) -> None:
    pass
