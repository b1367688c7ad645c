"""Contracts as JSON Schema (2020-12), for those who do not read Python.

The schemas say what a contract *accepts* (pydantic's mode "validation"): that is what a client in another language has
to send, and what every consumer must be ready for.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import to_json

from ackline.infra.errors import AcklineError
from ackline.producer.message import Contract, contract_of, contracts

DIALECT = GenerateJsonSchema.schema_dialect


class NoSchema(AcklineError):
    """A contract of which pydantic makes no JSON Schema. It is none the less checked."""


def schema_of(model: type[BaseModel], **options: Any) -> dict[str, Any]:
    """The JSON Schema of a model, as plain JSON.

    options: as `BaseModel.model_json_schema` takes them. Raises `NoSchema`, which names the contract, when a field has
    no JSON Schema, or the model's own additions to it are no JSON.
    """
    try:
        return plain(model.model_json_schema(**options))
    except Exception as error:  # the model's own code runs in there
        why = " ".join(str(error).partition("\n\nFor further")[0].split())[:300]
        raise NoSchema(
            f"{contract_of(model).type} ({model.__module__}.{model.__qualname__}) has no JSON Schema: "
            f"{type(error).__name__}: {why}"
        ) from None


def plain(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema as JSON knows it: a default that is NaN or infinite is null, as it is in a message."""
    found: dict[str, Any] = json.loads(to_json(schema, inf_nan_mode="null"))
    return found


def urn(contract: Contract) -> str:
    """The name of a contract's schema, for its `$id`."""
    return f"urn:ackline:message:{contract.type}:{contract.version}"


def bundle() -> tuple[dict[str, Any], list[NoSchema]]:
    """All contracts as one JSON Schema document, and those that have none.

    It is a compound document: each contract is embedded under `$defs` with an `$id` of its own, `urn:ackline:message:`,
    the type, and the version, within which its references are resolved, so that nested models of equal names do not
    meet.
    """
    embedded, missing = {}, []
    for type_, model in sorted(contracts().items()):
        try:
            embedded[type_] = {"$id": urn(contract_of(model)), **schema_of(model)}
        except NoSchema as error:
            missing.append(error)
    return {"$schema": DIALECT, "$defs": embedded}, missing
