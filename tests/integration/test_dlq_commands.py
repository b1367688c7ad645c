"""`ackline dlq` as an operator uses it: in a process of its own, its output in a pipe or on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ackline.infra import database, wire
from ackline.infra.names import MESSAGES, UNROUTED
from ackline.infra.properties import Properties
from ackline.infra.settings import Settings
from tests.entering import ACTOR, enter
from tests.letters import handled, letter, read, worker_headers, worker_properties
from tests.review import Review
from tests.roles import ROOT, environment, run
from tests.sending import settle, take
from tests.waiting import until


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a database and no broker: working through dead letters needs none."""
    return Settings(
        amqp_url="amqp://127.0.0.1:1", data_dir=tmp_path, database_url=f"sqlite:///{tmp_path / 'data' / 'ackline.db'}"
    )


@pytest.fixture
def store(settings: Settings) -> Iterator[Review]:
    database.upgrade(settings.database)
    engine = database.connect(settings.database)
    yield Review(engine)
    engine.dispose()


def ask(settings: Settings, *arguments: str, code: int = 0, given: str | None = None) -> str:
    """What `ackline dlq` prints to standard output."""
    done = enter(settings, "dlq", *arguments, given=given)
    assert done.code == code, done
    return done.out


def complaint(settings: Settings, *arguments: str, code: int = 1, given: str | None = None) -> str:
    """What `ackline dlq` prints to standard error."""
    done = enter(settings, "dlq", *arguments, given=given)
    assert done.code == code, done
    return done.err


def test_the_list_of_a_new_database_is_empty(settings: Settings) -> None:
    assert ask(settings, "list") == ""
    assert complaint(settings, "list", code=0) == "0 dead letters.\n"


def test_the_list_shows_each_dead_letter_in_full_in_a_pipe(settings: Settings, store: Review) -> None:
    words = "550 5.1.1 No such mailbox here, and many more words that a narrow table would cut off somewhere " * 3
    store.ingest([replace(letter("m-1"), error_message=words), letter("m-2", consumer="shipping")])
    lines = ask(settings, "list").splitlines()
    assert len(lines) == 3
    assert "\x1b" not in "".join(lines)
    assert words.strip() in lines[2]
    for part in ("1", "in review", "order.placed", "billing", "2", "2026-01-02 03:00:01Z", "m-1"):
        assert part in lines[2]


def test_the_list_can_be_narrowed_and_paged(settings: Settings, store: Review) -> None:
    store.ingest([letter(f"m-{n}", consumer=("billing", "shipping")[n % 2]) for n in range(10)])
    store.ingest([read(worker_properties("lost"), exchange=MESSAGES, queue=UNROUTED)])
    store.discard(1, "not needed", "ada")
    assert ids(ask(settings, "list", "--consumer", "shipping", "--json")) == [10, 8, 6, 4, 2]
    assert ids(ask(settings, "list", "--consumer", "", "--json")) == [11]
    assert ids(ask(settings, "list", "--state", "discarded", "--json")) == [1]
    assert ids(ask(settings, "list", "--limit", "3", "--json")) == [11, 10, 9]
    assert ids(ask(settings, "list", "--limit", "3", "--cursor", "9", "--json")) == [8, 7, 6]
    assert ids(ask(settings, "list", "--type", "nobody.knows", "--json")) == []


def ids(lines: str) -> list[int]:
    return [json.loads(line)["id"] for line in lines.splitlines()]


def test_a_list_on_a_terminal_fits_it(settings: Settings, store: Review) -> None:
    store.ingest([replace(letter("m-1"), error_message="many words " * 50)])
    shown = on_a_terminal(settings, "list", columns=100)
    assert "\x1b[" in shown
    assert max(len(line) for line in plain_text(shown).splitlines()) <= 100


def test_what_a_stranger_wrote_cannot_steer_the_terminal(settings: Settings, store: Review) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e"
    properties = Properties(
        message_id=evil, type=evil, headers=worker_headers(evil=evil) | {wire.REASON: evil, wire.TRACEBACK: evil}
    )
    store.ingest([read(properties, evil.encode())])
    for output in (ask(settings, "list"), ask(settings, "show", "1")):
        assert not {"\x1b", "\x07", "\u202e"} & set(output)
        assert "\\x1b]0;owned" in output
    assert "\x1b]" not in on_a_terminal(settings, "show", "1", columns=100)


