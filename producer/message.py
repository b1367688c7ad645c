"""Contracts: which pydantic model is which type of message.

The type alone routes a message and chooses its contract. A contract's *version* tells people and tools which edition of
the shape they look at: it is in the JSON Schema and in AsyncAPI, and not on the wire. Within a type a new version may
only change what every consumer can still read (a new field with a default); what they cannot read is another type, such
as `order.placed.v2`, which has a queue binding of its own, so that both can be consumed while upstream services move.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from ackline.infra import wire
from ackline.infra.errors import ConfigurationError
from ackline.infra.unknown import unknown as unknown_name
from ackline.producer.errors import InvalidMessage

M = TypeVar("M", bound=BaseModel)
Model: TypeAlias = type[BaseModel]

#: A type is a routing key without wildcards: words of letters, digits, `_` and `-`, joined by dots.
_TYPE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\Z")

#: A version can be part of a URN as it is.
_VERSION = re.compile(r"[A-Za-z0-9._-]{1,32}\Z")


@dataclass(frozen=True, slots=True)
class Contract:
    """What `@message` says of a model.

    track: whether its messages are accounted for by id, where the publisher is not told otherwise.
    key: the field whose value is the key of a message; None when they have none.
    """

    type: str
    version: str
    track: bool
    model: Model
    key: str | None = None


_contracts: dict[str, type[BaseModel]] = {}


def message(
    type_: str, /, *, version: str | int = "1", track: bool = False, key: str | None = None
) -> Callable[[type[M]], type[M]]:
    """Make a pydantic model the contract of messages of *type_*, the routing key and the AMQP `type`.

    version: of the payload's shape, for documentation (see above): 1 to 32 letters, digits, `.`, `_` or `-`.
    track: whether every delivery of its messages is accounted for by id (`GET /v1/messages/{id}`), by default.
    key: the field that says what a message is about, such as `order_id`: a text, an integer, a UUID or an enum. Ordered
    consumers handle the messages of a key in the order in which they were published; those whose key is None share one.
    Raises `ConfigurationError` when *type_* is no routing key, another model has it already, or the model has another,
    or has no field *key*.
    """
    if not _TYPE.match(type_) or len(type_) > 255 or type_.startswith("ackline."):
        raise ConfigurationError(
            f"{type_!r} cannot be a message type: use words joined by dots, such as 'order.placed', "
            "255 characters at most and not beginning with 'ackline.'."
        )
    if not _VERSION.match(str(version)):
        raise ConfigurationError(
            f"{version!r} cannot be the version of {type_!r}: use 1 to 32 letters, digits, '.', '_' or '-', such as 2."
        )

    def register(model: type[M]) -> type[M]:
        other = _contracts.get(type_)
        # The same class again is a module that was imported again (a reload), not a second contract.
        if other is not None and (other.__module__, other.__qualname__) != (model.__module__, model.__qualname__):
            raise ConfigurationError(
                f"The message type {type_!r} is already {other.__module__}.{other.__qualname__}; "
                f"{model.__module__}.{model.__qualname__} needs another."
            )
        mine: Contract | None = model.__dict__.get("__ackline_contract__")
        if mine is not None and mine.type != type_ and _contracts.get(mine.type) is model:
            raise ConfigurationError(
                f"{model.__module__}.{model.__qualname__} is the contract of {mine.type!r} already; make another class "
                f"for {type_!r}, which may inherit from it."
            )
        if key is not None and key not in model.model_fields:
            raise ConfigurationError(
                f"{model.__module__}.{model.__qualname__} has no field {key!r} that could be the key of {type_!r}; "
                f"it has {', '.join(model.model_fields) or 'none'}."
            )
        model.__ackline_contract__ = Contract(type_, str(version), track, model, key)  # type: ignore[attr-defined]
        _contracts[type_] = model
        return model

    return register


def contract_of(model: type[BaseModel] | BaseModel) -> Contract:
    """The contract of a model or of an instance of one; one that only its parent class has is not its own.

    Raises `InvalidMessage` when it has none.
    """
    cls = model if isinstance(model, type) else model.__class__
    found: Contract | None = cls.__dict__.get("__ackline_contract__")
    if found is None:
        raise InvalidMessage(f"{cls.__qualname__} is no message: decorate it with @message('some.type').")
    return found


def type_of(model: type[BaseModel] | BaseModel) -> str:
    """The message type of a model or of an instance of one.

    Raises `InvalidMessage` when it has no contract.
    """
    return contract_of(model).type


def key_headers(contract: Contract, instance: BaseModel) -> dict[str, Any]:
    """The headers that bring *instance* to the shard of its key; none when it has no key.

    Raises `InvalidMessage` when its key cannot be written so that every client writes it alike.
    """
    value = getattr(instance, contract.key) if contract.key is not None else None
    value = value.value if isinstance(value, Enum) else value
    if value is None:
        return {}
    if not isinstance(value, str | int | UUID) or isinstance(value, bool):
        raise InvalidMessage(
            f"The key of {contract.type!r}, its {contract.key}, is a {type(value).__qualname__}; it must be a text, an "
            "integer, a UUID, or an enum of these."
        )
    try:
        return wire.key_headers(str(value))
    except UnicodeEncodeError:
        raise InvalidMessage(
            f"The key of {contract.type!r}, its {contract.key}, is no text that UTF-8 can hold."
        ) from None


def contracts() -> Mapping[str, type[BaseModel]]:
    """The models of the contracts that have been imported, by type; read-only, and a view: later ones appear in it."""
    return _view


_view = MappingProxyType(_contracts)


def unknown(type_: str) -> str:
    """That there is no message type *type_*, in a sentence, with the likeliest of those that there are."""
    return unknown_name("message type", type_, _contracts)


def encode(instance: BaseModel) -> bytes:
    """An instance as the body of a message: JSON in UTF-8, with the fields' aliases, by which the contract reads it.

    Raises `InvalidMessage` when it holds something that JSON does not, such as a lone surrogate.
    """
    try:
        return instance.__pydantic_serializer__.to_json(instance, by_alias=True)
    except PydanticSerializationError as error:
        raise InvalidMessage(f"This {type(instance).__qualname__} cannot be written as JSON: {error}.") from None
