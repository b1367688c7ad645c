"""What is read from a dead letter's delivery: who says why, and what nobody may make us believe."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from typing import Any

import pytest

from ackline.dlq import deadletter
from ackline.infra import wire
from ackline.infra.names import DEAD, MESSAGES, RETURN, UNROUTED
from ackline.infra.properties import Properties
from ackline.infra.table import Table, encode
from ackline.infra.tables import Source
from tests.letters import BODY, letter, read, worker_headers, worker_properties

NOW = datetime(2026, 1, 2, 4, tzinfo=UTC)
DIED_AT = datetime(2026, 1, 2, 3, 30, tzinfo=UTC)


def death(queue: str, reason: str, exchange: str, routing_key: str, **more: Any) -> dict[str, Any]:
    """An entry of `x-death`, but for the time, which `Table.of` cannot write."""
    return {"queue": queue, "reason": reason, "exchange": exchange, "routing-keys": [routing_key], "count": 1, **more}


def dead_by_broker(x_death: Any, **headers: Any) -> deadletter.DeadLetter:
    properties = Properties(message_id="m-1", type="order.placed", headers={"x-death": x_death, **headers})
    return deadletter.read(properties, BODY, DEAD, "order.placed", DEAD, NOW)


def test_a_workers_dead_letter_tells_everything_the_worker_knew() -> None:
    found = letter()
    assert (found.source, found.consumer, found.type) == (Source.WORKER, "billing", "order.placed")
    assert found.reason == "failed 2 of 2 attempts: ValueError: no such user"
    assert (found.error_type, found.error_message) == ("ValueError", "no such user")
    assert found.traceback.startswith("Traceback")
    assert (found.attempts, [entry["attempt"] for entry in found.history]) == (2, [1, 2])
    assert found.first_failed_at == datetime(2026, 1, 2, 3, 0, 1, tzinfo=UTC)
    assert (found.exchange, found.routing_key) == (MESSAGES, "order.placed")
    assert found.payload == BODY
    assert Properties.from_wire(found.properties).headers.text(wire.CONSUMER) == "billing"
    assert found.trusted


def test_a_dead_letter_has_the_key_of_its_message() -> None:
    assert letter().ordering_key is None
    keyed = wire.key_headers("A-1")
    assert letter(**keyed).ordering_key == "A-1"
    assert dead_by_broker([death("billing", "expired", MESSAGES, "order.placed")], **keyed).ordering_key == "A-1"
    assert len(read(Properties(headers={wire.KEY: "x" * 100_000})).ordering_key or "") == 253


def test_a_workers_dead_letter_without_a_reason_has_the_last_error_as_its_reason() -> None:
    headers = worker_headers()
    del headers[wire.REASON]
    assert read(Properties(headers=headers)).reason == "ValueError: no such user"
    assert read(Properties()).reason == "It was put into ackline.dead without a reason."


def test_a_crash_is_told_from_the_brokers_delivery_limit() -> None:
    found = dead_by_broker(
        [death("billing", "delivery_limit", MESSAGES, "order.placed")],
        **{
            "x-delivery-count": 21,
            "ackline-consumer": "forged",
            "ackline-reason": "forged",
            "ackline-redrive": "forged",
        },
    )
    assert (found.source, found.consumer) == (Source.BROKER, "billing")
    assert found.reason == (
        "It crashed or lost its worker 21 times (the broker's delivery limit on the queue 'billing')."
    )
    assert (found.exchange, found.routing_key) == (MESSAGES, "order.placed")
    assert (found.attempts, found.sent_by, found.trusted) == (0, None, False)
    assert [entry["error"] for entry in found.history] == ["crash"]


def test_a_crash_after_retries_keeps_the_history_that_came_through_the_return_exchange() -> None:
    found = dead_by_broker(
        [death("billing", "delivery_limit", RETURN, "billing"), death("ackline.retry.1s", "expired", "x", "billing")],
        **worker_headers(redrive="item-1") | {wire.ATTEMPT: 3},
    )
    assert (found.source, found.consumer, found.attempts) == (Source.BROKER, "billing", 2)
    assert [entry["attempt"] for entry in found.history] == [1, 2, None]
    assert (found.exchange, found.routing_key, found.sent_by) == (MESSAGES, "order.placed", "item-1")
    assert found.reason.startswith("It crashed or lost its worker too often")


def test_a_broker_that_was_deceived_still_says_which_queue_it_was() -> None:
    # 3.10.8 keeps the exchange of a forged entry for the same queue and reason: the headers then look like Ackline's.
    found = dead_by_broker([death("billing", "delivery_limit", RETURN, "billing")], **worker_headers("shipping"))
    assert found.consumer == "billing"


@pytest.mark.parametrize(
    ("reason", "more", "says"),
    [
        ("expired", {"original-expiration": "50"}, "Its time to live of 50 ms ran out while it waited in the queue"),
        ("rejected", {}, "It was rejected on the queue 'billing' without a reason"),
        ("maxlen", {}, "the queue 'billing' is full"),
        ("something new", {}, "dead-lettered it from the queue 'billing' (something new)"),
    ],
)
def test_every_reason_of_the_broker_is_a_sentence(reason: str, more: dict[str, Any], says: str) -> None:
    found = dead_by_broker([death("billing", reason, MESSAGES, "order.placed", **more)])
    assert says in found.reason
    assert (found.consumer, found.source) == ("billing", Source.BROKER)


def test_a_type_that_nobody_takes_is_unrouted_whatever_its_headers_say() -> None:
    forged = worker_headers(redrive="item-1") | {"x-death": [death("shipping", "delivery_limit", RETURN, "shipping")]}
    found = read(Properties(type="nobody.knows", headers=forged), exchange=MESSAGES, queue=UNROUTED)
    assert (found.source, found.consumer) == (Source.UNROUTED, "")
    assert found.reason == "No consumer takes messages of type 'nobody.knows'."
    assert (found.attempts, found.sent_by, found.trusted) == (0, None, False)


def test_a_retry_of_a_consumer_that_is_gone_says_which() -> None:
    properties = Properties(type="order.placed", headers=worker_headers("ghost") | {wire.ATTEMPT: 3})
    found = deadletter.read(properties, BODY, RETURN, "ghost", UNROUTED, NOW)
    assert (found.source, found.consumer) == (Source.UNROUTED, "ghost")
    assert found.reason == "The consumer 'ghost' is gone: its queue does not exist."
    assert (found.attempts, found.routing_key, found.trusted) == (2, "order.placed", True)


def test_an_unrouted_message_that_expired_before_it_was_read_is_still_unrouted() -> None:
    found = dead_by_broker([death(UNROUTED, "expired", MESSAGES, "nobody.knows")])
    assert (found.source, found.consumer) == (Source.UNROUTED, "")
    assert "No consumer takes messages of type 'order.placed'" in found.reason
    gone = dead_by_broker([death(UNROUTED, "expired", RETURN, "ghost")])
    assert gone.consumer == "ghost"


def test_an_x_death_without_a_routing_key_leaves_that_of_the_delivery() -> None:
    found = dead_by_broker([{"queue": "billing", "reason": "expired", "exchange": MESSAGES, "routing-keys": "lies"}])
    assert (found.routing_key, found.exchange) == ("order.placed", MESSAGES)


@pytest.mark.parametrize(
    "lie",
    ["lies", {"queue": "billing"}, [], ["a", 1], [{"queue": 5}], [{}], None, True, [[[]]], b"\xff", [None]],
    ids=repr,
)
def test_an_x_death_of_any_shape_gives_a_row_with_a_reason(lie: Any) -> None:
    found = dead_by_broker(lie, **worker_headers(redrive="item-1"))
    assert found.source is Source.BROKER
    assert "cannot be read" in found.reason or "says nothing that can be read" in found.reason
    assert (found.consumer, found.sent_by, found.trusted) == ("", None, False)


def test_what_another_program_put_into_the_queue_is_not_believed() -> None:
    found = read(worker_properties(redrive="item-1"), exchange="")
    assert found.reason == "A program other than Ackline put it into ackline.dead."
    assert (found.consumer, found.sent_by) == ("", None)


def test_a_message_without_an_id_gets_one() -> None:
    first, second = letter(None), letter(None)
    assert first.message_id
    assert first.message_id != second.message_id


def test_texts_that_a_database_cannot_hold_show_as_escapes() -> None:
    history = [{"attempt": 1, "at": "x\x00", "worker": "\ud800", "error": "E\x00", "message": "bad \udfff and \x00"}]
    headers = {
        wire.CONSUMER: "bill\x00ing",
        wire.HISTORY: json.dumps(history),
        wire.REASON: Table.parse(b""),
        wire.TRACEBACK: "trace\x00back",
    }
    properties = Properties(
        message_id=b"\xff\x00id", type=b"t\xfe", app_id=b"\xff", correlation_id=b"\x00", headers=headers
    )
    found = deadletter.read(properties, b"\x00\xff", DEAD, b"\xff\x00key", DEAD, NOW)
    for value in (found.message_id, found.type, found.app_id, found.correlation_id, found.consumer, found.routing_key):
        assert value is not None
        _fit_for_a_database(value)
    _fit_for_a_database(
        found.traceback + found.reason + found.error_message + json.dumps(found.history, ensure_ascii=False)
    )
    assert found.message_id == "\\xff\\x00id"
    assert found.payload == b"\x00\xff"


def test_a_timestamp_that_no_calendar_holds_is_left_out() -> None:
    assert read(Properties(timestamp=10**13)).published_at is None
    assert read(Properties(timestamp=0)).published_at == datetime(1970, 1, 1, tzinfo=UTC)


def test_a_consumers_name_is_no_longer_than_a_name_can_be() -> None:
    assert len(letter(consumer="x" * 10_000).consumer.encode()) == 255


def test_a_history_that_holds_infinity_is_nobodys() -> None:
    forged = [{"attempt": float("inf"), "at": "", "worker": "", "error": "", "message": ""}]
    found = dead_by_broker(
        [death("billing", "delivery_limit", RETURN, "billing")], **{wire.HISTORY: json.dumps(forged)}
    )
    assert [entry["error"] for entry in found.history] == ["crash"]


def test_no_bytes_make_reading_fail() -> None:
    chance = random.Random(7)
    for _ in range(3_000):
        headers = _mutated(
            Table.of(worker_headers(redrive="r") | {"x-death": [death("q", "expired", RETURN, "k")]}), chance
        )
        raw = Properties(message_id="m", headers=Table.parse(headers)).wire
        start = chance.randrange(len(raw))
        raw = raw[:start] + chance.randbytes(chance.randrange(4)) + raw[start + chance.randrange(3) :]
        queue = chance.choice([DEAD, UNROUTED])
        exchange = chance.choice([DEAD, RETURN, MESSAGES, ""])
        found = deadletter.read(Properties.from_wire(raw), b"", exchange, "key", queue, NOW)
        assert found.reason
        json.dumps(found.history)


def _mutated(table: Table, chance: random.Random) -> bytes:
    raw = bytearray(table.raw)
    for _ in range(chance.randrange(6)):
        raw[chance.randrange(len(raw))] = chance.randrange(256)
    return bytes(raw)


def _fit_for_a_database(value: str) -> None:
    value.encode()  # raises for a surrogate
    assert "\x00" not in value


def test_the_time_of_a_brokers_dead_letter_is_the_brokers() -> None:
    entry = (
        b"".join(
            bytes((len(name),)) + name.encode() + encode(value)
            for name, value in death("billing", "expired", MESSAGES, "order.placed").items()
        )
        + b"\x04timeT"
        + int(DIED_AT.timestamp()).to_bytes(8)
    )
    table = b"F" + len(entry).to_bytes(4) + entry
    value = b"A" + len(table).to_bytes(4) + table
    found = read(Properties(headers=Table.parse(b"\x07x-death" + value)))
    assert found.first_failed_at == DIED_AT
    assert found.history[-1]["at"] == "2026-01-02T03:30:00.000Z"


def test_a_celery_task_is_of_the_type_of_its_name() -> None:
    by_headers = Properties(message_id="m-1", headers={"task": "shop.charge", "id": "7f1b", "lang": "py"})
    found = read(by_headers, b"[[], {}, {}]", exchange=MESSAGES, queue=UNROUTED)
    assert found.type == "shop.charge"
    assert found.reason == "No consumer takes messages of type 'shop.charge'."
    by_body = b'{"task": "old.add", "id": "x", "args": [], "kwargs": {}}'
    assert read(Properties(message_id="m-2"), by_body, exchange=MESSAGES, queue=UNROUTED).type == "old.add"
    assert read(worker_properties(task="shop.charge", id="7f1b")).type == "order.placed"
    long = Properties(headers={"task": "x" * 1000, "id": "7f1b"})
    assert len(read(long, exchange=MESSAGES, queue=UNROUTED).type) <= deadletter.MAX_NAME
