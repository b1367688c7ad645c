"""API keys as their users meet them: made on the command line, held by callers, revoked while the gateway runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, text

from ackline.infra import database
from ackline.infra.settings import Settings
from ackline.infra.tables import api_keys
from ackline.infra.wire import now
from ackline.producer.api_key import digest, generate
from ackline.producer.gateway.keys import Keys
from tests.doors import MAIL, NEVER, gateway, problem
from tests.roles import listening, role, run
from tests.waiting import until


def create(settings: Settings, name: str, *options: str, **variables: Any) -> str:
    """A new key, made by `ackline keys create`."""
    done = run(settings, "keys", "create", name, *options, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


def bearing(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def publish(client: httpx.Client, key: str) -> httpx.Response:
    return client.post("/v1/messages/email.send", json=MAIL, headers=bearing(key))


@pytest.fixture
def keyed(ackline_settings: Settings) -> Iterator[tuple[httpx.Client, str]]:
    """A gateway that wants keys, with one for everything, called `all`."""
    key = create(ackline_settings, "all")
    with gateway(ackline_settings) as client:
        yield client, key


# --- the command line ----------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_only_its_hash_is_kept(ackline_settings: Settings) -> None:
    key = create(ackline_settings, "billing", "--type", "order.*", "--type", "email.send", "--rate", "50/s")
    assert re.fullmatch(r"ack_[A-Za-z0-9]{40}", key)
    listed = run(ackline_settings, "keys", "list", "--json")
    [row] = [json.loads(line) for line in listed.stdout.splitlines()]
    assert row["prefix"] == key[:8]
    assert (row["name"], row["types"], row["rate"]) == ("billing", ["order.*", "email.send"], 50)
    database_file = Path(ackline_settings.database.removeprefix("sqlite:///"))
    kept = b"".join(file.read_bytes() for file in database_file.parent.glob(f"{database_file.name}*"))
    assert digest(key.encode()) in kept
    assert key[8:].encode() not in kept


def test_the_list_says_who_made_and_revoked_a_key_and_when(ackline_settings: Settings) -> None:
    key = create(ackline_settings, "billing", "--rate", "5", ACKLINE_ACTOR="ada")
    assert run(ackline_settings, "keys", "revoke", "billing", ACKLINE_ACTOR="grace").stdout == "billing: revoked\n"
    listed = run(ackline_settings, "keys", "list")
    assert re.search(
        rf"^billing +{key[:8]}… +everything +5/s +20\S+ \S+Z by ada +20\S+ \S+Z by grace$", listed.stdout, re.MULTILINE
    )
    assert listed.stderr == "0 in use, 1 revoked.\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["create", "taken"], 1, "ackline: There is a key 'taken' already (a revoked one keeps its name)"),
        (["create", "(configured)"], 2, "A name has 1 to 64 letters"),
        (["create", "a\x1b[31m"], 2, "A name has 1 to 64 letters"),
        (["create", "x", "--type", "order placed"], 2, "'order placed' is no message type: order.placed, or order.*"),
        (["create", "x", "--type", "*.placed"], 2, "'*.placed' is no message type"),
        (["create", "x", "--rate", "0"], 2, "--rate 0 is no rate: 50/s is 50 messages a second."),
        (["create", "x", "--rate", "5/m"], 2, "--rate 5/m is no rate"),
        (["revoke", "nobody"], 1, "ackline: There is no key 'nobody': `ackline keys list` shows"),
        (["revoke", "gone"], 1, "ackline: The key 'gone' was revoked at 20"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(
    ackline_settings: Settings, arguments: list[str], code: int, said: str
) -> None:
    database.upgrade(ackline_settings.database)
    engine = create_engine(ackline_settings.database)
    with engine.begin() as connection:
        for name, revoked_at in (("taken", None), ("gone", now())):
            row = {"name": name, "prefix": "ack_", "key_sha256": digest(name.encode()), "types": [], "created_by": "t"}
            connection.execute(
                api_keys.insert().values(row | {"created_at": now(), "revoked_at": revoked_at, "revoked_by": "t"})
            )
    engine.dispose()
    done = run(ackline_settings, "keys", *arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


# --- who may call --------------------------------------------------------------------------------------


def test_the_right_key_is_taken_and_every_wrong_one_is_told_why(keyed: tuple[httpx.Client, str]) -> None:
    client, key = keyed
    assert publish(client, key).status_code == 202
    assert publish(client, f" {key}").status_code == 202
    wrong = {
        "": "The Authorization header does not hold a key. It must read: Authorization: Bearer KEY.",
        "Bearer": "The Authorization header does not hold a key. It must read: Authorization: Bearer KEY.",
        key: "The Authorization header does not hold a key. It must read: Authorization: Bearer KEY.",
        f"Basic {key}": "The Authorization header does not hold a key. It must read: Authorization: Bearer KEY.",
        f"Bearer {key[:-1]}": "This is no key (ack_ and 40 letters and digits): copy the whole of it.",
        f"Bearer {key}x": "This is no key (ack_ and 40 letters and digits): copy the whole of it.",
        f"Bearer {generate()}": "This gateway does not know the key.",
        "Bearer something-else": "This gateway does not know the key.",
        "Bearer \xff\xfe": "This gateway does not know the key.",
    }
    for header, said in wrong.items():
        answer = client.post(
            "/v1/messages/email.send", json=MAIL, headers=[(b"Authorization", header.encode("latin-1"))]
        )
        assert problem(answer, 401)["detail"] == said
        assert answer.headers["www-authenticate"] == "Bearer"
    missing = client.post("/v1/messages/email.send", json=MAIL)
    assert problem(missing, 401)["detail"] == "This gateway wants a key: Authorization: Bearer KEY."
    assert client.get("/healthz").status_code == 200
    assert publish(client, key).status_code == 202


def test_a_key_is_for_its_types_only(ackline_settings: Settings) -> None:
    mail = create(ackline_settings, "mail", "--type", "email.*")
    orders = create(ackline_settings, "orders", "--type", "order.placed", "--type", "order.paid", "--type", "user.*")
    with gateway(ackline_settings) as client:
        assert publish(client, mail).status_code == 202
        assert problem(publish(client, orders), 403)["detail"] == (
            "The key 'orders' is for messages of type order.placed, order.paid or user.*, not 'email.send'."
        )
        unknown = client.post("/v1/messages/no.such", json={}, headers=bearing(orders))
        assert "email.send" not in problem(unknown, 403)["detail"], "other types are not told to it"


def test_a_revoked_key_stops_and_a_new_one_works_without_a_restart(
    ackline_settings: Settings, keyed: tuple[httpx.Client, str]
) -> None:
    client, key = keyed
    assert publish(client, key).status_code == 202
    second = create(ackline_settings, "second")
    until(lambda: publish(client, second).status_code == 202, what="the new key")
    run(ackline_settings, "keys", "revoke", "all")
    until(lambda: publish(client, key).status_code == 401, what="the revocation")
    assert re.fullmatch(
        r"The key 'all' was revoked at 20\S+ \S+Z: use another\.", problem(publish(client, key), 401)["detail"]
    )
    assert publish(client, second).status_code == 202
    run(ackline_settings, "keys", "revoke", "second")
    until(lambda: publish(client, second).status_code == 401, what="the second revocation")
    assert client.post("/v1/messages/email.send", json=MAIL).status_code == 401, "it does not open again"


def test_an_open_gateway_closes_when_the_first_key_is_made(ackline_settings: Settings) -> None:
    with gateway(ackline_settings) as client:
        assert client.post("/v1/messages/email.send", json=MAIL).status_code == 202
        key = create(ackline_settings, "first")
        until(lambda: client.post("/v1/messages/email.send", json=MAIL).status_code == 401, what="it to close")
        assert publish(client, key).status_code == 202


def test_with_a_key_in_the_database_it_listens_on_other_hosts_behalf(ackline_settings: Settings) -> None:
    key = create(ackline_settings, "billing")
    with gateway(ackline_settings, "--host", "0.0.0.0") as client:
        assert publish(client, key).status_code == 202
        assert client.post("/v1/messages/email.send", json=MAIL).status_code == 401


def test_keys_of_the_environment_and_of_the_database_work_side_by_side(ackline_settings: Settings) -> None:
    key = create(ackline_settings, "billing")
    with gateway(ackline_settings, ACKLINE_API_KEYS="first-key, schlüssel") as client:
        for right in (key, "first-key"):
            assert publish(client, right).status_code == 202
        utf8 = [(b"Authorization", "Bearer schlüssel".encode())]
        assert client.post("/v1/messages/email.send", json=MAIL, headers=utf8).status_code == 202


def test_keys_go_on_working_while_the_database_is_away(ackline_settings: Settings) -> None:
    key = create(ackline_settings, "billing")
    away = "ALTER TABLE api_keys RENAME TO away"
    back = "ALTER TABLE away RENAME TO api_keys"
    engine = create_engine(ackline_settings.database)
    with (
        role(ackline_settings, "gateway", "--port", "0") as process,
        httpx.Client(base_url=listening(process), timeout=NEVER, trust_env=False) as client,
    ):
        with engine.begin() as connection:
            connection.execute(text(away))
        until(lambda: "the keys cannot be read; those that are known go on" in process.log.read_text(), what="it")
        assert publish(client, key).status_code == 202
        with engine.begin() as connection:
            connection.execute(text(back))
        run(ackline_settings, "keys", "revoke", "billing")
        until(lambda: publish(client, key).status_code == 401, what="the revocation after the outage")
    engine.dispose()


@pytest.mark.parametrize("url", ["sqlite", "postgresql"])
def test_keys_are_read_from_either_database(url: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    chosen = f"sqlite:///{tmp_path / 'a.db'}" if url == "sqlite" else request.getfixturevalue("postgresql_url")
    settings = Settings(database_url=chosen, data_dir=tmp_path, amqp_url="amqp://a:b@127.0.0.1:1/")
    key = create(settings, "billing", "--type", "order.*", "--rate", "7")
    engine = database.connect(chosen)
    keys = Keys(engine, ())
    caller = keys._identify(b"Bearer " + key.encode())
    assert (caller.name, caller.may_use("order.placed"), caller.may_use("email.send")) == ("billing", True, False)
    keys.refresh()
    assert keys._identify(b"Bearer " + key.encode()) is caller, "what its bucket holds is not forgotten"
    engine.dispose()


# --- how fast ------------------------------------------------------------------------------------------


def test_a_key_beyond_its_rate_is_told_when_to_come_again(ackline_settings: Settings) -> None:
    slow, fast = create(ackline_settings, "slow", "--rate", "1/s"), create(ackline_settings, "fast")
    with gateway(ackline_settings) as client:

        def refused() -> httpx.Response | None:
            answer = publish(client, slow)
            return answer if answer.status_code == 429 else None

        answer = until(refused, what="two calls within a second")
        detail = problem(answer, 429)["detail"]
        assert detail == ("The key 'slow' is limited to 1 a second, each message of a batch counted: try again in 1 s.")
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["ratelimit-policy"] == '"key";q=1;w=1'
        assert answer.headers["ratelimit"] == '"key";r=0;t=1'
        assert publish(client, fast).status_code == 202, "the others are not held up"
        until(lambda: publish(client, slow).status_code == 202, what="the next second")


# --- web pages -----------------------------------------------------------------------------------------

PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type, authorization"}


def cors_headers(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control")}


def test_without_origins_there_are_no_cors_headers_at_all(ackline_settings: Settings) -> None:
    with gateway(ackline_settings) as client:
        origin = {"Origin": "https://shop.example.com"}
        preflight = client.options("/v1/messages/email.send", headers=origin | PREFLIGHT)
        assert preflight.status_code == 405
        taken = client.post("/v1/messages/email.send", json=MAIL, headers=origin)
        assert taken.status_code == 202
        for answer in (preflight, taken):
            assert cors_headers(answer) == {}
            assert "vary" not in answer.headers


def test_pages_of_the_origins_that_are_named_may_call_and_others_may_not(ackline_settings: Settings) -> None:
    origins = "https://shop.example.com, http://localhost:5173"
    with gateway(ackline_settings, ACKLINE_CORS_ORIGINS=origins, ACKLINE_API_KEYS="k") as client:
        for origin in ("https://shop.example.com", "http://localhost:5173"):
            preflight = client.options("/v1/messages/email.send", headers={"Origin": origin} | PREFLIGHT)
            assert preflight.status_code == 200
            allowed = cors_headers(preflight)
            assert allowed["access-control-allow-origin"] == origin
            assert "POST" in allowed["access-control-allow-methods"]
            assert "Authorization" in allowed["access-control-allow-headers"]
            assert "access-control-allow-credentials" not in allowed
            answer = client.post("/v1/messages/email.send", json=MAIL, headers={"Origin": origin} | bearing("k"))
            assert answer.status_code == 202
            assert cors_headers(answer)["access-control-allow-origin"] == origin
            unkeyed = client.post("/v1/messages/email.send", json=MAIL, headers={"Origin": origin})
            assert cors_headers(unkeyed)["access-control-allow-origin"] == origin, "a page can read why it was refused"
            problem(unkeyed, 401)
        for origin in ("https://evil.example.com", "https://shop.example.com.evil.com", "null"):
            preflight = client.options("/v1/messages/email.send", headers={"Origin": origin} | PREFLIGHT)
            assert preflight.status_code == 400
            assert "access-control-allow-origin" not in preflight.headers


@pytest.mark.parametrize("origin", ["*", "shop.example.com", "https://shop.example.com/", "https://Shop.example.com"])
def test_what_is_no_origin_is_refused_at_the_start(ackline_settings: Settings, origin: str) -> None:
    done = run(ackline_settings, "gateway", "--port", "0", ACKLINE_CORS_ORIGINS=origin)
    assert done.returncode == 2
    assert f"ACKLINE_CORS_ORIGINS: Value error, {origin!r} is no origin such as" in done.stderr
