"""Consumers: one function, one queue of that name, bound to the message types in the function's annotation."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from ackline.consumers.context import Context
from ackline.consumers.retry import RetryPolicy, exponential
from ackline.infra.app import load_app
from ackline.infra.errors import ConfigurationError
from ackline.infra.settings import Settings
from ackline.infra.topology import ConsumerQueue, check_consumer_name
from ackline.producer.errors import InvalidMessage
from ackline.producer.message import type_of

F = TypeVar("F", bound=Callable[..., Any])

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Consumer:
    """A handler and what is known of it."""

    name: str
    handler: Callable[..., Any]
    #: Message type -> its contract.
    types: Mapping[str, type[BaseModel]]
    retry: RetryPolicy
    takes_context: bool
    is_async: bool

    @property
    def queue(self) -> ConsumerQueue:
        """What the topology needs to know."""
        return ConsumerQueue(self.name, tuple(sorted(self.types)))


_consumers: dict[str, Consumer] = {}


def consumer(name: str, /, *, retry: RetryPolicy | None = None) -> Callable[[F], F]:
    """Make a function, plain or async, the handler of a queue of that *name*. Returns the function unchanged.

    Its first parameter is annotated with a `@message` model, or with a union of them; a second one, if there is one,
    gets the `Context`. retry: the policy for what it raises; 5 attempts, from 1 s doubling to 5 min, by default.

    The handler's return acks the message. It may raise `RetryLater(delay)`, `Reject(reason)` (to review at once), or
    anything else, which is retried up to the bound and then goes to review. A message can be delivered twice.

    Raises `ConfigurationError` when the name is taken or cannot name a queue, or the annotation names no messages.
    """
    if not isinstance(name, str):  # @consumer without parentheses hands over the function
        raise ConfigurationError("Please give the consumer a name: @consumer('billing').")
    check_consumer_name(name)

    def register(function: F) -> F:
        other = _consumers.get(name)
        where = (function.__module__, function.__qualname__)
        # The same function again is a module that was imported again, not a second consumer.
        if other is not None and (other.handler.__module__, other.handler.__qualname__) != where:
            raise ConfigurationError(
                f"The consumer {name!r} is already {other.handler.__qualname__}; take another name."
            )
        models, takes_context = _signature(name, function)
        _consumers[name] = Consumer(
            name, function, models, retry or exponential(), takes_context, inspect.iscoroutinefunction(function)
        )
        return function

    return register


def _signature(name: str, function: Callable[..., Any]) -> tuple[dict[str, type[BaseModel]], bool]:
    parameters = list(inspect.signature(function).parameters.values())
    try:
        hints = typing.get_type_hints(function)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise ConfigurationError(
            f"The annotations of the handler of {name!r} cannot be read: {error}. "
            "Import or define what they name in the handler's module."
        ) from None
    if not 1 <= len(parameters) <= 2 or any(parameter.kind not in _BY_POSITION for parameter in parameters):
        raise ConfigurationError(f"The handler of {name!r} takes a message and, if it likes, a Context.")
    if len(parameters) == 2 and hints.get(parameters[1].name, Context) is not Context:
        raise ConfigurationError(f"The second parameter of the handler of {name!r} must be a Context.")
    annotation = hints.get(parameters[0].name)
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    try:
        models = {type_of(model): model for model in (typing.get_args(annotation) if union else (annotation,))}
    except InvalidMessage:
        raise ConfigurationError(
            f"The first parameter of the handler of {name!r} must be annotated with a @message model, "
            f"or a union of them, not {annotation!r}."
        ) from None
    return models, len(parameters) == 2


def registered() -> dict[str, Consumer]:
    """The consumers that have been imported, by name."""
    return dict(_consumers)


def load_consumers(settings: Settings) -> dict[str, Consumer]:
    """Import the application and return its consumers, by name. Raises `ConfigurationError`."""
    load_app(settings.app)
    return registered()


def queues(settings: Settings) -> list[ConsumerQueue]:
    """What the topology needs to know of the application's consumers."""
    return [found.queue for found in load_consumers(settings).values()]
