"""Who acts: the person of an API token or of a session's cookie; on a desk without people, whoever is at this machine.

What a browser adds to a request by itself proves nothing about who wrote the request: a page of another site can send
one here as well. So what comes with a cookie, or with nothing because this machine alone can reach the desk, is served
only

- if no page of another site sent it (`Sec-Fetch-Site`, and `Origin`, which every browser sends with what is not a GET);
- with the session's CSRF token in a header, where it changes something;
- on a desk without people, under a name of this machine only, for the name of another site may have been made to lead
  here (DNS rebinding), and not through a proxy, behind which may be anybody.

A token in the header `Authorization` is sent by nobody who does not have it, and needs none of this.
"""

from __future__ import annotations

from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

from fastapi import Depends, Request, Response, Security
from fastapi.security import APIKeyCookie, APIKeyHeader, HTTPBearer

from ackline.dlq.api.service import Served, Service
from ackline.dlq.errors import NotSignedIn
from ackline.dlq.rights import Actor, Role
from ackline.infra.hosts import is_loopback
from ackline.producer.gateway.problems import Refusal

COOKIE = "ackline_session"
CSRF_HEADER = "X-CSRF-Token"
_SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
#: What a proxy adds.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")

#: For OpenAPI, and for the page that tries the calls out.
_DOCUMENTED = (
    Security(HTTPBearer(auto_error=False, description="An API token, `ackd_…`.")),
    Security(APIKeyCookie(name=COOKIE, auto_error=False, description="A session: `POST /api/session`.")),
    Security(
        APIKeyHeader(
            name=CSRF_HEADER,
            auto_error=False,
            description="With the cookie, for whatever is not a GET: `csrf_token` of `GET /api/me`.",
        )
    ),
)


class By(StrEnum):
    """How somebody proved who they are."""

    TOKEN = "token"  # noqa: S105
    SESSION = "session"
    MACHINE = "machine"


class SignedIn(NamedTuple):
    """Who acts, and how that is known. session: its token."""

    actor: Actor
    by: By
    session: str | None = None


def signed_in(request: Request, served: Served) -> SignedIn:
    """Who makes *request*. Raises `NotSignedIn`, `Refusal` (403)."""
    header = request.headers.get("authorization")
    if header is not None:
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise NotSignedIn("The Authorization header must read: Authorization: Bearer ackd_….")
        return SignedIn(served.desk.people.by_token(token.strip()), By.TOKEN)
    if not served.desk.people.exist():
        return SignedIn(_at_this_machine(request, served), By.MACHINE)
    session = request.cookies.get(COOKIE)
    if not session:
        raise NotSignedIn("Sign in first: POST /api/session, or an API token as `Authorization: Bearer ackd_…`.")
    refuse_other_sites(request)
    actor = served.desk.people.by_session(session)
    if request.method not in _SAFE and not served.desk.people.is_csrf(session, request.headers.get(CSRF_HEADER, "")):
        raise Refusal(
            HTTPStatus.FORBIDDEN,
            f"The header {CSRF_HEADER} does not hold this session's token: take `csrf_token` of GET /api/me.",
        )
    return SignedIn(actor, By.SESSION, session)


def _at_this_machine(request: Request, served: Service) -> Actor:
    """The user of this machine, of whom nothing is asked while the desk has no people."""
    if not is_loopback(_host(request)):
        raise Refusal(
            HTTPStatus.FORBIDDEN,
            "This desk has no people yet, so it answers under a name of this machine only, such as 127.0.0.1: "
            "add somebody with `ackline people add NAME --role admin`.",
        )
    if any(name in request.headers for name in _FORWARDED):
        raise Refusal(
            HTTPStatus.FORBIDDEN,
            "This desk has no people yet, so it does not answer through a proxy, which anybody may reach: "
            "add somebody with `ackline people add NAME --role admin`.",
        )
    refuse_other_sites(request)
    return Actor(served.settings.acting, Role.ADMIN)


def _host(request: Request) -> str:
    """The name under which this server was asked, without its port; IPv6 without brackets."""
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


def refuse_other_sites(request: Request) -> None:
    """Raise `Refusal` (403) when a browser says that a page of another origin made *request*."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    origin = request.headers.get("origin")
    if site in ("same-origin", "none") and (origin is None or _is_own(origin, request)):
        return
    raise Refusal(HTTPStatus.FORBIDDEN, "Pages of other sites may not use this desk with somebody's browser.")


def _is_own(origin: str, request: Request) -> bool:
    try:
        return urlsplit(origin).netloc == request.headers.get("host")
    except ValueError:
        return False


def actor(found: Annotated[SignedIn, Depends(signed_in)]) -> Actor:
    """Who acts."""
    return found.actor


def keep_session(response: Response, request: Request, served: Service, session: str) -> None:
    """Give the browser the cookie of a session."""
    response.set_cookie(
        COOKIE,
        session,
        path="/",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https" or not is_loopback(served.settings.desk_host),
    )


#: Of routes: what they need.
PROTECTED = _DOCUMENTED
Acting = Annotated[Actor, Depends(actor)]
Known = Annotated[SignedIn, Depends(signed_in)]
