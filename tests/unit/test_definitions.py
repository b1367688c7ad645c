"""The topology as definitions that RabbitMQ loads at boot."""

from __future__ import annotations

import base64
import hashlib
import json

from ackline.infra.definitions import definitions, password_hash
from ackline.infra.topology import ConsumerQueue, topology

WANTED = topology([ConsumerQueue("billing", ("order.placed",))])


def test_they_hold_every_exchange_queue_and_binding_of_the_topology_for_one_vhost() -> None:
    found = definitions(WANTED, "orders")
    assert found["vhosts"] == [{"name": "orders"}]
    assert [e["name"] for e in found["exchanges"]] == [exchange.name for exchange in WANTED.exchanges]
    assert [q["name"] for q in found["queues"]] == [queue.name for queue in WANTED.queues]
    assert [(b["source"], b["destination"], b["routing_key"]) for b in found["bindings"]] == [
        (bound.exchange, bound.destination, bound.routing_key) for bound in WANTED.bindings()
    ]
    for thing in (*found["exchanges"], *found["queues"], *found["bindings"]):
        assert thing["vhost"] == "orders"


def test_a_queue_and_an_exchange_carry_their_arguments() -> None:
    found = definitions(WANTED, "/")
    billing = next(queue for queue in found["queues"] if queue["name"] == "billing")
    assert billing == {
        "name": "billing",
        "vhost": "/",
        "durable": True,
        "auto_delete": False,
        "arguments": {
            "x-queue-type": "quorum",
            "x-delivery-limit": 20,
            "x-dead-letter-exchange": "ackline.dead",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
    }
    messages = next(exchange for exchange in found["exchanges"] if exchange["name"] == "ackline.messages")
    assert messages["type"] == "topic"
    assert messages["arguments"] == {"alternate-exchange": "ackline.unrouted"}


def test_they_are_json() -> None:
    found = definitions(WANTED, "/", ("operator", "pässword"))
    assert json.loads(json.dumps(found)) == found


def test_they_hold_no_user_unless_one_is_asked_for() -> None:
    found = definitions(WANTED, "/")
    assert "users" not in found
    assert "permissions" not in found


def test_a_user_that_is_asked_for_is_an_administrator_of_the_vhost_and_its_password_is_not_in_it() -> None:
    found = definitions(WANTED, "orders", ("operator", "correct horse"))
    assert found["users"][0]["name"] == "operator"
    assert found["users"][0]["tags"] == ["administrator"]
    everything = {"user": "operator", "vhost": "orders", "configure": ".*", "write": ".*", "read": ".*"}
    assert found["permissions"] == [everything]
    assert "correct horse" not in json.dumps(found)


def test_a_password_is_hashed_as_rabbitmq_does() -> None:
    # The example of RabbitMQ's documentation, "Computing Password Hash": salt 908D C60A, password test12.
    assert password_hash("test12", bytes.fromhex("908DC60A")) == "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"


def test_a_password_is_salted_anew_each_time() -> None:
    first, second = (base64.b64decode(password_hash("same")) for _ in range(2))
    assert first != second
    assert first[4:] == hashlib.sha256(first[:4] + b"same").digest()
