"""Consumers: one function, one queue of that name, bound to the message types in the function's annotation."""

from __future__ import annotations

import inspect
import re
import types as python_types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import BaseModel

from ackline.consumers.batch import Batch
from ackline.consumers.breaker import Breaker
from ackline.consumers.context import Context
from ackline.consumers.middleware import Middleware
from ackline.consumers.ordered import SHARDS, Order, order_of
from ackline.consumers.rate import per_second
from ackline.consumers.retry import RetryPolicy, exponential
from ackline.consumers.time_limit import limit_of
from ackline.infra.app import load_app
from ackline.infra.errors import ConfigurationError
from ackline.infra.settings import Settings
from ackline.infra.topology import ConsumerQueue, check_consumer_name
from ackline.producer.errors import InvalidMessage
from ackline.producer.message import type_of

if TYPE_CHECKING:  # it brings SQLAlchemy, which only those have who use one
    from ackline.consumers.inbox import Inbox

F = TypeVar("F", bound=Callable[..., Any])

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Consumer:
    """A handler and what is known of it."""

    name: str
    handler: Callable[..., Any]
    #: Message type -> its contract.
    types: Mapping[str, type[BaseModel] | None]
    retry: RetryPolicy
    takes_context: bool
    is_async: bool
    #: Entered around the handler, outermost first, within that of `use`.
    middleware: tuple[Middleware, ...] = ()
    inbox: Inbox | None = None
    #: Of a handler that takes a list of messages.
    batch: Batch | None = None
    #: Whether it takes bodies as they came; `types` then has binding keys, and no contracts.
    takes_bytes: bool = False
    #: Of a consumer that handles the messages of a key one at a time.
    order: Order | None = None
    #: Seconds that one try of the handler may take.
    time_limit: float | None = None
    #: When it stops taking messages.
    breaker: Breaker | None = None
    #: Messages a second that it begins at most.
    rate: float | None = None

    @property
    def queue(self) -> ConsumerQueue:
        """What the topology needs to know."""
        return ConsumerQueue(self.name, tuple(sorted(self.types)), self.order.shards if self.order is not None else 0)

    def takes(self, type_: str) -> bool:
        """Whether its queue gets messages of that type."""
        return type_ in self.types or (self.takes_bytes and any(matches(key, type_) for key in self.types))


_consumers: dict[str, Consumer] = {}


def consumer(
    name: str,
    /,
    *,
    retry: RetryPolicy | None = None,
    time_limit: str | float | None = None,
    middleware: Sequence[Middleware] = (),
    inbox: Inbox | None = None,
    batch: Batch | None = None,
    types: Sequence[str] = (),
    ordered_by: str | None = None,
    shards: int = SHARDS,
    breaker: Breaker | None = None,
    rate: str | None = None,
) -> Callable[[F], F]:
    """Make a function, plain or async, the handler of a queue of that *name*. Returns the function unchanged.

    Its first parameter is annotated with a `@message` model, or with a union of them; a second one, if there is one,
    gets the `Context`. Annotated with a `list` of those, it is a batch handler (see `ackline.consumers.batching`),
    whose second parameter gets a list of contexts; batch: its size and linger time. Annotated with `bytes`, or a list
    of them, it gets bodies as they came; types: the message types that it takes, or patterns ("order.*", "#").

    retry: the policy for what it raises; 5 attempts, from 1 s doubling to 5 min, by default.
    time_limit: how long one try may take ("30s", or seconds), see `ackline.consumers.time_limit`; by default no limit.
    middleware: entered around each try of the handler, the first one outermost, within that of `use`. inbox: an `inbox`
    or a `claim` of `ackline.consumers.inbox`, which keeps a message that is delivered twice from being handled twice.
    ordered_by: the key of its messages (`@message(…, key="order_id")`); those of one key are handled one at a time and
    in order, by whichever worker. shards: queues over which the keys are spread, 64 at most; as many workers take part.
    breaker: when it stops taking messages, because what its handler needs is down. rate: messages that are begun at
    most ("100/s", "10/m", "1000/h"), one second's worth at once, over the processes of one `ackline worker`.

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
        found = _signature(name, function, types)
        if found.is_batch and middleware:
            raise ConfigurationError(f"{name!r} takes a list of messages, and middleware is about one.")
        if batch is not None and not found.is_batch:
            raise ConfigurationError(f"The handler of {name!r} has a batch: annotate its first parameter with a list.")
        order = order_of(name, ordered_by, shards, found.types)
        if order is not None and found.is_batch:
            raise ConfigurationError(f"{name!r} is ordered: it takes one message at a time, not a list of them.")
        _consumers[name] = Consumer(
            name,
            function,
            found.types,
            retry or exponential(),
            found.takes_context,
            inspect.iscoroutinefunction(function),
            middleware=tuple(middleware),
            inbox=inbox,
            batch=batch or (Batch() if found.is_batch else None),
            takes_bytes=found.takes_bytes,
            order=order,
            time_limit=None if time_limit is None else limit_of(name, time_limit),
            breaker=breaker,
            rate=None if rate is None else per_second(rate),
        )
        return function

    return register


class _Signature(NamedTuple):
    """What a handler takes."""

    types: dict[str, type[BaseModel] | None]
    takes_context: bool
    takes_bytes: bool
    is_batch: bool


def _signature(name: str, function: Callable[..., Any], binding_keys: Sequence[str]) -> _Signature:
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
    annotation = hints.get(parameters[0].name)
    is_batch = typing.get_origin(annotation) is list
    if is_batch:
        (annotation,) = typing.get_args(annotation)
    wanted = list[Context] if is_batch else Context
    if len(parameters) == 2 and hints.get(parameters[1].name, wanted) != wanted:
        shown = "list[Context]" if is_batch else "Context"
        raise ConfigurationError(f"The second parameter of the handler of {name!r} must be a {shown}.")
    takes_bytes = annotation is bytes
    if takes_bytes:
        return _Signature(_binding_keys(name, binding_keys), len(parameters) == 2, True, is_batch)
    if binding_keys:
        raise ConfigurationError(f"The annotation of the handler of {name!r} says what it takes: leave types= away.")
    union = typing.get_origin(annotation) in (typing.Union, python_types.UnionType)
    models: dict[str, type[BaseModel] | None]
    try:
        models = {type_of(model): model for model in (typing.get_args(annotation) if union else (annotation,))}
    except InvalidMessage:
        raise ConfigurationError(
            f"The first parameter of the handler of {name!r} must be annotated with a @message model, a union of them, "
            f"or bytes, or a list of those, not {annotation!r}."
        ) from None
    return _Signature(models, len(parameters) == 2, False, is_batch)


def _binding_keys(name: str, keys: Sequence[str]) -> dict[str, type[BaseModel] | None]:
    if isinstance(keys, str) or not keys or not all(isinstance(key, str) and 0 < len(key) <= 255 for key in keys):
        raise ConfigurationError(
            f"The handler of {name!r} takes bytes: name the message types, types=['order.placed', 'invoice.*']."
        )
    return dict.fromkeys(keys)


def matches(key: str, type_: str) -> bool:
    """Whether a topic exchange takes a message of that type to a queue that is bound by *key*."""
    words = {"*": r"\.[^.]*", "#": r"(\.[^.]*)*"}
    pattern = "".join(words.get(word, rf"\.{re.escape(word)}") for word in key.split("."))
    return re.fullmatch(pattern, f".{type_}") is not None


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
