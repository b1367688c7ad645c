"""Each role and each call of the desk, by one table. A call that is in no row fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Mount, Route

from ackline.dlq.api import create_app
from ackline.dlq.rights import RIGHTS, Right, Role
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from tests.broker import fresh_vhost, settings_for
from tests.desk import Desk, serving
from tests.doors import problem
from tests.letters import letter

WHY = {"reason": "a test"}
SOME = {"selection": {"ids": [1]}}
PATCH = {"patch": [{"op": "replace", "path": "/order_id", "value": "A-2"}]}
#: Nothing has this id, so that nothing happens, whoever asks.
NOBODYS = 999_999


class Call(NamedTuple):
    """A call, and what it takes; None: to be signed in."""

    method: str
    path: str
    right: Right | None
    json: dict[str, Any] | None = None
    headers: dict[str, str] = {}  # noqa: RUF012
    content: bytes | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


LETTER, REDRIVE = "/api/dead-letters/{id}", "/api/redrives/{id}"
SEEN = {"If-Match": '"0"'}
CALLS = (
    Call("GET", "/api/me", None),
    Call("DELETE", "/api/session", None),
    Call("GET", "/api/events", Right.VIEW),
    # dead letters
    Call("GET", "/api/dead-letters", Right.VIEW),
    Call("GET", "/api/dead-letters/counts", Right.VIEW),
    Call("GET", LETTER, Right.VIEW),
    Call("GET", LETTER + "/payload", Right.VIEW),
    Call("GET", LETTER + "/versions", Right.VIEW),
    Call("POST", LETTER + "/payload", Right.UNMASK, WHY),
    Call("POST", LETTER + "/unmask", Right.UNMASK, WHY),
    Call("POST", LETTER + "/notes", Right.NOTE, {"text": "a test"}),
    Call("POST", LETTER + "/discard", Right.DISCARD, WHY),
    Call("POST", LETTER + "/restore", Right.RESTORE, WHY),
    Call("POST", LETTER + "/edits", Right.EDIT, WHY | {"payload": "{}"}, SEEN),
    Call("POST", LETTER + "/revert", Right.EDIT, WHY | {"to_version": 0}, SEEN),
    Call("POST", LETTER + "/retry", Right.REDRIVE, WHY),
    Call("POST", "/api/discards", Right.DISCARD, SOME | WHY),
    Call("POST", "/api/restores", Right.RESTORE, {"ids": [1]} | WHY),
    Call("POST", "/api/actions/{id}/undo", Right.RESTORE, WHY),
    Call("GET", "/api/export", Right.EXPORT),
    Call("POST", "/api/export", Right.UNMASK, SOME | WHY),
    Call("POST", "/api/import", Right.IMPORT, None, {"Content-Type": "application/x-ndjson"}, b""),
    # groups
    Call("GET", "/api/groups", Right.VIEW),
    Call("GET", "/api/groups/{fingerprint}", Right.VIEW),
    Call("PATCH", "/api/groups/{fingerprint}", Right.TRIAGE, {"owner": "ada"}),
    # redrives
    Call("POST", "/api/patches/preview", Right.EDIT, SOME | PATCH),
    Call("POST", "/api/retries", Right.REDRIVE, {"ids": [1]} | WHY),
    Call("GET", "/api/redrives", Right.VIEW),
    Call("POST", "/api/redrives", Right.REDRIVE, SOME | WHY),
    Call("GET", REDRIVE, Right.VIEW),
    Call("GET", REDRIVE + "/items", Right.VIEW),
    Call("GET", REDRIVE + "/statement", Right.VIEW),
    Call("POST", REDRIVE + "/start", Right.REDRIVE),
    Call("POST", REDRIVE + "/pause", Right.REDRIVE),
    Call("POST", REDRIVE + "/resume", Right.REDRIVE),
    Call("POST", REDRIVE + "/rate", Right.REDRIVE, {"rate": 5}),
    Call("POST", REDRIVE + "/cancel", Right.REDRIVE),
    # people, and what they did
    Call("GET", "/api/approvals", Right.VIEW),
    Call("GET", "/api/approvals/{id}", Right.VIEW),
    Call("POST", "/api/approvals/{id}/approve", Right.APPROVE, WHY),
    Call("POST", "/api/approvals/{id}/refuse", Right.APPROVE, WHY),
    Call("POST", "/api/approvals/{id}/withdraw", None, WHY),
    Call("GET", "/api/audit", Right.READ_AUDIT),
    Call("GET", "/api/audit/export", Right.READ_AUDIT),
    Call("GET", "/api/audit/verify", Right.READ_AUDIT),
    Call("GET", "/api/actions/{id}/items", Right.READ_AUDIT),
    Call("GET", "/api/ledger", Right.VIEW),
    Call("GET", "/api/people", Right.VIEW),
    Call("POST", "/api/people", Right.MANAGE_PEOPLE, {"name": "eve", "role": "viewer"}),
    Call("GET", "/api/people/{name}", Right.VIEW),
    Call("PATCH", "/api/people/{name}", Right.MANAGE_PEOPLE, WHY | {"role": "viewer"}),
    Call("PUT", "/api/people/{name}/password", Right.MANAGE_PEOPLE, {"password": "correct horse battery"}),
    Call("GET", "/api/tokens", Right.VIEW),
    Call("POST", "/api/tokens", Right.VIEW, {"name": "another"}),
    Call("POST", "/api/tokens/{id}/revoke", None, WHY),
)
#: What whoever reaches the desk may call.
OPEN = {("GET", path) for path in ("/healthz", "/readyz", "/docs", "/openapi.json")} | {("POST", "/api/session")}
#: What it takes to see it is tested elsewhere.
APART = {("GET", "/metrics")}


@pytest.fixture(scope="module")
def desk(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk with two dead letters, for all tests here; the first one is what calls work on."""
    with fresh_vhost(broker) as vhost:
        settings = settings_for(vhost.amqp_url, vhost.management_url, tmp_path_factory.mktemp("desk") / "data")
        with serving(settings) as running:
            running.arrives(letter(), letter("m-2"))
            yield running


