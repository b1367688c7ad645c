"""What takes a second person: rules in `ackline.toml`, each of which an action must meet in full to wait.

```toml
[[approval_rules]]
action = "redrive"
types = ["payment.*"]
over = 100
```
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ackline.dlq.rights import Right
from ackline.infra.errors import ConfigurationError
from ackline.infra.settings import Settings


class Kind(StrEnum):
    """What a rule can be about: what a request can hold whole. An import is none, and only takes an admin."""

    REDRIVE = "redrive"
    DISCARD = "discard"
    RESTORE = "restore"
    EDIT = "edit"


#: What it takes to do each, and so to approve it.
RIGHT_OF: Mapping[Kind, Right] = {
    Kind.REDRIVE: Right.REDRIVE,
    Kind.DISCARD: Right.DISCARD,
    Kind.RESTORE: Right.RESTORE,
    Kind.EDIT: Right.EDIT,
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody wants to do: to so many dead letters, of these types, of these consumers."""

    kind: Kind
    count: int
    types: Collection[str]
    consumers: Collection[str]
    #: Whether any of them is not as it came.
    edited: bool = False


class Rule(BaseModel):
    """An action of this kind waits for a second person if all that the rule says is so."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Kind
    types: tuple[str, ...] = Field(default=(), description="order.placed, or order.* for all that begin so")
    consumers: tuple[str, ...] = Field(default=(), description="billing, or billing-*")
    over: int = Field(default=0, ge=0, description="more dead letters than that")
    edited: bool = Field(default=False, description="only if one of them was edited, or is edited by it")

    @field_validator("types", "consumers")
    @classmethod
    def _are_patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            if not pattern or "*" in pattern[:-1]:
                raise ValueError(f"{pattern!r} is no name, nor the beginning of one with * at its end")
        return value

    def meets(self, asked: Asked) -> bool:
        """Whether *asked* waits because of this rule."""
        return (
            asked.kind == self.action
            and asked.count > self.over
            and (asked.edited or not self.edited)
            and _any(self.types, asked.types)
            and _any(self.consumers, asked.consumers)
        )

    def __str__(self) -> str:
        what = f"to {self.action} "
        what += f"more than {self.over:,} dead letters" if self.over else "dead letters"
        what += " that were edited" if self.edited else ""
        what += f" of {', '.join(self.types)}" if self.types else ""
        what += f" of the consumer {', '.join(self.consumers)}" if self.consumers else ""
        return f"{what} takes two people"


def _any(patterns: Collection[str], names: Collection[str]) -> bool:
    return not patterns or any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
        for pattern in patterns
        for name in names
    )


def rules(settings: Settings) -> tuple[Rule, ...]:
    """The rules that are set. Raises `ConfigurationError`, which names each fault of each rule."""
    found, wrong = [], []
    for number, raw in enumerate(settings.approval_rules, start=1):
        try:
            found.append(Rule.model_validate(raw))
        except ValidationError as error:
            wrong += [f"rule {number}{_where(fault)}: {fault['msg']}" for fault in error.errors()]
    if wrong:
        raise ConfigurationError(f"ACKLINE_APPROVAL_RULES (approval_rules) cannot be used: {'; '.join(wrong)}.")
    return tuple(found)


def _where(fault: Mapping[str, Any]) -> str:
    return "".join(f", {part}" for part in fault["loc"] if isinstance(part, str))
