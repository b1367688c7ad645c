"""Contracts: which pydantic model is which type of message."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from ackline.infra.errors import ConfigurationError
from ackline.producer.errors import InvalidMessage

M = TypeVar("M", bound=BaseModel)

#: A type is a routing key without wildcards: words of letters, digits, `_` and `-`, joined by dots.
_TYPE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\Z")

_contracts: dict[str, type[BaseModel]] = {}


def message(type_: str, /) -> Callable[[type[M]], type[M]]:
    """Make a pydantic model the contract of messages of *type_*, the routing key and the AMQP `type`.

    Raises `ConfigurationError` when *type_* is no routing key, or another model has it already.
    """
    if not _TYPE.match(type_) or len(type_) > 255 or type_.startswith("ackline."):
        raise ConfigurationError(
            f"{type_!r} cannot be a message type: use words joined by dots, such as 'order.placed', "
            "255 characters at most and not beginning with 'ackline.'."
        )

    def register(model: type[M]) -> type[M]:
        other = _contracts.get(type_)
        # The same class again is a module that was imported again (a reload), not a second contract.
        if other is not None and (other.__module__, other.__qualname__) != (model.__module__, model.__qualname__):
            raise ConfigurationError(
                f"The message type {type_!r} is already {other.__module__}.{other.__qualname__}; "
                f"{model.__module__}.{model.__qualname__} needs another."
            )
        _contracts[type_] = model
        model.__ackline_type__ = type_  # type: ignore[attr-defined]
        return model

    return register


def type_of(model: type[BaseModel] | BaseModel) -> str:
    """The message type of a model or of an instance of one.

    Raises `InvalidMessage` when it has no contract.
    """
    cls = model if isinstance(model, type) else model.__class__
    found: Any = cls.__dict__.get("__ackline_type__")
    if found is None:
        raise InvalidMessage(f"{cls.__qualname__} is no message: decorate it with @message('some.type').")
    return str(found)


def contracts() -> dict[str, type[BaseModel]]:
    """The contracts that have been imported, by type."""
    return dict(_contracts)


def encode(instance: BaseModel) -> bytes:
    """An instance as the body of a message: JSON in UTF-8.

    Raises `InvalidMessage` when it holds something that JSON does not, such as a lone surrogate.
    """
    try:
        return instance.__pydantic_serializer__.to_json(instance)
    except PydanticSerializationError as error:
        raise InvalidMessage(f"This {type(instance).__qualname__} cannot be written as JSON: {error}.") from None
