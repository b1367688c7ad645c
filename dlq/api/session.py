"""Signing in and out with a password, and who one is."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, SecretStr

from ackline.dlq.api.access import (
    COOKIE,
    PROTECTED,
    By,
    Known,
    SignedIn,
    keep_session,
    refuse_other_sites,
)
from ackline.dlq.api.service import Served, Service
from ackline.dlq.api.values import Body, Name
from ackline.dlq.rights import RIGHTS, Right, Role

router = APIRouter(tags=["session"])


class Credentials(Body):
    """A name and its password."""

    name: Name
    password: SecretStr = Field(max_length=1_000)


class Me(BaseModel):
    """Who acts."""

    name: str
    role: Role
    rights: list[Right]
    by: By = Field(description="How that is known; `machine`: the desk has no people yet.")
    csrf_token: str | None = Field(description="Of a session: for the header X-CSRF-Token.")


@router.post("/api/session", summary="Sign in")
def sign_in(request: Request, response: Response, served: Served, body: Credentials) -> Me:
    """Answers with the cookie of a session, of 8 hours without a request and 24 hours at most."""
    refuse_other_sites(request)
    people = served.desk.people
    session = people.login(body.name, body.password.get_secret_value())
    keep_session(response, request, served, session)
    return _me(SignedIn(people.by_session(session), By.SESSION, session), served)


@router.delete("/api/session", status_code=204, dependencies=PROTECTED, summary="Sign out")
def sign_out(known: Known, response: Response, served: Served) -> None:
    """Ends the session."""
    if known.session is not None:
        served.desk.people.logout(known.session)
    response.delete_cookie(COOKIE)


@router.get("/api/me", dependencies=PROTECTED, summary="Who one is, and what one may do")
def me(known: Known, served: Served) -> Me:
    """By the token, or the session."""
    return _me(known, served)


def _me(known: SignedIn, served: Service) -> Me:
    actor = known.actor
    return Me(
        name=actor.name,
        role=actor.role,
        rights=[right for right in Right if right in RIGHTS[actor.role]],
        by=known.by,
        csrf_token=None if known.session is None else served.desk.people.csrf_of(known.session),
    )
