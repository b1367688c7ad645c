"""The way of a message to its shard, against a real broker, and what becomes of it when shards or plugins change."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ackline.consumers import Context
from ackline.infra import private_node
from ackline.infra.names import MESSAGES, RETURN
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from ackline.infra.topology import ConsumerQueue, TopologyMismatch, declare
from ackline.infra.wire import KEY, SLOT, SLOTS, key_headers
from ackline.producer import Publisher, message
from ackline.producer.envelope import enclose
from tests import broker as test_broker
from tests.amqp import Client
from tests.broker import Vhost
from tests.doors import gateway
from tests.ordered import Placed
from tests.roles import run
from tests.waiting import until
from tests.working import consumer_of, working

TYPE = "test.ordered.placed"


@message("test.ordered.asked")
class Asked(BaseModel):
    """For an order, which follows from it."""


SHARDS = 3
ORDERED = ConsumerQueue("billing", (TYPE,), shards=SHARDS)


def ackline(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command on an application that has the ordered consumer."""
    return run(settings, *arguments, ACKLINE_APP="tests.ordered")


def counts(client: Client, consumer: ConsumerQueue = ORDERED) -> list[int]:
    """Messages in each shard."""
    return [client.ready(queue) for queue in consumer.queues]


def published(client: Client, headers: dict[str, Any], *, to: tuple[str, str] = (MESSAGES, TYPE)) -> int:
    """Publish a message with *headers*; the shard that gets it."""
    before = counts(client)
    client.publish(*to, b"{}", headers=headers)

    def grown() -> list[int]:
        return [now - was for now, was in zip(counts(client), before, strict=True)]

    until(lambda: sum(grown()) > 0, what="the message to be in a shard")
    assert sorted(grown()) == [0] * (SHARDS - 1) + [1], "in one shard, once"
    return grown().index(1) + 1


def test_a_message_goes_to_the_shard_of_its_slot_also_when_it_comes_back(vhost: Vhost, client: Client) -> None:
    declare(vhost.amqp_url, [ORDERED])
    for key in ("A-1", "A-2", "größe", "x" * 300):
        expected = key_headers(key)[SLOT] % SHARDS + 1
        assert published(client, key_headers(key)) == expected
        assert published(client, key_headers(key), to=(RETURN, "billing")) == expected
    assert {published(client, {SLOT: slot}) for slot in range(SLOTS)} == {1, 2, 3}


def test_whoever_publishes_a_message_writes_its_key(ackline_settings: Settings, vhost: Vhost, client: Client) -> None:
    declare(vhost.amqp_url, [ConsumerQueue("copies", (TYPE,))])
    placed = Placed(order_id="A-1")

    def pass_on(asked: Asked, ctx: Context) -> None:
        ctx.publish(placed)

    with Publisher(vhost.amqp_url) as publisher, working(vhost.amqp_url, consumer_of("asking", pass_on, Asked)):
        publisher.publish(placed)
        publisher.publish(Asked())
        entry = enclose(placed)
        publisher.send(MESSAGES, entry.type, entry.properties, entry.payload).result(90)
        with gateway(ackline_settings, ACKLINE_APP="tests.ordered") as door:
            assert door.post(f"/v1/messages/{TYPE}", json=placed.model_dump()).status_code == 202
        copies = [until(lambda: client.take("copies"), what="a copy") for _ in range(4)]
    assert [copy.headers.get(KEY) for copy in copies] == ["A-1"] * 4
    assert {copy.headers.get(SLOT) for copy in copies} == {key_headers("A-1")[SLOT]}


def test_keys_of_foreign_clients_are_hashed_by_the_broker_and_stay_in_their_shards(
    vhost: Vhost, client: Client
) -> None:
    declare(vhost.amqp_url, [ORDERED])
    first = {key: published(client, {KEY: key}) for key in (f"A-{number}" for number in range(20))}
    assert len(set(first.values())) > 1
    assert {key: published(client, {KEY: key}) for key in first} == first
    assert len({published(client, {}) for _ in range(3)}) == 1, "those without a key share one"


def test_without_the_brokers_hash_foreign_clients_share_a_shard_until_the_exchange_is_made_anew(
    ackline_settings: Settings, vhost: Vhost, client: Client
) -> None:
    with vhost.api() as api:
        fanout = {"type": "fanout", "durable": True, "arguments": {"alternate-exchange": "ackline.unrouted"}}
        api.put(f"/api/exchanges/{vhost.path}/{ORDERED.foreign}", json=fanout).raise_for_status()
    declare(vhost.amqp_url, [ORDERED])
    assert {published(client, {KEY: f"A-{number}"}) for number in range(10)} == {1}
    assert {published(client, key_headers(f"A-{number}")) for number in range(20)} == {1, 2, 3}
    differences = ackline(ackline_settings, "topology", "diff").stdout
    assert f"exchange '{ORDERED.foreign}' has type 'fanout', declared 'x-consistent-hash'; delete it" in differences
    client.delete_exchange(ORDERED.foreign)
    declare(vhost.amqp_url, [ORDERED])
    assert ackline(ackline_settings, "topology", "diff").stdout == ""


