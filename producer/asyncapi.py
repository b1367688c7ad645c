"""The pipeline as an AsyncAPI 3.0 document (https://www.asyncapi.com/docs/reference/specification/v3.0.0).

| in the document | is |
| --- | --- |
| channel `order.placed` | a message type: the routing key on `ackline.messages` under which anybody may send it |
| channel `queue:billing` | the queue of a consumer |
| operation `send:order.placed` | publishing one |
| operation `receive:billing` | what the consumer takes |
| `components.messages`, `components.schemas` | the contracts; `x-ackline-version` and `x-ackline-tracked` of each |

Neither a type nor a schema's name has a colon, so the names cannot clash.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

from pika import URLParameters
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from ackline.infra.link import parameters
from ackline.infra.names import MESSAGES
from ackline.infra.settings import Settings
from ackline.infra.topology import ConsumerQueue
from ackline.infra.wire import TRACK
from ackline.producer.message import Contract, contract_of, contracts
from ackline.producer.schema import NoSchema, plain, schema_of

CONTENT_TYPE = "application/asyncapi+json;version=3.0.0"
_BINDING = {"bindingVersion": "0.3.0"}

#: What any message may carry (`ackline.infra.wire`); the other properties are the client library's own.
_HEADERS = {
    "type": "object",
    "properties": {
        "traceparent": {"type": "string", "description": "W3C trace context"},
        TRACK: {"type": "boolean", "description": "true: every delivery is accounted for by id"},
    },
}


class _Draft07(GenerateJsonSchema):
    """AsyncAPI's schemas are those of draft 7: tuples are `items`, and a discriminator is OpenAPI's."""

    def tuple_schema(self, schema: core_schema.TupleSchema) -> JsonSchemaValue:
        return _items_by_position(super().tuple_schema(schema))

    def named_tuple_schema(self, schema: core_schema.NamedTupleSchema) -> JsonSchemaValue:
        return _items_by_position(super().named_tuple_schema(schema))

    def p_arguments_schema(self, *args: Any, **options: Any) -> JsonSchemaValue:  # named tuples, before pydantic 2.14
        return _items_by_position(super().p_arguments_schema(*args, **options))

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        made = super().tagged_union_schema(schema)
        made.pop("discriminator", None)
        return made


def _items_by_position(schema: JsonSchemaValue) -> JsonSchemaValue:
    if "prefixItems" in schema:
        further = {"additionalItems": schema.pop("items")} if "items" in schema else {}
        schema |= {"items": schema.pop("prefixItems")} | further
    return schema


def asyncapi(settings: Settings, consumers: Iterable[ConsumerQueue] = ()) -> tuple[dict[str, Any], list[NoSchema]]:
    """The document for the contracts that have been imported, and the contracts that have no JSON Schema.

    Those are in it too, without a payload. No credentials are in it: of the broker's URL it has host, port and vhost.
    Raises `ConfigurationError` when that URL cannot be used.
    """
    broker = parameters(settings.amqp_url, "") if settings.amqp_url else None
    vhost = broker.virtual_host if broker else "/"
    known = [contract_of(model) for _, model in sorted(contracts().items())]
    payloads, schemas, missing = _payloads(known)
    document: dict[str, Any] = {
        "asyncapi": "3.0.0",
        "info": {
            "title": f"Messages of {settings.service}",
            "version": "",
            "description": "Publish with confirms, mandatory and persistent. What was confirmed is not lost.",
        },
        "defaultContentType": "application/json",
        "channels": {},
        "operations": {},
        "components": {
            "messages": {contract.type: _message(contract, payloads.get(contract.type)) for contract in known},
            "schemas": schemas,
        },
    }
    if broker:
        document["servers"] = {"rabbitmq": _server(broker)}
        document["components"]["securitySchemes"] = {"user": {"type": "userPassword"}}
    for contract in known:
        _add_type(document, contract.type, vhost)
    for consumer in consumers:
        _add_consumer(document, consumer, vhost)
    # A digest: it changes whenever what is below does, and only then.
    document["info"]["version"] = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:12]
    return document, missing


def _payloads(known: list[Contract]) -> tuple[dict[str, Any], dict[str, Any], list[NoSchema]]:
    """A reference to the payload by type, the schemas it leads to, and the contracts that have none."""
    able: list[type[BaseModel]] = []
    missing = []
    for contract in known:
        try:
            schema_of(contract.model, schema_generator=_Draft07)
            able.append(contract.model)
        except NoSchema as error:
            missing.append(error)
    # All in one, so that a model that several contracts hold is one schema, and pydantic tells apart equal names.
    references, made = models_json_schema(
        [(model, "validation") for model in able],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Draft07,
    )
    payloads = {contract_of(model).type: plain(references[model, "validation"]) for model in able}
    return payloads, plain(made.get("$defs", {})), missing


def _message(contract: Contract, payload: dict[str, Any] | None) -> dict[str, Any]:
    described = inspect.cleandoc(contract.model.__doc__ or "").encode("utf-8", "replace").decode()
    made = {
        "name": contract.type,
        "title": contract.model.__name__,
        "contentType": "application/json",
        "headers": _HEADERS,
        "bindings": {"amqp": {"messageType": contract.type, **_BINDING}},
        "x-ackline-version": contract.version,
        "x-ackline-tracked": contract.track,
    }
    return made | ({"description": described} if described else {}) | ({"payload": payload} if payload else {})


def _server(broker: URLParameters) -> dict[str, Any]:
    host = f"[{broker.host}]" if ":" in broker.host else broker.host
    return {
        "host": f"{host}:{broker.port}",
        "pathname": f"/{quote(broker.virtual_host, safe='')}",
        "protocol": "amqps" if broker.ssl_options else "amqp",
        "protocolVersion": "0-9-1",
        "description": "RabbitMQ",
        "security": [{"$ref": "#/components/securitySchemes/user"}],
    }


def _add_type(document: dict[str, Any], type_: str, vhost: str) -> None:
    exchange = {"name": MESSAGES, "type": "topic", "durable": True, "autoDelete": False, "vhost": vhost}
    document["channels"][type_] = {
        "address": type_,
        "messages": {type_: {"$ref": f"#/components/messages/{type_}"}},
        "bindings": {"amqp": {"is": "routingKey", "exchange": exchange, **_BINDING}},
    }
    document["operations"][f"send:{type_}"] = {
        "action": "send",
        "channel": {"$ref": _pointer("channels", type_)},
        "messages": [{"$ref": _pointer("channels", type_, "messages", type_)}],
        "bindings": {"amqp": {"deliveryMode": 2, "mandatory": True, "timestamp": True, **_BINDING}},
    }


def _add_consumer(document: dict[str, Any], consumer: ConsumerQueue, vhost: str) -> None:
    types = [type_ for type_ in consumer.types if type_ in document["components"]["messages"]]
    for name in consumer.queues:
        _add_queue(document, name, types, vhost)


def _add_queue(document: dict[str, Any], name: str, types: Sequence[str], vhost: str) -> None:
    # A name may have what a channel's may not, such as "#", encoded by "%" or not; the binding has it as it is.
    channel = f"queue:{quote(name, safe='').replace('%', '=')}"
    queue = {"name": name, "durable": True, "exclusive": False, "autoDelete": False, "vhost": vhost}
    document["channels"][channel] = {
        "address": None if set(name) & set("?#{}") else name,
        "messages": {type_: {"$ref": f"#/components/messages/{type_}"} for type_ in types},
        "bindings": {"amqp": {"is": "queue", "queue": queue, **_BINDING}},
    }
    document["operations"][f"receive:{name}"] = {
        "action": "receive",
        "channel": {"$ref": _pointer("channels", channel)},
        "messages": [{"$ref": _pointer("channels", channel, "messages", type_)} for type_ in types],
        "bindings": {"amqp": {"ack": True, **_BINDING}},
    }


def _pointer(*names: str) -> str:
    """A reference within the document (RFC 6901, as a URI fragment)."""
    return "#/" + "/".join(quote(name.replace("~", "~0").replace("/", "~1"), safe=":~") for name in names)
