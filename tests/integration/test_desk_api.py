"""The desk over HTTP: who may use it from where, and what each call answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, Field, SecretStr

from ackline.infra import database
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from ackline.infra.topology import ConsumerQueue, declare
from ackline.producer import message
from tests.broker import fresh_vhost, settings_for
from tests.desk import PASSWORD, Desk, serving
from tests.doors import problem
from tests.letters import letter
from tests.postgresql import fresh_database
from tests.roles import listening, role, run
from tests.waiting import until

WHY = {"reason": "a test"}


@pytest.fixture
def desk(ackline_settings: Settings) -> Iterator[Desk]:
    """A desk with nothing in it, and nobody."""
    with serving(ackline_settings) as running:
        yield running


@pytest.fixture(scope="module")
def shared(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk without people, with dead letters that no test here changes."""
    with fresh_vhost(broker) as vhost:
        settings = settings_for(vhost.amqp_url, vhost.management_url, tmp_path_factory.mktemp("desk") / "data")
        with seven(settings) as running:
            yield running


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def either(shared: Desk, request: pytest.FixtureRequest) -> Iterator[Desk]:
    """The same on each database."""
    if request.param == "sqlite":
        yield shared
        return
    server = request.getfixturevalue("postgresql_server")
    with fresh_database(server) as url, seven(shared.settings.model_copy(update={"database_url": url})) as running:
        yield running


@contextmanager
def seven(settings: Settings) -> Iterator[Desk]:
    with serving(settings) as running:
        running.arrives(*(letter(f"m-{number}") for number in range(7)))
        yield running


def signed_in(desk: Desk, name: str = "ada") -> httpx.Client:
    """A browser in which *name*, an admin, has signed in."""
    desk.person(name)
    client = desk.caller()
    answer = client.post("/api/session", json={"name": name, "password": f"{PASSWORD} of theirs"})
    assert answer.status_code == 200, answer.text
    client.headers["X-CSRF-Token"] = answer.json()["csrf_token"]
    return client


# --- a desk without people --------------------------------------------------------------------------------------------


def test_without_people_whoever_is_at_the_machine_may_do_everything(desk: Desk, ackline_settings: Settings) -> None:
    me = desk.client.get("/api/me").json()
    assert (me["name"], me["role"], me["by"], me["csrf_token"]) == (ackline_settings.acting, "admin", "machine", None)
    desk.arrives(letter())
    assert desk.client.post("/api/dead-letters/1/discard", json=WHY).json()["count"] == 1
    [action] = desk.client.get("/api/audit").json()["items"]
    assert (action["actor"], action["action"], action["reason"]) == (ackline_settings.acting, "discard", "a test")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://elsewhere.test"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "elsewhere.test"},
        {"Host": "127.0.0.1.elsewhere.test"},
        {"Host": "[::1"},
        {"Host": ""},
        {"X-Forwarded-For": "203.0.113.7"},
        {"Forwarded": "for=203.0.113.7"},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_people_no_page_of_another_site_and_no_proxy_can_use_it(
    shared: Desk, method: str, headers: dict[str, str]
) -> None:
    path = "/api/me" if method == "GET" else "/api/dead-letters/1/discard"
    answer = shared.client.request(method, path, headers=headers, json=None if method == "GET" else WHY)
    problem(answer, 403)
    assert shared.client.get("/api/dead-letters/1").json()["state"] == "in review"