def test_show_tells_everything(settings: Settings, store: Review) -> None:
    store.ingest([letter("m-1", body=b'{"order_id":"A-1","items":[1,2]}', mine="kept")])
    shown = ask(settings, "show", "1")
    for part in (
        "Dead letter 1: in review",
        "failed 2 of 2 attempts: ValueError: no such user",
        "Traceback (most recent call last):",
        "2026-01-02T03:00:02.000Z     +1.0s  attempt 2 on host:1: ValueError: no such user",
        "mine = kept",
        "ackline-consumer = billing",
        "content_type = application/json",
        "ackline.messages, routing key order.placed",
        '  "order_id": "A-1",',
    ):
        assert part in shown


def test_show_finds_a_dead_letter_by_its_message_id(settings: Settings, store: Review) -> None:
    store.ingest([letter("m-1"), letter("m-2"), letter("m-2", consumer="shipping")])
    assert "Dead letter 1:" in ask(settings, "show", "m-1")
    told = complaint(settings, "show", "m-2")
    assert told == (
        "ackline: Several dead letters have the message id 'm-2': 2 (billing, in review), 3 (shipping, in review). "
        "Name one by its id.\n"
    )
    assert complaint(settings, "show", "4").startswith("ackline: There is no dead letter '4'; `ackline dlq list`")


def test_show_as_json_is_one_document(settings: Settings, store: Review) -> None:
    odd = Properties(message_id="m-2", headers={"nan": float("nan"), "bytes": b"\xff", "list": [None, True]})
    store.ingest([letter(), read(odd, b"\xff\x00")])
    document = json.loads(ask(settings, "show", "1", "--json"))
    assert (document["id"], document["payload"]["document"]) == (1, {"order_id": "A-1"})
    assert document["history"][1]["attempt"] == 2
    assert document["first_failed_at"] == "2026-01-02T03:00:01Z"
    binary = json.loads(ask(settings, "show", "2", "--json"), parse_constant=pytest.fail)
    assert (binary["payload"]["kind"], binary["payload"]["size"]) == ("binary", 2)
    assert binary["properties"]["headers"] == {"nan": "nan", "bytes": "\\xff", "list": [None, True]}


def test_a_large_payload_is_cut_on_the_screen_and_whole_in_a_file(settings: Settings, store: Review) -> None:
    body = b"\xff\x00" + bytes(range(256)) * 4000
    store.ingest([letter(body=body)])
    shown = ask(settings, "show", "1")
    assert "Payload (1,024,002 bytes)" in shown
    assert "all of it: ackline dlq show 1 --payload" in shown
    command = [sys.executable, "-m", "ackline.infra", "dlq", "show", "1", "--payload"]
    assert subprocess.run(command, env=environment(settings), cwd=ROOT, capture_output=True, check=True).stdout == body


def test_a_discard_keeps_the_reason_and_who_gave_it_and_says_how_to_undo_it(settings: Settings, store: Review) -> None:
    store.ingest([letter("m-1"), letter("m-2")])
    told = ask(settings, "discard", "1", "m-2", "--reason", "customer gave up")
    assert told == "2 dead letters discarded. Undo: ackline dlq undo 1 --reason …\n"
    found = store.get(1)
    assert (found.state, found.discarded_by, found.discard_reason) == ("discarded", "ada", "customer gave up")
    assert "ada: discard (in review → discarded): customer gave up (action 1)" in ask(settings, "show", "1")
    assert complaint(settings, "discard", "1", "--reason", "x").startswith("ackline: ")
    assert ask(settings, "undo", "1", "--reason", "he did not").startswith("2 dead letters restored.")
    assert store.counts()["in review"] == 2


@pytest.mark.parametrize("arguments", [["1"], ["1", "--reason", " \t"]])
def test_a_discard_without_a_reason_is_refused(settings: Settings, store: Review, arguments: list[str]) -> None:
    store.ingest([letter()])
    assert "--reason" in complaint(settings, "discard", *arguments, code=2)
    assert store.get(1).state == "in review"


