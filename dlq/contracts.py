"""What the desk knows of the application's messages: their contracts, their secrets, and who takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from ackline.consumers.consumer import Consumer, load_consumers
from ackline.consumers.handling import nameable
from ackline.consumers.masking import MASK, Mask, mask_of_values
from ackline.consumers.shape import Shape, shape_of
from ackline.dlq import document
from ackline.dlq.condition import spelled
from ackline.dlq.document import NotJson
from ackline.dlq.errors import Fault
from ackline.infra.settings import Settings
from ackline.infra.table import text
from ackline.producer.errors import InvalidMessage
from ackline.producer.message import contract_of, contracts, key_headers

#: Faults of a payload that are told at most.
MAX_FAULTS = 20


class Contracts:
    """The contracts that have been imported, and the consumers. Safe on any thread."""

    def __init__(self, consumers: Mapping[str, Consumer]) -> None:
        self._consumers = consumers

    @classmethod
    def of(cls, settings: Settings) -> Contracts:
        """Those of the application that ACKLINE_APP names. Raises `ConfigurationError`, and what its modules raise."""
        return cls(load_consumers(settings))

    def check(self, type_: str, payload: bytes) -> list[Fault] | None:
        """What keeps *payload* from being a message of that type, as a worker would find it.

        None when no contract is known. Never raises. No fault quotes a secret.
        """
        model = contracts().get(type_)
        if model is None:
            return None
        try:
            _key_headers(model, payload)
            return []
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False, include_context=False)
            faults = [Fault(spelled(fault["loc"]), fault["msg"]) for fault in found[:MAX_FAULTS]]
            if len(found) > MAX_FAULTS:
                faults.append(Fault("payload", f"and {len(found) - MAX_FAULTS} more faults"))
        except InvalidMessage as error:
            faults = [Fault("payload", str(error))]
        except Exception as error:  # whatever a validator of the application raises
            faults = [Fault("payload", f"its contract fails on it: {type(error).__name__}: {nameable(error)}")]
        mask = _mask_of_secrets(model, payload)
        return [Fault(fault.path, mask(fault.message)) for fault in faults]

    def key_headers(self, type_: str, payload: bytes) -> dict[str, Any] | None:
        """The headers that bring a valid *payload* to the shard of its key: none when its key is null.

        None when no contract is known, or it has no key: then they are whatever the publisher wrote.
        """
        model = contracts().get(type_)
        if model is None or contract_of(model).key is None:
            return None
        return _key_headers(model, payload)

    def shape(self, type_: str) -> Shape | None:
        """What is hidden of messages of that type; None when nothing is, or no contract is known."""
        model = contracts().get(type_)
        return None if model is None else shape_of(model)

    def masked(self, type_: str, path: Iterable[str | int]) -> bool:
        """Whether messages of that type may have something hidden at *path*, or around it."""
        shape = self.shape(type_)
        for step in path:
            if shape is None or shape.is_hidden:
                break
            shape = shape.item if isinstance(step, int) else shape.at(step)
        return shape is not None and shape.is_hidden

    def mask(self, type_: str, payload: bytes) -> Any:
        """*payload* for people: a JSON value, with `MASK` in place of what is hidden. Never raises.

        One that is no JSON becomes a text; or `MASK`, when its contract hides anything.
        """
        return document.plain(self._shown(type_, payload))

    def masked_payload(self, type_: str, payload: bytes) -> bytes:
        """The same as JSON, in which numbers are as they were written: for people to edit."""
        return document.write(self._shown(type_, payload))

    def _shown(self, type_: str, payload: bytes) -> Any:
        shape = self.shape(type_)
        try:
            found = document.read(payload)
        except NotJson:
            return text(payload) if shape is None else MASK
        return found if shape is None else shape.shown(found)

    def consumers_of(self, type_: str) -> list[str]:
        """The consumers whose queues get messages of that type."""
        return sorted(name for name, consumer in self._consumers.items() if consumer.takes(type_))

    @property
    def types(self) -> list[str]:
        """The types whose contracts are known."""
        return sorted(contracts())

    @property
    def ordered(self) -> list[str]:
        """The consumers that handle the messages of a key one at a time."""
        return sorted(name for name, consumer in self._consumers.items() if consumer.order is not None)


def _key_headers(model: type[BaseModel], payload: bytes) -> dict[str, Any]:
    # As the worker does it (`ackline.consumers.handling`).
    instance = model.__pydantic_validator__.validate_json(payload)
    return key_headers(contract_of(model), instance)


def _mask_of_secrets(model: type[BaseModel], payload: bytes) -> Mask:
    shape = shape_of(model)
    try:
        return str if shape is None else mask_of_values(list(shape.secrets(document.read(payload))))
    except NotJson:
        return str
