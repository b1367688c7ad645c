"""Pausing consumers: what the database keeps, what workers are told, and what operators see."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from ackline.consumers import control, pauses
from ackline.consumers.control import Change, Control, Pause
from ackline.infra import database
from ackline.infra.database import DatabaseUnavailable
from ackline.infra.link import Link
from ackline.infra.names import CONTROL, MESSAGES
from ackline.infra.settings import Settings
from ackline.infra.topology import ConsumerQueue, declare
from ackline.infra.wire import now
from ackline.producer.publisher import Publisher
from tests.amqp import Client
from tests.broker import Vhost
from tests.roles import run
from tests.waiting import until

#: Seconds that are longer than any test may take.
NEVER = 10_000.0

BILLING = ConsumerQueue("billing", ("order.placed", "order.changed"))
MAIL = ConsumerQueue("mail", ("email.send",))

# --- the database ------------------------------------------------------------------------------------------


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = database.connect(database_url)
    yield engine
    engine.dispose()


def test_a_pause_keeps_who_when_and_why_until_it_is_lifted(engine: Engine) -> None:
    database.upgrade(engine.url.render_as_string(hide_password=False))
    before = now()
    assert pauses.pause(engine, ["billing", "mail"], "ada", "double charges") == {}
    found = pauses.paused(engine)
    assert {name: (pause.actor, pause.reason) for name, pause in found.items()} == {
        "billing": ("ada", "double charges"),
        "mail": ("ada", "double charges"),
    }
    assert all(before <= pause.at <= now() for pause in found.values())
    assert pauses.resume(engine, ["billing", "audit"]) == {"billing"}
    assert set(pauses.paused(engine)) == {"mail"}


def test_who_pauses_what_is_paused_learns_by_whom_and_changes_nothing(engine: Engine) -> None:
    database.upgrade(engine.url.render_as_string(hide_password=False))
    pauses.pause(engine, ["billing"], "ada", "double charges")
    first = pauses.paused(engine)["billing"]
    assert pauses.pause(engine, ["billing", "mail"], "grace", "") == {"billing": first}
    assert pauses.paused(engine)["billing"] == first
    assert pauses.paused(engine)["mail"].actor == "grace"


def test_in_a_database_without_ackline_s_tables_nothing_is_paused(engine: Engine) -> None:
    assert pauses.paused(engine) == {}
    read = pauses.reader(engine.url.render_as_string(hide_password=False))
    assert read() == {}


# --- what a worker is told ---------------------------------------------------------------------------------


class Worker:
    """The part of a worker that listens, with the limits that it set."""

    def __init__(self, url: str, *names: str, read: Callable[[], Mapping[str, Pause]] | None = None) -> None:
        self.limits: list[tuple[str, int | None]] = []
        self.link = Link(url, "test listens", on_up=lambda up: self.control.open(up), on_down=lambda _: self.lost())
        self.control = Control(self.link, names, worker="host:1", limit=self.limit, read=read)

    def limit(self, name: str, most: int | None) -> None:
        self.limits.append((name, most))

    def lost(self) -> None:
        self.control.lost()


@contextmanager
def listening(vhost: Vhost, *names: str, **options: Any) -> Iterator[Worker]:
    """A listener that is heard."""
    declare(vhost.amqp_url)
    worker = Worker(vhost.amqp_url, *names, **options)
    worker.link.start()
    try:
        worker.control.start(60.0)
        until(lambda: queues(vhost), what="its queue")
        yield worker
    finally:
        worker.control.stop()
        worker.link.stop()


def queues(vhost: Vhost) -> list[str]:
    """The queues that hear what is said on the exchange."""
    with vhost.api() as api:
        answer = api.get(f"/api/exchanges/{vhost.path}/{CONTROL}/bindings/source")
        return [bound["destination"] for bound in answer.raise_for_status().json()]


def tell(vhost: Vhost, event: Any, *names: str) -> None:
    with Publisher(vhost.amqp_url) as publisher:
        pauses.tell(publisher, Change(event=event, consumers=list(names), actor="ada", reason="double charges"))


def test_the_queue_of_a_worker_says_what_it_is_for_and_goes_with_it(vhost: Vhost) -> None:
    with listening(vhost, "billing"):
        [queue] = queues(vhost)
        assert queue.startswith("ackline.control.host:1.")
    until(lambda: not queues(vhost), what="the queue to go")


def test_telling_nobody_is_no_fault(vhost: Vhost) -> None:
    declare(vhost.amqp_url)
    tell(vhost, "paused", "billing")


def test_a_worker_without_a_database_does_what_it_is_told(vhost: Vhost) -> None:
    with listening(vhost, "billing", "mail") as worker:
        tell(vhost, "paused", "billing", "of others")
        until(lambda: worker.limits == [("billing", 0)])
        tell(vhost, "paused", "billing", "mail")
        until(lambda: worker.limits == [("billing", 0), ("mail", 0)])
        tell(vhost, "resumed", "billing")
        until(lambda: worker.limits[2:] == [("billing", None)])


@pytest.fixture
def kept() -> dict[str, Pause]:
    """What the database would hold."""
    return {}


@pytest.fixture
def never_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "LOOK_SECONDS", NEVER)


PAUSE = Pause(now(), "ada", "double charges")


def test_a_worker_starts_paused_where_it_was_paused_before(vhost: Vhost, kept: dict[str, Pause]) -> None:
    kept["billing"] = PAUSE
    worker = Worker(vhost.amqp_url, "billing", "mail", read=lambda: kept)
    worker.control.start(60.0)
    assert worker.limits == [("billing", 0)], "known before a message is taken"
    worker.control.stop()


@pytest.mark.usefixtures("never_unasked")
def test_what_is_told_makes_a_worker_look_into_the_database_at_once(vhost: Vhost, kept: dict[str, Pause]) -> None:
    with listening(vhost, "billing", "mail", read=kept.copy) as worker:
        kept["billing"] = PAUSE
        tell(vhost, "paused", "billing")
        until(lambda: worker.limits == [("billing", 0)])
        del kept["billing"]
        tell(vhost, "resumed", "billing")
        until(lambda: worker.limits[1:] == [("billing", None)])


@pytest.mark.usefixtures("never_unasked")
def test_a_stranger_on_the_exchange_pauses_nothing_where_the_database_says_otherwise(
    vhost: Vhost, kept: dict[str, Pause]
) -> None:
    looks: list[float] = []

    def read() -> dict[str, Pause]:
        looks.append(time.monotonic())
        return dict(kept)

    kept["mail"] = PAUSE
    with listening(vhost, "billing", "mail", read=read) as worker:
        before = len(looks)
        tell(vhost, "paused", "billing")
        tell(vhost, "resumed", "mail")
        until(lambda: len(looks) > before, what="another look")
        kept["billing"] = PAUSE
        tell(vhost, "resumed", "billing", "mail")  # the truth is what counts
        until(lambda: worker.limits == [("mail", 0), ("billing", 0)])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"event": "purged", "consumers": ["billing"], "actor": "x"}',
        b'{"event": "paused", "consumers": "billing", "actor": "x"}',
        b'{"event": "paused", "consumers": [1], "actor": "x"}',
        b'{"event": "paused", "consumers": ["billing"]}',
        b'{"event": "paused", "consumers": [' + b'"billing",' * 10_000 + b'"billing"], "actor": "x"}',
        b'{"event": "paused", "consumers": ["billing"], "actor": "' + b"x" * 2_000_000 + b'"}',
    ],
    ids=lambda body: f"{len(body)}-{body[:30]!r}",
)
def test_what_is_not_from_ackline_is_ignored_and_logged(
    vhost: Vhost, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(vhost, "billing") as worker, Client(vhost.amqp_url) as stranger:
        stranger.publish(CONTROL, "", body)
        until(lambda: "is not from here, and ignored" in caplog.text)
        assert len(caplog.messages[-1]) < 200
        assert worker.limits == []
        tell(vhost, "paused", "billing")
        until(lambda: worker.limits == [("billing", 0)], what="that it still listens")


def test_what_nobody_told_is_seen_by_and_by(
    vhost: Vhost, kept: dict[str, Pause], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "LOOK_SECONDS", 0.05)
    with listening(vhost, "billing", read=kept.copy) as worker:
        kept["billing"] = PAUSE
        until(lambda: worker.limits == [("billing", 0)])


@pytest.mark.usefixtures("never_unasked")
def test_what_was_said_while_the_connection_was_lost_is_seen_when_it_is_back(
    vhost: Vhost, kept: dict[str, Pause]
) -> None:
    with listening(vhost, "billing", read=kept.copy) as worker:
        [queue] = queues(vhost)
        kept["billing"] = PAUSE
        worker.link.call(lambda: worker.link.drop("the test says so"))
        until(lambda: worker.limits == [("billing", 0)])
        until(lambda: queues(vhost) not in ([], [queue]), what="another queue")


def test_a_database_that_does_not_answer_is_said_once_and_asked_again(
    vhost: Vhost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(control, "AGAIN_SECONDS", 0.01)
    looks: list[int] = []

    def read() -> dict[str, Pause]:
        looks.append(len(looks))
        if len(looks) < 5:
            raise DatabaseUnavailable("The database is away.")
        return {"billing": PAUSE}

    with caplog.at_level("INFO", "ackline"), listening(vhost, "billing", read=read) as worker:
        until(lambda: worker.limits == [("billing", 0)])
    said = [record.getMessage() for record in caplog.records if "known" in record.msg or "learned" in record.msg]
    assert said == [
        (
            "it cannot be learned which consumers are paused, so they stay as they are; looking again every 0.01 s: "
            "The database is away."
        ),
        "it is known again which consumers are paused",
    ]


def test_a_worker_that_cannot_listen_says_so_and_listens_when_it_can(
    vhost: Vhost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(control, "_REOPEN_SECONDS", 0.05)
    with Client(vhost.amqp_url) as client, listening(vhost, "billing") as worker:
        client.delete_exchange(CONTROL)
        worker.link.call(lambda: worker.link.drop("the test says so"))
        until(lambda: "so a pause is not noticed at once: NOT_FOUND" in caplog.text)
        declare(vhost.amqp_url)
        until(lambda: queues(vhost), what="its queue")
        tell(vhost, "paused", "billing")
        until(lambda: worker.limits == [("billing", 0)])
    assert caplog.text.count("is not noticed at once") == 1


@pytest.mark.parametrize(("kind", "known"), [("set", True), ("made", True), ("missing", False)])
def test_a_worker_that_cannot_know_of_earlier_pauses_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, known: bool
) -> None:
    url = f"sqlite:///{tmp_path / 'other.db'}" if kind == "set" else None
    configured = Settings(data_dir=tmp_path, database_url=url)
    if kind == "made":
        database.upgrade(configured.database)
    read = control.reader(configured)
    assert (read is not None) == known
    assert ("no database is configured (ACKLINE_DATABASE_URL)" in caplog.text) == (not known)
    assert read is None or read() == {}


# --- the command line --------------------------------------------------------------------------------------


@pytest.fixture
def declared(ackline_settings: Settings) -> Settings:
    declare(ackline_settings.broker, [BILLING, MAIL])
    return ackline_settings


def rows(settings: Settings) -> dict[str, dict[str, Any]]:
    done = run(settings, "consumers", "list", "--json")
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}


def test_the_list_has_every_consumer_of_the_vhost_without_its_code(declared: Settings) -> None:
    until(lambda: all(row["state"] != "unknown" for row in rows(declared).values()), what="RabbitMQ to count")
    assert rows(declared) == {
        "billing": {
            "name": "billing",
            "state": "no worker",
            "queues": ["billing"],
            "types": ["order.changed", "order.placed"],
            "ready": 0,
            "unacked": 0,
            "consumers": 0,
            "paused": None,
        },
        "mail": {
            "name": "mail",
            "state": "no worker",
            "queues": ["mail"],
            "types": ["email.send"],
            "ready": 0,
            "unacked": 0,
            "consumers": 0,
            "paused": None,
        },
    }


def test_the_list_counts_what_waits(declared: Settings) -> None:
    with Client(declared.broker) as client:
        client.publish(MESSAGES, "order.placed", b"{}")
        client.publish(MESSAGES, "order.changed", b"{}")
    until(lambda: (rows(declared)["billing"]["ready"], rows(declared)["mail"]["ready"]) == (2, 0))


def test_the_list_says_who_paused_a_consumer_since_when_and_why(declared: Settings) -> None:
    done = run(declared, "consumers", "pause", "billing", "--reason", "double charges", ACKLINE_ACTOR="ada")
    assert (done.returncode, done.stdout, done.stderr) == (0, "billing: paused\n", "")
    listed = run(declared, "consumers", "list")
    assert re.search(
        r"^billing +[0?] +[0?] +[0?] +paused by ada since 20\S+ \S+Z: double charges +order.changed, order.placed",
        listed.stdout,
        re.MULTILINE,
    ), listed.stdout
    assert listed.stderr == "2 consumers, 1 paused.\n"
    row = rows(declared)["billing"]
    assert (row["state"], row["paused"]["actor"], row["paused"]["reason"]) == ("paused", "ada", "double charges")
    again = run(declared, "consumers", "pause", "billing", "mail", ACKLINE_ACTOR="grace")
    assert re.fullmatch(
        r"billing: already paused by ada since 20\S+ \S+Z: double charges\nmail: paused\n", again.stdout
    )


def test_what_is_paused_is_resumed_by_name_or_all_at_once(declared: Settings) -> None:
    assert run(declared, "consumers", "pause", "--all").stdout == "billing: paused\nmail: paused\n"
    assert run(declared, "consumers", "resume", "mail").stdout == "mail: resumed\n"
    assert run(declared, "consumers", "resume", "mail").stdout == "mail: was not paused\n"
    assert run(declared, "consumers", "resume", "--all").stdout == "billing: resumed\n"
    assert not any(row["paused"] for row in rows(declared).values())


@pytest.mark.parametrize("command", ["pause", "resume"])
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["biling"], 1, "ackline: There is no consumer biling: `ackline consumers list` shows which there are."),
        (["billing", "a\x1b[31m"], 1, "ackline: There is no consumer a\\x1b[31m: "),
        (["ackline.dead"], 1, "ackline: There is no consumer ackline.dead: "),
        ([], 2, "Name the consumers, or say --all"),
        (["billing", "--all"], 2, "Name the consumers, or say --all"),
    ],
)
def test_a_mistake_is_one_sentence_and_changes_nothing(
    declared: Settings, command: str, arguments: list[str], code: int, said: str
) -> None:
    done = run(declared, "consumers", command, *arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(row["paused"] for row in rows(declared).values())


def test_in_an_emergency_a_consumer_is_paused_without_the_management_api(declared: Settings) -> None:
    alone = declared.model_copy(update={"management_url": "http://127.0.0.1:1"})
    done = run(alone, "consumers", "pause", "billing")
    assert (done.returncode, done.stdout) == (0, "billing: paused\n")
    assert "whether these consumers exist is not known" in done.stderr
    assert rows(declared)["billing"]["state"] == "paused"


def test_what_is_paused_while_the_broker_is_away_is_kept(declared: Settings) -> None:
    alone = declared.model_copy(update={"amqp_url": "amqp://127.0.0.1:1/"})
    done = run(alone, "consumers", "pause", "billing")
    assert (done.returncode, done.stdout) == (0, "billing: paused\n")
    assert "it is kept, but running workers could not be told; they see it within 60 s." in done.stderr
    assert rows(declared)["billing"]["state"] == "paused"
