"""`ackline topology` against a real broker: it creates what is missing, and names whatever is not as declared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import httpx
import pytest

from ackline.infra.broker import launch
from ackline.infra.names import ACCEPTED, MESSAGES, TRACKED, UNROUTED
from ackline.infra.running_broker import BrokerUnavailable
from ackline.infra.settings import Settings
from ackline.infra.topology import ConsumerQueue, declare
from tests import broker as test_broker
from tests.amqp import Client
from tests.broker import Vhost
from tests.roles import run
from tests.waiting import until


@pytest.fixture
def applied(ackline_settings: Settings) -> Settings:
    """Settings of a vhost that has the topology of the default application."""
    declare(ackline_settings.broker, [ConsumerQueue("email", ("email.send",))])
    return ackline_settings


@pytest.fixture
def api(vhost: Vhost) -> Iterator[httpx.Client]:
    with vhost.api() as client:
        yield client


def diff(settings: Settings) -> list[str]:
    """The lines of `ackline topology diff`; its exit code says whether there are any."""
    done = run(settings, "topology", "diff")
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert done.returncode == (1 if lines else 0)
    return lines


def declare_anew(api: httpx.Client, vhost: Vhost, kind: str, name: str, **declared: Any) -> None:
    """Delete a queue or an exchange and declare it again with other properties."""
    path = f"/api/{kind}/{vhost.path}/{name}"
    api.delete(path).raise_for_status()
    api.put(path, json={"durable": True, "auto_delete": False, "arguments": {}} | declared).raise_for_status()


def test_after_apply_there_is_no_difference_and_apply_may_be_repeated(ackline_settings: Settings) -> None:
    for _ in range(2):
        done = run(ackline_settings, "topology", "apply")
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(r"The topology is in place: 14 exchanges, 13 queues, 14 bindings\.\n", done.stdout)
        assert diff(ackline_settings) == []


def test_before_apply_everything_is_named_as_missing(ackline_settings: Settings) -> None:
    lines = diff(ackline_settings)
    assert len(lines) == 14 + 13
    assert "queue 'email' is missing; `ackline topology apply` creates it" in lines


def test_a_queue_declared_again_with_other_arguments_is_named_with_each_of_them(
    applied: Settings, api: httpx.Client, vhost: Vhost
) -> None:
    other = {"x-queue-type": "quorum", "x-delivery-limit": 3, "x-dead-letter-exchange": "ackline.dead"}
    declare_anew(api, vhost, "queues", "email", arguments=other)
    lines = diff(applied)
    assert [line.split(";")[0] for line in lines if line.startswith("queue ")] == [
        "queue 'email' has x-dead-letter-strategy nothing, declared 'at-least-once'",
        "queue 'email' has x-delivery-limit 3, declared 20",
        "queue 'email' has x-overflow nothing, declared 'reject-publish'",
    ]
    assert [line.split(" is missing")[0] for line in lines if line.startswith("the binding")] == [
        "the binding of queue 'email' to exchange 'ackline.messages' under 'email.send'",
        "the binding of queue 'email' to exchange 'ackline.return' under 'email'",
    ]
    assert len(lines) == 5


def test_a_queue_declared_again_as_a_classic_one_is_named(applied: Settings, api: httpx.Client, vhost: Vhost) -> None:
    declare_anew(api, vhost, "queues", "ackline.dead", arguments={"x-queue-type": "classic"})
    assert any("queue 'ackline.dead' has x-queue-type 'classic', declared 'quorum'" in line for line in diff(applied))


@pytest.mark.parametrize(
    ("queue", "definition", "said"),
    [
        ("email", {"message-ttl": 1000}, "sets message-ttl to 1000, declared nothing"),
        ("email", {"max-length": 5}, "sets max-length to 5, declared nothing"),
        ("ackline.retry.1s", {"delivery-limit": 3}, "sets delivery-limit to 3, declared"),
    ],
)
def test_a_policy_that_overrides_a_queue_is_named_and_one_that_does_not_is_not(
    applied: Settings, api: httpx.Client, vhost: Vhost, queue: str, definition: dict[str, Any], said: str
) -> None:
    harmless = {"pattern": "^ackline", "definition": {"queue-leader-locator": "balanced"}, "apply-to": "queues"}
    if queue == "email":
        api.put(f"/api/policies/{vhost.path}/harmless", json=harmless).raise_for_status()
    policy = {"pattern": f"^{re.escape(queue)}$", "definition": definition, "apply-to": "queues", "priority": 9}
    api.put(f"/api/policies/{vhost.path}/careless", json=policy).raise_for_status()
    [line] = until(lambda: diff(applied), what="the policy to be in force")
    assert line.startswith(f"queue '{queue}': the policy 'careless' {said}")
    api.delete(f"/api/policies/{vhost.path}/careless").raise_for_status()
    until(lambda: diff(applied) == [], what="the policy to be gone")


def test_an_operator_policy_that_overrides_a_queue_is_named(applied: Settings, api: httpx.Client, vhost: Vhost) -> None:
    policy = {"pattern": "^email$", "definition": {"message-ttl": 5000}, "apply-to": "queues"}
    api.put(f"/api/operator-policies/{vhost.path}/ceiling", json=policy).raise_for_status()
    [line] = until(lambda: diff(applied), what="the policy to be in force")
    assert line == "queue 'email': the operator policy 'ceiling' sets message-ttl to 5000, declared nothing"


def test_a_policy_that_overrides_an_exchange_is_named(applied: Settings, api: httpx.Client, vhost: Vhost) -> None:
    policy = {"pattern": "^ackline.dead$", "definition": {"alternate-exchange": "amq.fanout"}, "apply-to": "exchanges"}
    api.put(f"/api/policies/{vhost.path}/careless", json=policy).raise_for_status()
    [line] = until(lambda: diff(applied), what="the policy to be in force")
    assert line == (
        "exchange 'ackline.dead': the policy 'careless' sets alternate-exchange to 'amq.fanout', declared nothing"
    )


def test_a_binding_that_was_removed_is_named_and_apply_puts_it_back(
    applied: Settings, api: httpx.Client, vhost: Vhost
) -> None:
    api.delete(f"/api/bindings/{vhost.path}/e/ackline.messages/q/email/email.send").raise_for_status()
    [line] = diff(applied)
    assert line == (
        "the binding of queue 'email' to exchange 'ackline.messages' under 'email.send' is missing; "
        "`ackline topology apply` creates it"
    )
    assert run(applied, "topology", "apply").returncode == 0
    assert diff(applied) == []


def test_a_binding_that_nobody_declared_is_named(applied: Settings, api: httpx.Client, vhost: Vhost) -> None:
    extra = {"routing_key": "order.#"}
    api.post(f"/api/bindings/{vhost.path}/e/ackline.messages/q/email", json=extra).raise_for_status()
    [line] = diff(applied)
    assert line == (
        "the binding of queue 'email' to exchange 'ackline.messages' under 'order.#' is not declared: "
        "messages come in by it that no handler here names"
    )


def test_an_exchange_without_its_alternate_exchange_is_named(
    applied: Settings, api: httpx.Client, vhost: Vhost
) -> None:
    declare_anew(api, vhost, "exchanges", "ackline.messages", type="topic")
    lines = diff(applied)
    assert lines[0].startswith(
        "exchange 'ackline.messages' has alternate-exchange nothing, declared 'ackline.unrouted'; "
    )
    assert [line.split(" is missing")[0] for line in lines[1:]] == [
        "the binding of queue 'email' to exchange 'ackline.messages' under 'email.send'",
        "the binding of exchange 'ackline.messages' to exchange 'ackline.tracked' under '#'",
    ]


@pytest.mark.parametrize("type_", ["email.send", "nobody.knows"])
def test_a_tracked_message_goes_where_it_would_go_untracked_and_leaves_a_copy_on_record(
    applied: Settings, client: Client, type_: str
) -> None:
    there = "email" if type_ == "email.send" else UNROUTED
    for exchange in (MESSAGES, TRACKED):
        client.publish(exchange, type_, exchange.encode())
    until(lambda: client.ready(there) == 2, what="both messages to arrive")
    until(lambda: client.ready(ACCEPTED) == 1, what="the copy")
    assert (taken := client.take(ACCEPTED)) is not None
    assert taken.body == TRACKED.encode()


def test_an_exchange_of_another_kind_is_named(applied: Settings, api: httpx.Client, vhost: Vhost) -> None:
    declare_anew(api, vhost, "exchanges", "ackline.outcomes", type="direct")
    assert "exchange 'ackline.outcomes' has type 'direct', declared 'topic'; delete it and apply again" in diff(applied)


def test_the_queue_of_a_consumer_that_is_not_in_the_application_is_named(
    applied: Settings, api: httpx.Client, vhost: Vhost
) -> None:
    path = f"/api/queues/{vhost.path}/billing"
    quorum = {"durable": True, "arguments": {"x-queue-type": "quorum"}}
    api.put(path, json=quorum).raise_for_status()
    way_back = {"routing_key": "billing"}
    api.post(f"/api/bindings/{vhost.path}/e/ackline.return/q/billing", json=way_back).raise_for_status()
    assert diff(applied) == ["queue 'billing' is a consumer's, but no module of ACKLINE_APP has that consumer"]


@pytest.mark.parametrize(
    ("kind", "name", "declared"),
    [
        ("queues", "email", {"arguments": {"x-queue-type": "quorum", "x-delivery-limit": 3}}),
        ("queues", "ackline.dead", {"arguments": {"x-queue-type": "classic"}}),
        ("exchanges", "ackline.messages", {"type": "topic"}),
        ("exchanges", "ackline.dead", {"type": "direct"}),
    ],
)
def test_apply_refuses_what_exists_otherwise_in_one_sentence_and_leaves_it_alone(
    applied: Settings, api: httpx.Client, vhost: Vhost, kind: str, name: str, declared: dict[str, Any]
) -> None:
    declare_anew(api, vhost, kind, name, **declared)
    before = diff(applied)
    done = run(applied, "topology", "apply")
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(
        rf"ackline: The {kind[:-1]} '{name}' exists with other properties than Ackline's: .*`ackline topology diff` "
        r"names them; move its messages elsewhere, delete it, and apply again\.\n",
        done.stderr,
    )
    assert [line for line in diff(applied) if name in line] == [line for line in before if name in line]


def test_a_user_who_may_not_create_is_told_what_cannot_be_created(
    ackline_settings: Settings, api: httpx.Client, vhost: Vhost
) -> None:
    user = f"limited-{vhost.name}"
    api.put(f"/api/users/{user}", json={"password": "secret", "tags": ""}).raise_for_status()
    nothing = {"configure": "^$", "write": ".*", "read": ".*"}
    api.put(f"/api/permissions/{vhost.path}/{user}", json=nothing).raise_for_status()
    try:
        done = run(ackline_settings, "topology", "apply", ACKLINE_AMQP_URL=as_user(vhost.amqp_url, user, "secret"))
    finally:
        api.delete(f"/api/users/{user}").raise_for_status()
    assert done.returncode == 1
    assert done.stderr.startswith("ackline: The exchange 'ackline.messages' cannot be created: ")
    assert done.stderr.count("\n") == 1


def as_user(url: str, user: str, password: str) -> str:
    """*url* for another user."""
    parts = urlsplit(url)
    return urlunsplit(
        parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{parts.hostname}:{parts.port}")
    )


def test_what_is_shown_is_what_is_applied(applied: Settings, api: httpx.Client, vhost: Vhost) -> None:
    shown = run(applied, "topology", "show").stdout
    queues = {queue["name"] for queue in api.get(f"/api/queues/{vhost.path}").json()}
    exchanges = {
        found["name"] for found in api.get(f"/api/exchanges/{vhost.path}").json() if "ackline" in found["name"]
    }
    assert set(re.findall(r"^queue +(\S+)", shown, re.MULTILINE)) == queues
    assert set(re.findall(r"^exchange (\S+)", shown, re.MULTILINE)) == exchanges
    assert json.loads(run(applied, "topology", "show", "--json").stdout)["queues"]


def test_exported_definitions_are_loaded_by_an_empty_broker_at_boot(
    ackline_settings: Settings, api: httpx.Client, tmp_path: Path
) -> None:
    chosen = test_broker.choice()
    if chosen is not None and chosen.kind == "url":
        pytest.skip("needs a broker of its own, and ACKLINE_AMQP_URL names one that others run")
    version = api.get("/api/overview").json()["rabbitmq_version"]
    export = ["topology", "export", "--broker-version", version, "--user", "operator"]
    done = run(ackline_settings, *export, ACKLINE_EXPORT_PASSWORD="correct horse/ü")
    assert (done.returncode, done.stderr) == (0, "")
    file = tmp_path / "definitions.json"
    file.write_text(done.stdout)
    try:
        empty = launch(test_broker.environment(), data_dir=tmp_path / "empty", definitions=file, deny_deprecated=True)
    except BrokerUnavailable as error:
        pytest.fail(str(error), pytrace=False)
    with empty:
        url = as_user(empty.amqp_url, "operator", "correct horse/ü")
        settings = ackline_settings.model_copy(update={"amqp_url": url, "management_url": empty.management_url})
        assert diff(settings) == []
        empty.restart()
        assert diff(settings) == []


def test_an_export_without_a_user_says_that_there_will_be_none(ackline_settings: Settings) -> None:
    done = run(ackline_settings, "topology", "export", "--vhost", "orders")
    assert done.returncode == 0
    assert {entity["vhost"] for entity in json.loads(done.stdout)["queues"]} == {"orders"}
    assert "creates no default user" in done.stderr


def test_without_the_management_api_diff_says_what_to_do(applied: Settings) -> None:
    done = run(applied, "topology", "diff", ACKLINE_MANAGEMENT_URL="http://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(
        r"ackline: The management API at http://127\.0\.0\.1:1 cannot be reached \(.*\)\. Set ACKLINE_MANAGEMENT_URL, "
        r"or enable it: rabbitmq-plugins enable rabbitmq_management\.\n",
        done.stderr,
    )
