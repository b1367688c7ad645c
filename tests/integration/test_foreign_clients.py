"""What foreign AMQP clients put into `ackline.messages`, as wrong as the broker lets it be.

Each message is handled if a handler takes it; else it is in review with a reason that a person understands. Worker and
reviewer go on, nothing is lost, and redriving each one works or says why not.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pika
import pytest
from sqlalchemy import Engine, select

from ackline.infra import database, tables
from ackline.infra.names import MESSAGES
from ackline.infra.settings import Settings
from tests.amqp import connect
from tests.hand_framed import HEADERS, MESSAGE_ID, TIMESTAMP, HandFramedClient, deep_table, long, short
from tests.mail import MailSink
from tests.roles import role, run
from tests.waiting import until

HANDLED = "handled"


class Case(NamedTuple):
    """A message, and what must become of it: HANDLED, or words of the reason for which it is in review."""

    name: str
    expected: str
    body: bytes
    routing_key: str = "email.send"
    properties: dict[str, Any] | None = None
    by_hand: tuple[int, bytes] | None = None  # flags and octets of the properties, for what pika cannot encode


def mail(name: str, **more: str) -> bytes:
    return json.dumps({"to": f"{name}@example.test", "subject": "Hello", "body": "Hi"} | more).encode()


def case(
    name: str, expected: str = HANDLED, body: bytes | None = None, key: str = "email.send", **properties: Any
) -> Case:
    known = {"message_id": f"id-{name}", "type": "email.send"} | properties
    known = {property_: value for property_, value in known.items() if value is not None}
    return Case(name, expected, _body(name, expected, body), key, known)


def hand_framed(name: str, flags: int, octets: bytes, expected: str = HANDLED) -> Case:
    """By hand: a message id, and whatever *flags* and *octets* before it."""
    tail = short(f"id-{name}".encode())
    if flags == HEADERS:
        return Case(name, expected, _body(name, expected), by_hand=(HEADERS | MESSAGE_ID, octets + tail))
    return Case(name, expected, _body(name, expected), by_hand=(flags | MESSAGE_ID, tail + octets))


def _body(name: str, expected: str, body: bytes | None = None) -> bytes:
    """A body of this case alone: a mail, or something that is not JSON where it must be refused for that."""
    if body is not None:
        return body
    return mail(name) if expected not in ("not JSON", "rejected") else f"this is not JSON: {name}".encode()


PLAUSIBLE_DEATH = {"queue": "email", "reason": "expired", "count": 7, "exchange": "x", "routing-keys": ["email.send"]}
BIG_HEADERS = {f"h{number}": "x" * 1000 for number in range(100)}
TEN_TO_THE_13 = struct.pack(">Q", 10**13)

CASES = [
    case("not-json", "not JSON"),
    case("wrong-fields", "subject: Field required", b'{"to": "a@example.test", "body": "b"}'),
    case("wrong-json", "is no email.send", b"[1, 2]"),
    case("invalid-utf8", "not JSON", b'{"to": "\xff\xfe@example.test"}'),
    case("empty", "not JSON", b""),
    case(
        "nul-escaped",
        "is no email.send",
        json.dumps({"to": "a\x00@example.test", "subject": "s", "body": "b"}).encode(),
    ),
    case("nul-raw", "not JSON", b'{"to": "a\x00@example.test", "subject": "s", "body": "b"}'),
    case("nul-in-the-text", body=mail("nul-in-the-text", body="before\x00after")),
    case("brackets", "not JSON", b"[" * 100_000),
    case("no-id", message_id=None),
    case("no-id-not-json", "not JSON", message_id=None),
    case("no-type", type=None),
    case("no-type-not-json", "not JSON", type=None),
    case("contradicting-type", "published as 'email.send'", type="order.placed"),
    case("unknown-key", "nobody.takes.this", key="nobody.takes.this", type="nobody.takes.this"),
    case("unknown-key-expiring", "nobody.takes.this", key="nobody.takes.this", type=None, expiration="400"),
    case("expires", expiration="60000"),
    case("five-megabytes", body=mail("five-megabytes", body="x" * 5_000_000)),
    case("five-megabytes-not-json", "not JSON", b"x" * 5_000_000),
    case("odd-id", message_id="  Größe & naïveté \t  "),
    case("odd-id-not-json", "not JSON", message_id="  Größe & naïveté \t 2 "),
    case("long-id", "not JSON", message_id="é" * 127),
    case("reply-to", "not JSON", reply_to="my-replies"),
    case("cc", "not JSON", headers={"CC": ["nobody.takes.this.either", "email"]}),
    case("bcc", "not JSON", headers={"BCC": ["email"]}),
    case("attempt-many", headers={"ackline-attempt": "many"}),
    case("attempt-many-not-json", "not JSON", headers={"ackline-attempt": "many"}),
    case("attempt-negative", "not JSON", headers={"ackline-attempt": -7}),
    case("attempt-huge", headers={"ackline-attempt": 2**62}),
    case("history-forged", "not JSON", headers={"ackline-history": "[" * 5000, "ackline-reason": "all is well"}),
    case("redrive-forged", "not JSON", headers={"ackline-redrive": "1", "ackline-consumer": "billing"}),
    case("death-text", "not JSON", headers={"x-death": "forged"}),
    case("death-table", "not JSON", headers={"x-death": {"queue": "email"}}),
    case("death-plausible", "not JSON", headers={"x-death": [PLAUSIBLE_DEATH]}),
    case("death-handled", headers={"x-death": [PLAUSIBLE_DEATH], "x-first-death-queue": "email"}),
    case("big-headers", headers=BIG_HEADERS),
    case("big-headers-not-json", "not JSON", headers=BIG_HEADERS),
    hand_framed("timestamp", TIMESTAMP, TEN_TO_THE_13),
    hand_framed("timestamp-not-json", TIMESTAMP, TEN_TO_THE_13, "not JSON"),
    hand_framed("header-time", HEADERS, long(short(b"when") + b"T" + TEN_TO_THE_13)),
    hand_framed("header-time-not-json", HEADERS, long(short(b"when") + b"T" + TEN_TO_THE_13), "not JSON"),
    hand_framed("deep", HEADERS, long(deep_table(3000))),
    hand_framed("deep-not-json", HEADERS, long(deep_table(3000)), "not JSON"),
    hand_framed("header-not-utf8", HEADERS, long(short(b"\xff\xfe") + b"S" + long(b"\xff")), "not JSON"),
    # As large as a frame can be: no room for Ackline's own headers, so the broker takes it to review.
    hand_framed("full-frame", HEADERS, long(short(b"h") + b"S" + long(b"x" * 130_900))),
    hand_framed("full-frame-not-json", HEADERS, long(short(b"h") + b"S" + long(b"x" * 130_900)), "rejected"),
]


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[MailSink]:
    with MailSink(tmp_path / "mail") as running:
        yield running


def test_nothing_that_a_foreign_client_sends_is_lost_or_stops_a_role(
    ackline_settings: Settings, sink: MailSink
) -> None:
    settings = ackline_settings.model_copy(update={"smtp_url": sink.url})
    user = unquote(urlsplit(settings.broker).username or "")
    cases = [*CASES, case("user-id", user_id=user), case("user-id-not-json", "not JSON", user_id=user)]
    handled = sorted(one.name for one in cases if one.expected == HANDLED)
    reviewed = {one.body: one for one in cases if one.expected != HANDLED}
    with (
        role(settings, "reviewer") as reviewer,
        role(settings, "worker") as worker,
        closing(database.connect(settings.database)) as engine,
    ):
        _publish(settings, cases)
        until(lambda: len(_rows(engine)) >= len(reviewed), what=f"{len(reviewed)} rows")
        until(lambda: len(sink.mails()) >= len(handled), what=f"{len(handled)} mails")
        assert sorted(str(mail["To"]).split("@")[0] for mail in sink.mails()) == handled
        rows = _rows(engine)
        assert {row.payload for row in rows} == reviewed.keys()
        assert len(rows) == len(reviewed)
        assert {row.state for row in rows} == {"in review"}
        unclear = {one.name: row.reason for row in rows if (one := reviewed[row.payload]).expected not in row.reason}
        assert not unclear

        _redrive(settings, [row.id for row in rows])
        until(lambda: all(row.state == "in review" for row in _rows(engine)), what="the redrives to come back")
        for row in _rows(engine):
            assert row.redrive_count == 1 or row.send_error or row.source == "unrouted", reviewed[row.payload].name
        assert worker.alive
        assert reviewer.alive


def test_a_dead_letter_of_a_foreign_client_is_handled_once_its_consumer_is_there(
    ackline_settings: Settings, sink: MailSink
) -> None:
    settings = ackline_settings.model_copy(update={"smtp_url": sink.url})
    with role(settings, "reviewer"), closing(database.connect(settings.database)) as engine:
        # The type is nobody's yet: no worker has declared the queue of `email`.
        _publish(settings, [case("early"), case("early-without-id", message_id=None)])
        until(lambda: len(_rows(engine)) == 2, what="two rows")
        assert all("No consumer takes" in row.reason for row in _rows(engine))
        with role(settings, "worker"):
            _redrive(settings, [row.id for row in _rows(engine)])
            until(lambda: {row.state for row in _rows(engine)} == {"handled"}, what="both to be handled")
        assert sorted(str(mail["To"]) for mail in sink.mails()) == [
            "early-without-id@example.test",
            "early@example.test",
        ]


def _publish(settings: Settings, cases: list[Case]) -> None:
    """Publish with a confirm each: what the broker does not take would be no case."""
    properties_of: Any = pika.BasicProperties  # has no types
    connection = connect(settings.broker)
    with contextlib.closing(connection), HandFramedClient(settings.broker) as by_hand:
        channel = connection.channel()
        channel.confirm_delivery()
        for one in cases:
            if one.by_hand is None:
                properties = properties_of(**(one.properties or {}))
                channel.basic_publish(MESSAGES, one.routing_key, one.body, properties, mandatory=True)
            else:
                by_hand.publish(MESSAGES.encode(), one.routing_key.encode(), *one.by_hand, one.body)


def _redrive(settings: Settings, ids: list[int]) -> None:
    """Ask for each to be sent back. Those that cannot be are refused with a sentence, and the others go."""
    done = run(settings, "dlq", "retry", "--no-wait", *map(str, ids))
    assert "Traceback" not in done.stderr, done.stderr


def _rows(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(select(tables.dead_letters).order_by(tables.dead_letters.c.id)))


@contextlib.contextmanager
def closing(engine: Engine) -> Iterator[Engine]:
    try:
        yield engine
    finally:
        engine.dispose()