def test_retry_waits_for_the_true_outcome(settings: Settings, store: Review) -> None:
    store.ingest([letter("m-1"), letter("m-2"), letter("m-3")])
    command = [sys.executable, "-m", "ackline.infra", "dlq", "retry", "1", "2", "3"]
    waiting = subprocess.Popen(
        command, env=environment(settings, ACKLINE_ACTOR=ACTOR), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    claims = until(lambda: take(store, 10, 30), what="the request")
    items = {claim.dead_letter_id: claim.item_id for claim in claims}
    settle(store, [items[1], items[2]], {}, {items[3]: "could not be sent: too large"}, again_in=1)
    store.outcomes([handled(items[1])])
    failed = letter("m-2", redrive=items[2], minute=5)
    store.ingest([replace(failed, error_type="SMTPRecipientsRefused", error_message="550 no such mailbox")])
    told, _ = waiting.communicate(timeout=120)
    assert sorted(told.splitlines()) == [
        "1: handled by billing",
        "2: in review again: SMTPRecipientsRefused: 550 no such mailbox",
        "3: could not be sent: too large",
    ]
    assert waiting.returncode == 1


def test_retry_ends_with_zero_when_all_were_handled(settings: Settings, store: Review) -> None:
    store.ingest([letter("m-1")])
    command = [sys.executable, "-m", "ackline.infra", "dlq", "retry", "m-1"]
    waiting = subprocess.Popen(command, env=environment(settings), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    (claim,) = until(lambda: take(store, 10, 30), what="the request")
    store.outcomes([handled(claim.item_id)])
    assert waiting.communicate(timeout=120)[0] == "1: handled by billing\n"
    assert waiting.returncode == 0


def test_retry_that_waits_in_vain_says_so_and_does_not_ask_twice(settings: Settings, store: Review) -> None:
    store.ingest([letter()])
    told = ask(settings, "retry", "1", "--timeout", "0.1", code=3)
    assert told == "1: still under way after 0.1 s (is the reviewer running?)\n"
    held = f"it is being redriven by {ACTOR} (redrive 1)"
    assert complaint(settings, "retry", "1") == f"ackline: Dead letter 1 cannot be redriven: {held}.\n"
    assert len(take(store, 10, 30)) == 1


def test_retry_without_waiting_only_asks(settings: Settings, store: Review) -> None:
    store.ingest([letter()])
    assert ask(settings, "retry", "1", "--no-wait") == "1: requested\n"
    assert store.get(1).state == "redriving"
    assert store.get(1).actions[0].actor == "ada"


def test_retry_of_what_no_consumer_took_looks_for_one_in_the_application(settings: Settings, store: Review) -> None:
    mail = Properties(message_id="m-1", type="email.send")
    store.ingest(
        [read(properties, exchange=MESSAGES, queue=UNROUTED) for properties in (mail, worker_properties("m-2"))]
    )
    told = complaint(settings, "retry", "2")
    assert "no consumer in ACKLINE_APP takes messages of type 'order.placed'" in told
    assert ask(settings, "retry", "1", "--no-wait") == "1: requested\n"
    assert store.get(1).consumer == "email"


def test_a_database_that_does_not_work_is_one_sentence(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    broken = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path / 'file' / 'x' / 'ackline.db'}"})
    assert complaint(broken, "list").startswith(f"ackline: The folder {tmp_path / 'file' / 'x'} of the database cannot")
    wrong = settings.model_copy(update={"database_url": "mysql://localhost/x"})
    assert complaint(wrong, "list", code=2).startswith("ackline: ACKLINE_DATABASE_URL cannot be used")
    done = run(broken, "reviewer")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_a_reviewer_without_a_broker_is_one_sentence(settings: Settings, tmp_path: Path) -> None:
    nothing = settings.model_copy(update={"amqp_url": "http://localhost"})
    done = run(nothing, "reviewer")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("ackline: ACKLINE_AMQP_URL cannot be used")


def on_a_terminal(settings: Settings, *arguments: str, columns: int) -> str:
    """What `ackline dlq` prints to a terminal of that width."""
    master, slave = pty.openpty()
    more = {"COLUMNS": str(columns), "TERM": "xterm-256color"}
    variables = {name: value for name, value in environment(settings, **more).items() if name not in ("NO_COLOR",)}
    command = [sys.executable, "-m", "ackline.infra", "dlq", *arguments]
    process = subprocess.Popen(command, env=variables, cwd=ROOT, stdout=slave, stderr=subprocess.DEVNULL)
    os.close(slave)
    pieces = []
    try:
        while piece := os.read(master, 65536):
            pieces.append(piece)
    except OSError:  # what a terminal says when its other side is closed
        pass
    os.close(master)
    assert process.wait(60) == 0
    return b"".join(pieces).decode()


def plain_text(shown: str) -> str:
    """*shown* without the sequences that colour it."""
    return re.sub(r"\x1b\[[0-9;]*m", "", shown)