@pytest.fixture(scope="module")
def people(desk: Desk) -> dict[Role, httpx.Client]:
    """Somebody of each role."""
    return {role: desk.person(role, role) for role in reversed(Role)}


def test_every_call_is_in_the_table(ackline_settings: Settings) -> None:
    rows = [(call.method, call.path) for call in CALLS]
    assert len(rows) == len(set(rows))
    assert set(rows) | OPEN | APART == set(routes(create_app(ackline_settings).routes))


def routes(found: Sequence[BaseRoute]) -> Iterator[tuple[str, str]]:
    """Each call that *found* answers, those of included routers too."""
    for route in found:
        if inner := getattr(route, "original_router", None):
            yield from routes(inner.routes)
        elif isinstance(route, (APIRoute, Route)):
            yield from ((method, route.path) for method in route.methods or () if method != "HEAD")
        else:
            assert isinstance(route, Mount), route
            assert route.path == "/docs/assets"


def ask(client: httpx.Client, call: Call) -> httpx.Response:
    """Make the call; of a stream only the head is read."""
    path = call.path.format(id=NOBODYS if "{id}" in call.path else "", fingerprint="none", name="nobody")
    with client.stream(call.method, path, json=call.json, content=call.content, headers=call.headers) as answer:
        if "event-stream" not in answer.headers.get("content-type", ""):
            answer.read()
        return answer


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("role", Role)
def test_a_role_may_do_what_the_table_of_rights_says_and_nothing_else(
    people: dict[Role, httpx.Client], role: Role, call: Call
) -> None:
    answer = ask(people[role], call)
    if call.right is None or call.right in RIGHTS[role]:
        assert answer.status_code in (200, 201, 204, 404, 409), answer.text
    else:
        assert problem(answer, 403)["detail"].startswith(f"{role} is ")


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_nobody_may_do_anything(desk: Desk, people: dict[Role, httpx.Client], call: Call) -> None:
    problem(ask(desk.client, call), 401)


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.ADMIN])
def test_nobody_but_an_admin_reaches_anothers_tokens_and_password(people: dict[Role, httpx.Client], role: Role) -> None:
    client = people[role]
    [mine] = [token["id"] for token in client.get("/api/tokens").json() if token["name"] == "test"]
    for other in people[Role.ADMIN].get("/api/tokens").json():
        if other["person"] != role:
            problem(client.post(f"/api/tokens/{other['id']}/revoke", json=WHY), 403)
    assert {token["person"] for token in client.get("/api/tokens").json()} == {str(role)}
    problem(client.get("/api/tokens", params={"person": "admin"}), 403)
    problem(client.post("/api/tokens", json={"name": "theirs", "person": "admin"}), 403)
    problem(client.post("/api/tokens", json={"name": "more", "role": "admin"}), 403)
    problem(client.put("/api/people/admin/password", json={"password": "correct horse battery"}), 403)
    assert client.get("/api/me").json()["role"] == role, mine


def test_a_token_may_do_no_more_than_it_was_made_for(desk: Desk, people: dict[Role, httpx.Client]) -> None:
    made = people[Role.ADMIN].post("/api/tokens", json={"name": "seeing", "role": "viewer"}).json()
    seeing = desk.caller(Authorization=f"Bearer {made['secret']}")
    problem(seeing.post("/api/dead-letters/2/discard", json=WHY), 403)
    assert seeing.get("/api/dead-letters/2").json()["state"] == "in review"