def test_other_shards_are_refused_before_a_key_goes_to_two_of_them(vhost: Vhost, client: Client) -> None:
    declare(vhost.amqp_url, [ORDERED])
    for shards in (2, 5):
        with pytest.raises(TopologyMismatch, match=r"other shards than .*a key must not change its queue") as refused:
            declare(vhost.amqp_url, [ConsumerQueue("billing", (TYPE,), shards)])
        assert f"Stop what publishes its types ({TYPE})" in str(refused.value)
    assert not client.exists("billing.4")
    declare(vhost.amqp_url, [ORDERED])


def test_a_queue_from_before_the_consumer_was_ordered_is_refused(vhost: Vhost, client: Client) -> None:
    declare(vhost.amqp_url, [ConsumerQueue("billing", (TYPE,))])
    with pytest.raises(TopologyMismatch, match="There is a queue 'billing' from before that consumer was ordered"):
        declare(vhost.amqp_url, [ORDERED])
    client.delete_queue("billing")
    declare(vhost.amqp_url, [ORDERED])


def test_a_message_whose_shard_is_deleted_is_kept(vhost: Vhost, client: Client) -> None:
    declare(vhost.amqp_url, [ORDERED])
    for queue in ORDERED.queues:
        client.delete_queue(queue)
    client.publish(MESSAGES, TYPE, b"{}", headers=key_headers("A-1"))
    until(lambda: client.ready("ackline.unrouted") == 1, what="the message to be kept")


def test_apply_show_diff_and_doctor_know_of_shards(ackline_settings: Settings, vhost: Vhost) -> None:
    assert ackline(ackline_settings, "topology", "apply").returncode == 0
    assert ackline(ackline_settings, "topology", "diff").stdout == ""
    shown = ackline(ackline_settings, "topology", "show").stdout
    assert re.search(
        r"^exchange billing  headers  alternate-exchange=billing\.foreign-3\n"
        rf" +from ackline\.return under billing\n +from ackline\.messages under {re.escape(TYPE)}$",
        shown,
        re.MULTILINE,
    )
    assert f"from billing by {SLOT} 0, 3, 6, 9" in shown
    with vhost.api() as api:
        [bound] = [
            found
            for found in api.get(f"/api/bindings/{vhost.path}/e/billing/q/billing.2").json()
            if found["arguments"].get(SLOT) == 4
        ]
        bindings = f"/api/bindings/{vhost.path}"
        api.delete(f"{bindings}/e/billing/q/billing.2/{bound['properties_key']}").raise_for_status()
        api.delete(f"{bindings}/e/{RETURN}/e/billing/billing").raise_for_status()
    lines = ackline(ackline_settings, "topology", "diff").stdout.splitlines()
    assert [line.removesuffix(" is missing; `ackline topology apply` creates it") for line in lines] == [
        "the binding of exchange 'billing' to exchange 'ackline.return' under 'billing'",
        f"the binding of queue 'billing.2' to exchange 'billing' under {SLOT}=4, x-match=all",
    ]
    assert ackline(ackline_settings, "topology", "apply").returncode == 0
    assert ackline(ackline_settings, "topology", "diff").stdout == ""
    checked = ackline(ackline_settings, "doctor").stdout
    assert re.search(r"^ok +order +Ordered consumers: billing\. The broker hashes the keys", checked, re.MULTILINE)


@pytest.fixture
def plain_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    """A broker without the plugin."""
    chosen = test_broker.choice()
    if chosen is None or chosen.kind not in ("node", "package"):
        pytest.skip("needs a private node, whose plugins it chooses")
    monkeypatch.setattr(private_node, "ENABLED_PLUGINS", "[rabbitmq_management].\n")
    with test_broker.start(tmp_path / "broker") as running:
        yield running


@pytest.mark.broker
def test_a_broker_without_the_plugin_serves_ordered_consumers_and_doctor_says_what_is_missing(
    plain_broker: Broker, tmp_path: Path
) -> None:
    settings = test_broker.settings_for(plain_broker.amqp_url, plain_broker.management_url, tmp_path / "data")
    declare(plain_broker.amqp_url, [ORDERED])
    with Client(plain_broker.amqp_url) as client:
        assert {published(client, key_headers(f"A-{number}")) for number in range(20)} == {1, 2, 3}
        assert {published(client, {KEY: f"A-{number}"}) for number in range(5)} == {1}
    assert ackline(settings, "topology", "diff").stdout == ""
    checked = ackline(settings, "doctor").stdout
    assert re.search(
        r"^warning +order +The plugin rabbitmq_consistent_hash_exchange is off: messages without the header "
        r"ackline-slot all go to 'billing\.1'\.",
        checked,
        re.MULTILINE,
    )
