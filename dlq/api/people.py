"""People and their API tokens."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field, SecretStr

from ackline.dlq.api.access import Acting
from ackline.dlq.api.service import Served
from ackline.dlq.api.values import MAX_ID, MAX_NAME, Body, Name, Reason, Why
from ackline.dlq.passwords import LONGEST
from ackline.dlq.people import TOKEN_DAYS, Person, Token
from ackline.dlq.rights import Role

router = APIRouter(tags=["people"])

PersonName = Annotated[str, Path(alias="name", max_length=MAX_NAME, description="Of a person.")]
Password = Annotated[SecretStr, Field(max_length=LONGEST)]


class NewPerson(Body):
    """Somebody who becomes known."""

    name: Name
    role: Role
    password: Password | None = Field(default=None, description="None: for who only acts by API tokens.")


class PersonChange(Body):
    """What changes about somebody; what is left out stays as it is."""

    role: Role | None = None
    disabled: bool | None = None
    reason: Reason


class NewPassword(Body):
    """Somebody's new password."""

    password: Password
    current: Password | None = Field(default=None, description="One's own; an admin sets others' without it.")


class NewToken(Body):
    """An API token to be."""

    name: Name
    person: Name | None = Field(default=None, description="For whom it acts; oneself, unless one manages people.")
    role: Role | None = Field(default=None, description="What it may do at most; else all that its person may.")
    days: float | None = Field(default=TOKEN_DAYS, allow_inf_nan=False, description="null: until it is revoked.")


class CreatedToken(BaseModel):
    """An API token, which is shown this once."""

    secret: str = Field(description="For the header: Authorization: Bearer SECRET.")
    token: Token


@router.get("/api/people", summary="Everybody who is known here")
def listed(who: Acting, served: Served) -> list[Person]:
    """By name."""
    return list(served.desk.people.list(who))


@router.post("/api/people", status_code=201, summary="Make somebody known")
def added(who: Acting, served: Served, body: NewPerson) -> Person:
    """The first one must be an admin; from then on nobody uses the desk who is not known."""
    password = None if body.password is None else body.password.get_secret_value()
    return served.desk.people.add(who, body.name, body.role, password)


@router.get("/api/people/{name}", summary="One person")
def shown(who: Acting, served: Served, name: PersonName) -> Person:
    """Who it is."""
    return served.desk.people.get(who, name)


@router.patch("/api/people/{name}", summary="Change somebody's role, or whether they are let in")
def changed(who: Acting, served: Served, name: PersonName, body: PersonChange) -> Person:
    """At once: sessions and tokens of who is disabled are over."""
    people = served.desk.people
    person = people.get(who, name) if body.role is None else people.set_role(who, name, body.role, body.reason)
    if body.disabled is not None:
        change = people.disable if body.disabled else people.enable
        person = change(who, name, body.reason)
    return person


@router.put("/api/people/{name}/password", status_code=204, summary="Set a password")
def password_set(who: Acting, served: Served, name: PersonName, body: NewPassword) -> None:
    """Ends that person's sessions."""
    current = None if body.current is None else body.current.get_secret_value()
    served.desk.people.set_password(who, name, body.password.get_secret_value(), current)


@router.get("/api/tokens", summary="API tokens")
def tokens(
    who: Acting,
    served: Served,
    person: Annotated[Name | None, Query(description="Whose; else all that one may see.")] = None,
) -> list[Token]:
    """Without their secrets, which nobody has any more."""
    return list(served.desk.people.tokens(who, person))


@router.post("/api/tokens", status_code=201, summary="Make an API token")
def token_created(who: Acting, served: Served, body: NewToken) -> CreatedToken:
    """Whoever has it may do what its person may."""
    secret, token = served.desk.people.create_token(who, body.name, person=body.person, role=body.role, days=body.days)
    return CreatedToken(secret=secret, token=token)


@router.post("/api/tokens/{id}/revoke", summary="Revoke an API token")
def token_revoked(
    who: Acting,
    served: Served,
    token_id: Annotated[int, Path(alias="id", ge=1, le=MAX_ID, description="Of the token.")],
    body: Why,
) -> Token:
    """For good, at once."""
    return served.desk.people.revoke_token(who, token_id, body.reason)
