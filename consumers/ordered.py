"""Ordered consumers: the messages of a key one at a time, in the order of their publishing, across workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from ackline.infra.errors import ConfigurationError
from ackline.infra.wire import SLOTS
from ackline.producer.message import contract_of

#: Shards of a consumer that says no number: as many workers can take part.
SHARDS = 8


@dataclass(frozen=True, slots=True)
class Order:
    """By what an ordered consumer is ordered, and over how many queues its keys are spread."""

    by: str
    shards: int = SHARDS


def order_of(consumer: str, by: str | None, shards: int, types: Mapping[str, type[BaseModel] | None]) -> Order | None:
    """The order of *consumer*, which takes *types*; None when it has none.

    Raises `ConfigurationError` when a contract has another key than *by*, and for a number of shards that cannot be.
    """
    if by is None:
        if shards != SHARDS:
            raise ConfigurationError(
                f"The consumer {consumer!r} has shards: say by what it is ordered, ordered_by='…'."
            )
        return None
    if not 1 <= shards <= SLOTS:
        raise ConfigurationError(f"The consumer {consumer!r} has {shards} shards; it can have 1 to {SLOTS}.")
    for type_, model in types.items():
        key = contract_of(model).key if model is not None else by
        if key != by:
            raise ConfigurationError(
                f"The consumer {consumer!r} is ordered by {by!r}, but the messages {type_!r} "
                f"{'have no key' if key is None else f'have the key {key!r}'}: write @message({type_!r}, key={by!r}), "
                "so that whoever publishes one says which messages belong together."
            )
    return Order(by, shards)
