"""Who may do what: one table of role and action, which the HTTP API and the command line both ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ackline.dlq.errors import Forbidden


class Role(StrEnum):
    """What a person is here; each may do all that those before may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    APPROVER = "approver"
    ADMIN = "admin"

    @property
    def rank(self) -> int:
        """Its place among the roles, from 0."""
        return list(Role).index(self)

    @property
    def a(self) -> str:
        """With its article: "an admin"."""
        return f"an {self}" if self[0] in "aeiou" else f"a {self}"


class Right(StrEnum):
    """What a role gives or does not give."""

    VIEW = "view"
    NOTE = "note"
    TRIAGE = "triage"  # a group's status, owner, note and runbook
    EDIT = "edit"
    REDRIVE = "redrive"
    DISCARD = "discard"
    RESTORE = "restore"
    EXPORT = "export"
    IMPORT = "import"
    UNMASK = "unmask"
    APPROVE = "approve"
    READ_AUDIT = "read the audit"
    MANAGE_PEOPLE = "manage people"


_VIEWER = {Right.VIEW}
_OPERATOR = _VIEWER | {
    Right.NOTE,
    Right.TRIAGE,
    Right.EDIT,
    Right.REDRIVE,
    Right.DISCARD,
    Right.RESTORE,
    Right.EXPORT,
}
_APPROVER = _OPERATOR | {Right.APPROVE, Right.UNMASK, Right.READ_AUDIT}

#: The table.
RIGHTS: Mapping[Role, frozenset[Right]] = {
    Role.VIEWER: frozenset(_VIEWER),
    Role.OPERATOR: frozenset(_OPERATOR),
    Role.APPROVER: frozenset(_APPROVER),
    Role.ADMIN: frozenset(Right),
}


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and what for."""

    name: str
    role: Role
    #: The API token by which they do, if it is one.
    token: str | None = None
    #: The request that a second person approved, while it is carried out.
    approval: int | None = None
    approved_by: str | None = None

    @property
    def told(self) -> dict[str, Any]:
        """What the record of an action says of its actor besides the name."""
        told = {"token": self.token, "approval": self.approval, "approved_by": self.approved_by}
        return {name: value for name, value in told.items() if value is not None}

    def may(self, right: Right) -> bool:
        """Whether this one has *right*."""
        return right in RIGHTS[self.role]

    def must(self, right: Right) -> None:
        """Raise `Forbidden` unless this one has *right*."""
        if not self.may(right):
            least = next(role for role in Role if right in RIGHTS[role])
            raise Forbidden(f"{self.name} is {self.role.a} and may not {right}: that takes {least.a}.")
