"""The contracts over HTTP."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from ackline.infra.topology_commands import consumer_queues
from ackline.producer.asyncapi import CONTENT_TYPE, asyncapi
from ackline.producer.gateway.service import Called, Served
from ackline.producer.message import Contract, contract_of, contracts
from ackline.producer.schema import NoSchema, schema_of

router = APIRouter()


class MessageType(BaseModel):
    """A message type. problem: why it has no JSON Schema; it can be published all the same."""

    type: str
    version: str
    track: bool
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    problem: str | None = None


# Plain functions: FastAPI runs them in a thread, so that many large contracts do not hold up those who publish.


@router.get("/v1/types", response_model_exclude_none=True, summary="The message types and their JSON Schemas")
def types(caller: Called) -> list[MessageType]:
    """Every message type with its version and the JSON Schema of its payload."""
    return [_described(contract_of(model)) for _, model in sorted(contracts().items())]


@router.get(
    "/asyncapi.json",
    response_class=JSONResponse,
    responses={200: {"content": {CONTENT_TYPE: {}}}},
    summary="The pipeline as AsyncAPI 3.0",
)
def asyncapi_document(caller: Called, served: Served) -> JSONResponse:
    """Channels, operations and messages for clients that speak AMQP. It holds no credentials."""
    document, _ = asyncapi(served.settings, consumer_queues(served.settings))
    return JSONResponse(document, media_type=CONTENT_TYPE)


def _described(contract: Contract) -> MessageType:
    try:
        schema, problem = schema_of(contract.model), None
    except NoSchema as error:
        schema, problem = None, str(error)
    return MessageType(
        type=contract.type, version=contract.version, track=contract.track, schema=schema, problem=problem
    )