def test_its_own_page_can_use_it(desk: Desk) -> None:
    desk.arrives(letter())
    headers = {"Origin": str(desk.client.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert desk.client.post("/api/dead-letters/1/discard", json=WHY, headers=headers).status_code == 200


def test_a_form_or_a_text_of_another_page_is_never_read_as_json(shared: Desk) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        headers = {"Content-Type": kind} if kind else {}
        answer = shared.client.post("/api/dead-letters/1/discard", content=b'{"reason": "x"}', headers=headers)
        assert answer.status_code == 422, kind
    assert shared.client.get("/api/dead-letters/1").json()["state"] == "in review"


def test_it_closes_when_the_first_person_is_there(desk: Desk) -> None:
    made = desk.client.post("/api/people", json={"name": "ada", "role": "admin", "password": PASSWORD})
    assert made.status_code == 201, made.text
    assert problem(desk.client.get("/api/me"), 401)["detail"].startswith("Sign in first")


def test_the_first_person_must_be_an_admin(desk: Desk) -> None:
    problem(desk.client.post("/api/people", json={"name": "ada", "role": "viewer", "password": PASSWORD}), 409)
    assert desk.client.get("/api/me").json()["by"] == "machine"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_it_does_not_listen_on_other_hosts_behalf_without_people(ackline_settings: Settings, host: str) -> None:
    done = run(ackline_settings, "desk", "--host", host, "--port", "0")
    assert done.returncode != 0
    assert done.stderr == (
        f"ackline: The desk does not listen on {host} without people, since anybody could read, change and discard "
        "dead letters: add somebody with `ackline people add NAME --role admin`, or set ACKLINE_DESK_HOST=127.0.0.1.\n"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACKLINE_APP", "no_such_module"),
        ("ACKLINE_APPROVAL_RULES", '[{"action": "dance"}]'),
        ("ACKLINE_DESK_PORT", "x"),
    ],
)
def test_what_is_wrong_with_its_settings_is_said_in_a_sentence(
    ackline_settings: Settings, name: str, value: str
) -> None:
    done = run(ackline_settings, "desk", timeout=120, **{"ACKLINE_DESK_PORT": "0", name: value})
    assert done.returncode != 0
    assert done.stderr.startswith("ackline: ")
    assert done.stderr.count("\n") == 1
    assert name in done.stderr


def test_with_people_it_listens_on_other_hosts_behalf(ackline_settings: Settings) -> None:
    with serving(ackline_settings) as desk:
        ada = desk.person("ada")
    with role(ackline_settings, "desk", "--host", "0.0.0.0", "--port", "0") as process:
        with httpx.Client(base_url=listening(process), trust_env=False, timeout=90) as client:
            problem(client.get("/api/me"), 401)
            headers = {"Authorization": ada.headers["authorization"], "Host": "desk.example.test"}
            answer = client.get("/api/me", headers=headers)
            assert answer.json()["name"] == "ada"
        assert process.stop() == 0
        assert "Traceback" not in process.log.read_text()


# --- signing in -------------------------------------------------------------------------------------------------------


def test_a_session_is_a_cookie_that_no_script_reads_and_no_other_site_sends(desk: Desk) -> None:
    desk.person("ada")
    answer = desk.client.post("/api/session", json={"name": "Ada ", "password": f"{PASSWORD} of theirs"})
    assert answer.json()["by"] == "session"
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie, "this is http on loopback"
    assert desk.client.get("/api/me").json()["name"] == "ada"


def test_behind_tls_or_on_another_address_the_cookie_is_for_tls_only(ackline_settings: Settings) -> None:
    for settings in (ackline_settings, ackline_settings.model_copy(update={"desk_host": "0.0.0.0"})):
        with serving(settings) as desk:
            if settings is ackline_settings:
                desk.person("ada")
            headers = {"X-Forwarded-Proto": "https"} if settings is ackline_settings else {}
            body = {"name": "ada", "password": f"{PASSWORD} of theirs"}
            assert "Secure" in desk.client.post("/api/session", json=body, headers=headers).headers["set-cookie"]


def test_what_changes_something_needs_the_sessions_token_too(desk: Desk) -> None:
    desk.arrives(letter())
    client = signed_in(desk)
    right = client.headers.pop("X-CSRF-Token")
    other = signed_in(desk, "grace").headers["X-CSRF-Token"]
    for wrong in ({}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": other}, {"X-CSRF-Token": right[:-1]}):
        answer = client.post("/api/dead-letters/1/discard", json=WHY, headers=wrong)
        assert "X-CSRF-Token" in problem(answer, 403)["detail"]
    assert client.get("/api/dead-letters/1").json()["state"] == "in review"
    answer = client.post("/api/dead-letters/1/discard", json=WHY, headers={"X-CSRF-Token": right})
    assert answer.status_code == 200


def test_no_page_of_another_site_can_use_a_session_or_begin_one(desk: Desk) -> None:
    client = signed_in(desk)
    for headers in ({"Origin": "https://elsewhere.test"}, {"Sec-Fetch-Site": "cross-site"}):
        problem(client.get("/api/me", headers=headers), 403)
        body = {"name": "ada", "password": f"{PASSWORD} of theirs"}
        problem(desk.caller().post("/api/session", json=body, headers=headers), 403)


def test_who_signs_out_is_out(desk: Desk) -> None:
    client = signed_in(desk)
    session = client.cookies["ackline_session"]
    assert client.delete("/api/session").status_code == 204
    assert dict(client.cookies) == {}
    answer = desk.caller(Cookie=f"ackline_session={session}").get("/api/me")
    assert problem(answer, 401)["detail"] == "The session is over: sign in again."


def test_a_wrong_name_and_a_wrong_password_are_answered_alike_and_then_throttled(desk: Desk) -> None:
    desk.person("ada")
    ada, eve = (
        desk.client.post("/api/session", json={"name": name, "password": "wrong wrong wrong"})
        for name in ("ada", "eve")
    )
    assert problem(ada, 401) == problem(eve, 401)

    def refused() -> httpx.Response | None:
        answer = desk.client.post("/api/session", json={"name": "ada", "password": "wrong wrong wrong"})
        return answer if answer.status_code == 429 else None

    found = until(refused, what="the throttle")
    problem(found, 429)
    assert int(found.headers["retry-after"]) > 0


def test_a_token_needs_no_more_and_says_whose_it_is(desk: Desk) -> None:
    ada = desk.person("ada")
    me = ada.get("/api/me", headers={"Origin": "https://elsewhere.test", "Host": "desk.example.test"}).json()
    assert (me["name"], me["by"], me["csrf_token"]) == ("ada", "token", None)


@pytest.mark.parametrize(
    "header", ["Bearer", "Basic YTpi", "Bearer ackd_guessed", "Bearer \xff\xfe", "ackd_x", "Bearer a b"]
)
def test_what_is_no_token_is_nobody_even_where_nobody_needs_one(shared: Desk, header: str) -> None:
    answer = shared.client.get("/api/me", headers=[(b"Authorization", header.encode("latin-1"))])
    problem(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_token_that_is_revoked_and_a_person_who_is_disabled_are_out_at_once(desk: Desk) -> None:
    ada, grace = desk.person("ada"), desk.person("grace")
    made = ada.post("/api/tokens", json={"name": "ci", "role": "viewer"})
    assert made.status_code == 201, made.text
    ci = desk.caller(Authorization=f"Bearer {made.json()['secret']}")
    assert ci.get("/api/me").json()["role"] == "viewer"
    assert ada.post(f"/api/tokens/{made.json()['token']['id']}/revoke", json=WHY).status_code == 200
    problem(ci.get("/api/me"), 401)
    assert ada.patch("/api/people/grace", json=WHY | {"disabled": True}).json()["disabled_at"]
    problem(grace.get("/api/me"), 401)
    assert ada.patch("/api/people/grace", json=WHY | {"disabled": False, "role": "viewer"}).json()["role"] == "viewer"
    assert grace.get("/api/me").json()["role"] == "viewer"


def test_no_answer_tells_a_secret_of_a_person_or_a_token(desk: Desk) -> None:
    ada = desk.person("ada")
    ada.put("/api/people/ada/password", json={"password": f"another {PASSWORD}"})
    told = "".join(ada.get(path).text for path in ("/api/people", "/api/people/ada", "/api/tokens", "/api/audit"))
    assert "argon2" not in told
    assert PASSWORD not in told
    assert str(ada.headers["authorization"]).removeprefix("Bearer ") not in told


# --- dead letters -----------------------------------------------------------------------------------------------------


def pages(client: httpx.Client, path: str, **query: Any) -> list[list[dict[str, Any]]]:
    """All pages of a list."""
    found = []
    after: dict[str, Any] = {}
    while True:
        answer = client.get(path, params=query | after)
        assert answer.status_code == 200, answer.text
        found.append(answer.json()["items"])
        if answer.json()["next"] is None:
            return found
        after = {"after": answer.json()["next"]}


def test_a_list_is_walked_by_its_cursors_newest_first(shared: Desk) -> None:
    walked = pages(shared.client, "/api/dead-letters", limit=3)
    assert [[item["message_id"] for item in page] for page in walked if page] == [
        ["m-6", "m-5", "m-4"],
        ["m-3", "m-2", "m-1"],
        ["m-0"],
    ]


@pytest.mark.parametrize("cursor", ["", "1", "!", "W10", "bnVsbA", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OQ", "é", "A" * 3000])
@pytest.mark.parametrize("path", ["dead-letters", "groups", "audit", "approvals", "redrives"])
def test_what_is_no_cursor_is_refused(either: Desk, path: str, cursor: str) -> None:
    problem(either.client.get(f"/api/{path}", params={"after": cursor}), 422)


@pytest.mark.parametrize("path", ["dead-letters", "groups", "audit", "approvals", "redrives", "redrives/1/items"])
@pytest.mark.parametrize("limit", ["0", "501", "-1", "1e3", "many", "", "99999999999999999999"])
def test_no_page_is_larger_than_it_may_be(shared: Desk, path: str, limit: str) -> None:
    problem(shared.client.get(f"/api/{path}", params={"limit": limit}), 422)


@pytest.mark.parametrize("number", ["0", "-1", "9223372036854775808", "1" * 5000, "one", "1.5", "%00", "1%20OR%201=1"])
@pytest.mark.parametrize("path", ["dead-letters/{}", "redrives/{}", "approvals/{}", "actions/{}/items"])
def test_what_can_be_no_id_is_refused(either: Desk, path: str, number: str) -> None:
    problem(either.client.get("/api/" + path.format(number)), 422)


def test_numbers_that_no_database_keeps_are_refused_or_of_nothing(either: Desk) -> None:
    for number in (2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**30):
        for name in ("attempts_min", "attempts_max", "ids", "after"):
            assert either.client.get("/api/dead-letters", params={name: number}).status_code in (200, 422)
        for path, name in (("dead-letters/1/payload", "version"), ("audit", "dead_letter"), ("audit/export", "after")):
            assert either.client.get(f"/api/{path}", params={name: number}).status_code in (404, 422, 200)
        seen = {"If-Match": f'"{number}"'}
        answer = either.client.post("/api/dead-letters/1/revert", json=WHY | {"to_version": number}, headers=seen)
        assert answer.status_code in (409, 422)


def test_a_filter_that_does_not_exist_is_refused_and_not_ignored(shared: Desk) -> None:
    found = problem(shared.client.get("/api/dead-letters", params={"consumr": "billing"}), 422)
    assert found["errors"][0]["field"] == "query.consumr"


#: Texts that would be more than a text if any of them became SQL, a pattern, JSON, a path or a shell's command.
HOSTILE = (
    "' OR '1'='1",
    "'; DROP TABLE dead_letters; --",
    '" OR 1=1 --',
    "x' UNION SELECT password_hash FROM people --",
    "1) OR (1=1",
    "%",
    "_",
    "*",
    "m-*",
    'NEAR("nobody" 2)',
    "nobody OR such NOT no",
    "^nobody",
    "{error_message} : nobody",
    "$.order_id",
    "payload.order_id",
    'payload.order_id = "A-1" OR 1=1',
    'payload.order_id = "A-1") OR ("1"="1',
    "payload['order_id'] exists; --",
    "payload.* exists",
    "payload..order_id exists",
    "${jndi:ldap://127.0.0.1/x}",
    "{{7*7}}",
    "$(id)",
    "\u202e\ufeff",
    "😀" * 100,
)
#: Filters of each list, and what they answer when nothing is filtered.
FILTERS = {
    "dead-letters": (
        *("ids", "states", "consumer", "type", "fingerprint", "source", "error_type", "message_id", "correlation_id"),
        *("attempts_min", "attempts_max", "received_since", "received_until", "text", "where", "after", "limit"),
    ),
    "groups": ("status", "consumer", "owner", "state", "text", "order", "after", "limit"),
    "audit": ("actor", "action", "dead_letter", "since", "until", "after", "limit"),
    "approvals": ("states", "after", "limit"),
    "redrives": ("after", "limit"),
    "export": ("ids", "states", "consumer", "type", "message_id", "text", "where", "received_since"),
}


@pytest.mark.parametrize("path", FILTERS)
def test_nothing_that_is_sent_as_a_filter_is_more_than_a_filter(either: Desk, path: str) -> None:
    """There is nothing of that name, or it is refused as none."""
    before = either.client.get("/api/dead-letters/counts").json()
    for name in FILTERS[path]:
        for hostile in (*HOSTILE, "nul\x00", "x" * 30_000):
            answer = either.client.get(f"/api/{path}", params={name: hostile})
            if answer.status_code == 200:
                found = answer.text if path == "export" else answer.json()["items"]
                assert not found, f"{name}={hostile!r} found something"
            else:
                problem(answer, 422)
    assert either.client.get("/api/dead-letters/counts").json() == before


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda text: repr(text[:20]))
def test_a_selection_in_a_body_is_no_more_than_a_filter_either(either: Desk, hostile: str) -> None:
    for name in FILTERS["dead-letters"]:
        value = [hostile] if name in ("ids", "states", "where") else hostile
        answer = either.client.post("/api/discards", json=WHY | {"selection": {name: value}})
        assert answer.status_code in (409, 422), f"{name}={hostile!r}: {answer.text}"
        assert problem(answer, answer.status_code)
    assert either.client.get("/api/dead-letters/counts").json()["in review"] == 7


# --- one dead letter --------------------------------------------------------------------------------------------------


@pytest.fixture
def contract(own_registry: None) -> None:
    """The application's contract of an order."""

    @message("order.placed")
    class OrderPlaced(BaseModel):
        order_id: str
        total: float = Field(default=0, ge=0)
        card: SecretStr = SecretStr("")


SCRIPT = b'{"order_id": "</script><script>alert(1)</script>", "card": "4111"}'


def test_a_stored_script_comes_back_as_data(desk: Desk) -> None:
    desk.arrives(letter(body=SCRIPT))
    for path in (
        "/api/dead-letters",
        "/api/dead-letters/1",
        "/api/groups",
        "/api/export",
        "/api/dead-letters/1/payload",
    ):
        answer = desk.client.get(path)
        assert answer.status_code == 200
        kind = answer.headers["content-type"]
        assert kind in ("application/json", "application/x-ndjson", "application/octet-stream"), path
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'; sandbox"
        assert answer.headers["cache-control"] == "no-store"
    raw = desk.client.get("/api/dead-letters/1/payload")
    assert raw.content == SCRIPT
    assert raw.headers["content-disposition"] == 'attachment; filename="dead-letter-1.bin"'
    refused = desk.client.get("/api/groups/<script>")
    assert problem(refused, 404)["detail"].startswith("There is no group '<script>'")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\x00\xfe",
        b'"\\ud800"',
        b'{"\\u0000": "\\udfff\\u0000"}',
        b"[" * 5000,
        b"1e400",
        b"NaN",
        b"9" * 5000,
        b'{"a":1e99999}',
    ],
    ids=lambda body: repr(body[:12]),
)
def test_whatever_a_payload_is_it_can_be_read(desk: Desk, body: bytes) -> None:
    desk.arrives(letter(body=body))
    shown = desk.client.get("/api/dead-letters/1")
    assert shown.status_code == 200
    assert shown.json()["payload"]["size"] == len(body)
    assert desk.client.get("/api/dead-letters/1/payload").content == body
    exported = desk.client.get("/api/export")
    assert len(exported.text.splitlines()) == 1
    assert json.loads(exported.text)["message_id"] == "m-1"


@pytest.mark.usefixtures("contract")
def test_what_a_contract_masks_is_shown_for_a_reason_which_is_kept(desk: Desk) -> None:
    desk.arrives(letter(body=SCRIPT))
    for path in ("/api/dead-letters/1", "/api/dead-letters/1/payload", "/api/dead-letters/1/versions", "/api/export"):
        assert "4111" not in desk.client.get(path).text
    problem(desk.client.post("/api/dead-letters/1/unmask", json={"reason": " "}), 422)
    assert "4111" in desk.client.post("/api/dead-letters/1/unmask", json=WHY).text
    assert desk.client.post("/api/dead-letters/1/payload", json=WHY).content == SCRIPT
    assert "4111" in desk.client.post("/api/export", json=WHY | {"selection": {}}).text
    kept = desk.client.get("/api/audit").json()["items"]
    assert [(action["action"], action["reason"]) for action in kept if action["reason"]] == [
        ("export", "a test"),
        ("unmask", "a test"),
        ("unmask", "a test"),
    ]


@pytest.mark.usefixtures("contract")
def test_an_edit_names_the_version_that_was_seen_and_fits_its_contract(desk: Desk) -> None:
    desk.arrives(letter(body=SCRIPT))
    path = "/api/dead-letters/1/edits"
    seen = desk.client.get("/api/dead-letters/1").headers["etag"]
    body = WHY | {"payload": '{"order_id": "A-2", "card": "4111"}'}
    assert "If-Match" in problem(desk.client.post(path, json=body), 428)["detail"]
    for wrong in ("*", 'W/"0"', "0", '"-1"', '"' + "9" * 50 + '"', "x" * 200):
        problem(desk.client.post(path, json=body, headers={"If-Match": wrong}), 422)
    headers = {"If-Match": seen}
    faulty = desk.client.post(path, json=WHY | {"payload": '{"order_id": 1, "total": -1}'}, headers=headers)
    assert {fault["field"] for fault in problem(faulty, 422)["errors"]} == {"payload.order_id", "payload.total"}
    made = desk.client.post(path, json=body, headers=headers)
    assert (made.status_code, made.headers["etag"], made.json()["version"]) == (201, '"1"', 1)
    assert desk.settings.acting in problem(desk.client.post(path, json=body, headers=headers), 409)["detail"]
    binary = WHY | {"payload_base64": base64.b64encode(b'{"order_id": "A-3"}').decode()}
    assert desk.client.post(path, json=binary, headers={"If-Match": '"1"'}).status_code == 201
    for both in (binary | {"payload": "{}"}, WHY | {"payload_base64": "no"}):
        problem(desk.client.post(path, json=both, headers={"If-Match": '"2"'}), 422)
    back = desk.client.post("/api/dead-letters/1/revert", json=WHY | {"to_version": 1}, headers={"If-Match": '"2"'})
    assert back.headers["etag"] == '"3"'
    assert [version["version"] for version in desk.client.get("/api/dead-letters/1/versions").json()] == [1, 2, 3]
    assert json.loads(desk.client.get("/api/dead-letters/1/payload").content)["order_id"] == "A-2"
    second = desk.client.get("/api/dead-letters/1/payload", params={"version": 2})
    assert json.loads(second.content)["order_id"] == "A-3"


def test_a_note_is_shown_with_its_dead_letter(desk: Desk) -> None:
    desk.arrives(letter())
    assert desk.client.post("/api/dead-letters/1/notes", json={"text": "ask Grace"}).status_code == 204
    [found] = desk.client.get("/api/dead-letters/1").json()["notes"]
    assert found["text"] == "ask Grace"


# --- many -------------------------------------------------------------------------------------------------------------


def test_many_are_discarded_when_they_are_as_many_as_was_said_and_brought_back(desk: Desk) -> None:
    desk.arrives(*(letter(f"m-{number}") for number in range(3)), letter("other", consumer="shipping"))
    selection = {"selection": {"consumer": "billing"}}
    assert "3" in problem(desk.client.post("/api/discards", json=WHY | selection | {"expect": 2}), 409)["detail"]
    done = desk.client.post("/api/discards", json=WHY | selection | {"expect": 3}).json()
    assert done["count"] == 3
    items = desk.client.get(f"/api/actions/{done['action']}/items").json()["items"]
    assert {(item["before"], item["after"]) for item in items} == {("in review", "discarded")}
    assert desk.client.post("/api/restores", json=WHY | {"ids": [1]}).json()["count"] == 1
    assert desk.client.post(f"/api/actions/{done['action']}/undo", json=WHY).json()["count"] == 2
    assert desk.client.get("/api/dead-letters/counts").json()["in review"] == 4
    problem(desk.client.post(f"/api/actions/{done['action']}/undo", json=WHY), 409)
    problem(desk.client.post("/api/actions/99/undo", json=WHY), 404)


def test_a_group_is_found_and_said_something_of(desk: Desk) -> None:
    desk.arrives(letter(), letter("m-2"))
    [group] = desk.client.get("/api/groups", params={"text": "such user"}).json()["items"]
    assert (group["counts"]["in review"], group["sample"]["id"]) == (2, 2)
    path = f"/api/groups/{group['fingerprint']}"
    said = desk.client.patch(path, json={"status": "acknowledged", "owner": "ada", "runbook": "https://wiki.test/x"})
    assert said.json()["owner"] == "ada"
    assert desk.client.get(path).json() == said.json()
    problem(desk.client.patch(path, json={"runbook": "javascript:alert(1)"}), 422)
    assert desk.client.get("/api/groups", params={"owner": ""}).json()["items"] == []


def test_a_redrive_is_planned_started_and_accounted_for(desk: Desk) -> None:
    desk.arrives(*(letter(f"m-{number}") for number in range(3)))
    declare(desk.settings.broker, [ConsumerQueue("billing", ("order.placed",))])
    planned = desk.client.post("/api/redrives", json=WHY | {"selection": {"consumer": "billing"}, "rate": 10})
    assert planned.status_code == 201, planned.text
    redrive = planned.json()
    assert (redrive["state"], redrive["plan"]["messages"], redrive["items"]["planned"]) == ("planned", 3, 3)
    path = f"/api/redrives/{redrive['id']}"
    assert desk.client.post(path + "/rate", json={"rate": None}).json()["rate"] is None
    assert desk.client.post(path + "/start").json()["state"] == "running"
    problem(desk.client.post(path + "/start"), 409)
    assert desk.client.post(path + "/pause").json()["state"] == "paused"
    assert desk.client.post(path + "/resume").json()["state"] == "running"
    assert desk.client.post(path + "/cancel").json()["state"] == "cancelled"
    [items] = pages(desk.client, path + "/items", state="skipped", limit=5)
    assert [item["dead_letter_id"] for item in items] == [1, 2, 3]
    statement = desk.client.get(path + "/statement").json()
    assert (statement["planned"], statement["items"]["skipped"], statement["adds_up"]) == (3, 3, True)
    assert [found["id"] for found in desk.client.get("/api/redrives").json()["items"]] == [redrive["id"]]


def test_what_one_person_has_sent_back_another_one_cannot(desk: Desk) -> None:
    desk.arrives(letter(), letter("m-2"))
    ada, grace = desk.person("ada"), desk.person("grace")
    assert ada.post("/api/dead-letters/1/retry", json=WHY).status_code == 200
    assert "ada" in problem(grace.post("/api/dead-letters/1/retry", json=WHY), 409)["detail"]
    both = grace.post("/api/retries", json=WHY | {"ids": [1, 2]}).json()
    assert (list(both["items"]), list(both["refused"])) == (["2"], ["1"])


def test_what_takes_two_people_waits_for_the_second(ackline_settings: Settings) -> None:
    rules = [{"action": "discard"}]
    with serving(ackline_settings.model_copy(update={"approval_rules": rules})) as desk:
        desk.arrives(letter())
        ada, grace = desk.person("ada"), desk.person("grace")
        waits = ada.post("/api/dead-letters/1/discard", json=WHY)
        assert (waits.status_code, waits.headers["location"]) == (202, "/api/approvals/1")
        assert waits.json()["approval"] == 1
        assert ada.get("/api/dead-letters/1").json()["state"] == "in review"
        problem(ada.post("/api/approvals/1/approve", json=WHY), 403)
        [request] = grace.get("/api/approvals", params={"states": "waiting"}).json()["items"]
        assert (request["requested_by"], request["reason"]) == ("ada", "a test")
        done = grace.post("/api/approvals/1/approve", json=WHY).json()
        assert (done["state"], done["decided_by"], done["result"]["count"]) == ("done", "grace", 1)
        assert ada.get("/api/dead-letters/1").json()["state"] == "discarded"
        problem(grace.post("/api/approvals/1/refuse", json=WHY), 409)


def test_the_record_is_read_exported_and_verified(desk: Desk) -> None:
    desk.arrives(letter())
    desk.client.post("/api/dead-letters/1/discard", json=WHY)
    desk.client.post("/api/dead-letters/1/restore", json=WHY)
    assert [[item["action"] for item in page] for page in pages(desk.client, "/api/audit", limit=1)] == [
        ["restore"],
        ["discard"],
    ]
    exported = desk.client.get("/api/audit/export")
    assert exported.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["id"] for line in exported.text.splitlines()] == [1, 2]
    found = desk.client.get("/api/audit/verify").json()
    assert (found["count"], found["broken"]) == (2, None)
    assert desk.client.get("/api/audit/verify", params={"expect": found["head"]}).json() == found
    cut_off = desk.client.get("/api/audit/verify", params={"expect": f"3:{'00' * 32}"}).json()
    assert cut_off["broken"]["kind"] == "cut off"
    problem(desk.client.get("/api/audit/verify", params={"expect": "2:guessed"}), 422)
    problem(desk.client.get("/api/audit/export", params={"after": 99}), 404)


def test_what_is_exported_here_can_be_imported_elsewhere(desk: Desk, tmp_path: Path) -> None:
    desk.arrives(letter(), letter("m-2", body=b"\xff\x00"))
    lines = desk.client.get("/api/export").content
    headers = {"Content-Type": "application/x-ndjson"}
    elsewhere = desk.settings.model_copy(update={"database_url": f"sqlite:///{tmp_path / 'elsewhere.db'}"})
    with serving(elsewhere) as other:
        problem(other.client.post("/api/import", content=lines), 415)
        took = other.client.post("/api/import", content=lines + b"{}\n", headers=headers)
        assert took.status_code == 200, took.text
        assert other.client.get("/api/dead-letters/counts").json()["in review"] == 2
        assert {item["message_id"] for item in other.client.get("/api/dead-letters").json()["items"]} == {"m-1", "m-2"}
        say = took.json()
        assert len(say["faults"]) == 1, say


#: Values that may be wrong anywhere.
WRONG: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    10**30,
    "",
    "x",
    "\x00",
    "\ud800",
    "2026-01-01T00:00:00+99:99",
    [],
    [None],
    {},
    {"x": 1},
    "9" * 5000,
)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_no_line_that_is_imported_is_more_than_refused(
    ackline_settings: Settings, database: str, request: pytest.FixtureRequest
) -> None:
    """Whatever stands in whichever field: the line is taken, or told by its number, and no other one is lost for it."""
    settings = ackline_settings
    if database == "postgresql":
        settings = settings.model_copy(update={"database_url": request.getfixturevalue("postgresql_url")})
    with serving(settings) as desk:
        desk.arrives(letter())
        good = desk.client.get("/api/export").json()
        lines = [json.dumps(good | {name: wrong}) for name in good for wrong in WRONG]
        lines += ["null", "[]", "{}", "[" * 50_000, '{"message_id": ', "NaN", "1e400", '"\\ud800"', ""]
        content = "\n".join([*lines, json.dumps(good | {"message_id": "the last one"})]).encode() + b"\n\xff\x00"
        answer = desk.client.post("/api/import", content=content, headers={"Content-Type": "application/x-ndjson"})
        assert answer.status_code == 200, answer.text[:2000]
        told = answer.json()
        assert told["faults"]
        found = desk.client.get("/api/dead-letters", params={"message_id": "the last one"}).json()["items"]
        assert [item["state"] for item in found] == ["in review"]
        assert desk.client.get("/api/dead-letters", params={"limit": 500}).status_code == 200


