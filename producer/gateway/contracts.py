"""The contracts over HTTP."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from ackline.producer.gateway.service import Called
from ackline.producer.message import contracts

router = APIRouter()


@router.get("/v1/types", summary="The message types and their JSON Schemas")
async def types(caller: Called) -> list[dict[str, Any]]:
    """Every message type with the JSON Schema of its payload."""
    return [{"type": name, "schema": model.model_json_schema()} for name, model in sorted(contracts().items())]