def test_the_ledger_is_asked_for_a_window(desk: Desk) -> None:
    declare(desk.settings.broker, [ConsumerQueue("billing", ("order.placed",))])
    found = desk.client.get("/api/ledger", params={"since": "2026-01-01T00:00:00Z", "wait": 0}).json()
    assert (found["adds_up"], found["missing"], found["candidates"]) == (True, 0, [])
    for wrong in ({"since": "yesterday"}, {"wait": "61"}, {"wait": "nan"}, {"until": "0001-01-01T00:00:00+14:00"}):
        problem(desk.client.get("/api/ledger", params=wrong), 422)


# --- events -----------------------------------------------------------------------------------------------------------


def events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a stream."""
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def test_who_watches_sees_what_there_is_and_then_what_changes(desk: Desk) -> None:
    desk.arrives(letter())
    with desk.client.stream("GET", "/api/events") as stream:
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        told = events(stream.iter_lines())
        name, group = next(told)
        assert (name, group["counts"]["in review"], group["owner"]) == ("group", 1, None)
        desk.client.patch(f"/api/groups/{group['fingerprint']}", json={"owner": "ada"})
        assert next(found["owner"] for name, found in told if name == "group" and found["owner"]) == "ada"
        desk.client.post("/api/redrives", json=WHY | {"selection": {}})
        assert next(found["state"] for name, found in told if name == "redrive") in ("planning", "planned")


def test_a_stream_ends_with_its_token(desk: Desk) -> None:
    desk.arrives(letter())
    ada, grace = desk.person("ada"), desk.person("grace")
    with grace.stream("GET", "/api/events") as stream:
        told = events(stream.iter_lines())
        _, group = next(told)
        ada.patch("/api/people/grace", json=WHY | {"disabled": True})
        ada.patch(f"/api/groups/{group['fingerprint']}", json={"owner": "ada"})
        assert all(found.get("owner") is None for _, found in told), "and it comes to its end"


# --- when something is away, or too much ------------------------------------------------------------------------------


def test_without_its_database_every_call_says_so_and_with_it_goes_on(desk: Desk) -> None:
    desk.arrives(letter())
    away = "ALTER TABLE dead_letters RENAME TO away", "ALTER TABLE people RENAME TO nobody"
    back = "ALTER TABLE away RENAME TO dead_letters", "ALTER TABLE nobody RENAME TO people"
    engine = database.connect(desk.settings.database)
    with engine.begin() as connection:
        for statement in away:
            connection.exec_driver_sql(statement)
    for path in ("/api/dead-letters", "/api/dead-letters/1", "/api/me", "/readyz", "/api/groups", "/api/events"):
        answer = desk.client.get(path)
        assert problem(answer, 503)["detail"].startswith("The database does not answer.")
        assert answer.headers["retry-after"]
    problem(desk.client.post("/api/dead-letters/1/discard", json=WHY), 503)
    assert "ackline_desk_database_up 0" in desk.client.get("/metrics").text
    with engine.begin() as connection:
        for statement in back:
            connection.exec_driver_sql(statement)
    engine.dispose()
    assert desk.client.get("/api/dead-letters/1").json()["state"] == "in review"
    assert desk.client.get("/readyz").json() == {"status": "ready"}


def test_without_a_broker_only_what_asks_it_is_refused(ackline_settings: Settings) -> None:
    with serving(ackline_settings.model_copy(update={"amqp_url": "amqp://guest:guest@127.0.0.1:1/"})) as desk:
        desk.arrives(letter())
        assert desk.client.get("/readyz").status_code == 200
        assert "127.0.0.1:1" in desk.client.get("/api/ledger").json()["detail"]
        assert desk.client.get("/api/ledger").status_code == 503
        assert desk.client.post("/api/dead-letters/1/discard", json=WHY).status_code == 200


def test_a_body_that_is_too_large_is_refused_while_it_is_read(shared: Desk) -> None:
    size = 6 * shared.settings.max_body_bytes + 65 * 1024
    for content in (b" " * size, iter([b" " * (size // 2), b" " * (size // 2 + 1)])):
        headers = {"Content-Type": "application/json"}
        problem(shared.client.post("/api/retries", content=content, headers=headers), 413)


@pytest.mark.parametrize(
    "content", [b"", b"[" * 100_000, b"{", b"\xff", b"null", b"[]", b'{"reason": NaN}', b'{"reason": "\\ud800"}']
)
def test_a_body_that_cannot_be_used_is_refused_in_a_sentence(shared: Desk, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = shared.client.post("/api/dead-letters/1/discard", content=content, headers=headers)
    assert problem(answer, answer.status_code)
    assert answer.status_code in (400, 422)


def test_every_other_address_is_a_problem(shared: Desk) -> None:
    for path in (
        "/",
        "/api",
        "/api/",
        "/api/nothing",
        "/api/dead-letters/",
        "/../etc/passwd",
        "/docs/assets/../app.py",
    ):
        problem(shared.client.get(path), 404)
    problem(shared.client.put("/api/dead-letters/1", json={}), 405)


# --- for machines -----------------------------------------------------------------------------------------------------


def test_the_metrics_count_what_waits_and_need_a_token_where_there_are_people(desk: Desk) -> None:
    desk.arrives(letter(), letter("m-2"))
    assert 'ackline_dead_letters{state="in review"} 2.0' in desk.client.get("/metrics").text
    ada = desk.person("ada")
    problem(desk.client.get("/metrics"), 401)
    assert "ackline_desk_database_up 1.0" in ada.get("/metrics").text


def test_the_document_names_every_call_with_its_answers(shared: Desk) -> None:
    document = shared.client.get("/openapi.json").json()
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            assert call["summary"], path
            assert {"401", "403", "404", "422", "503"} <= call["responses"].keys(), f"{method} {path}"
            if path != "/api/session" or method != "post":
                assert call["security"], f"{method} {path}"
    assert 'content="default-src' not in shared.client.get("/docs").text
    assert "swagger-ui" in shared.client.get("/docs").text
