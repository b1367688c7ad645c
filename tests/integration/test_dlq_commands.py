"""`ackline dlq` as an operator uses it: in a process of its own, its output in a pipe or on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ackline.dlq.cli.root import dlq
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


def objects(lines: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines()]


def ids(lines: str) -> list[int]:
    return [found["id"] for found in objects(lines)]


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


# --- groups -----------------------------------------------------------------------------------------------------------


def test_groups_are_listed_shown_and_triaged(settings: Settings, store: Review) -> None:
    store.ingest([letter("m-1"), letter("m-2"), letter("m-3", consumer="shipping")])
    found = {group["consumer"]: group for group in objects(ask(settings, "groups", "--json"))}
    assert {name: group["counts"]["in review"] for name, group in found.items()} == {"billing": 2, "shipping": 1}
    billing = found["billing"]["fingerprint"]
    assert billing in ask(settings, "groups", "--consumer", "billing")
    told = ask(
        settings, "triage", billing, "--status", "acknowledged", "--owner", "grace", "--note", "the bank is down"
    )
    for part in ("acknowledged since", "by ada", "grace", "the bank is down", "2 in review"):
        assert part in told
    assert "acknowledged, grace: the bank is down" in ask(settings, "groups")
    assert ids(ask(settings, "list", "--group", billing, "--json")) == [2, 1]
    assert "Say something of it" in complaint(settings, "triage", billing, code=2)
    assert "There is no group 'nobody'" in complaint(settings, "groups", "nobody")


def test_groups_have_pages(settings: Settings, store: Review) -> None:
    store.ingest([letter(f"m-{n}", consumer=f"c-{n}") for n in range(3)])
    first = enter(settings, "dlq", "groups", "--limit", "2", "--json")
    cursor = first.err.partition("--cursor ")[2].strip().strip("'")
    second = enter(settings, "dlq", "groups", "--limit", "2", "--json", "--cursor", cursor)
    assert {group["consumer"] for group in objects(first.out + second.out)} == {"c-0", "c-1", "c-2"}
    assert "--cursor" not in second.err


# --- which dead letters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--where", 'payload.order_id = "A-2"'], [2]),
        (["--text", "mailb"], [3]),
        (["--error", "ValueError", "--consumer", "billing"], [3, 1]),
        (["--attempts", "3-"], [2]),
        (["--attempts", "-2"], [3, 1]),
        (["--attempts", "2-3"], [3, 2, 1]),
        (["--since", "1h"], [3, 2, 1]),
        (["--until", "1h"], []),
        (["--since", "2026-01-31T22:15", "--until", "2026-01-31T22:16"], []),
        (["--correlation-id", "c-1"], []),
        (["--message-id", "m-2"], [2]),
        (["--id", "1", "--id", "3"], [3, 1]),
        (["2"], [2]),
        (["--source", "broker"], []),
    ],
)
def test_each_filter_narrows_the_list(
    settings: Settings, store: Review, arguments: list[str], found: list[int]
) -> None:
    first, second, third = (
        letter(f"m-{n}", body=json.dumps({"order_id": f"A-{n}"}).encode(), consumer=consumer)
        for n, consumer in enumerate(("billing", "shipping", "billing"), start=1)
    )
    store.ingest([first, replace(second, attempts=3), replace(third, error_message="550 no such mailbox")])
    assert ids(ask(settings, "list", "--json", *arguments)) == found


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "--where", "payload.order_id"], "there should be an operator"),
        (
            ["list", "--where", "order_id = 1; DROP TABLE dead_letters"],
            "there should be a path that begins with payload",
        ),
        (["list", "--id", "x' OR 1=1"], "There is no dead letter"),
    ],
)
def test_a_filter_that_cannot_be_used_is_one_sentence(
    settings: Settings, store: Review, arguments: list[str], said: str
) -> None:
    assert said in complaint(settings, *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "--attempts", "many"], "is no range"),
        (["list", "--since", "yesterday"], "neither a time"),
        (["list", "--group", ""], "is empty"),
        (["discard", "--reason", "x"], "Say which dead letters"),
        (["plan"], "Say which dead letters"),
        (["plan", "1", "--rate", "quickly"], "is no rate"),
        (["retry"], "Missing argument"),
    ],
)
def test_a_command_line_that_cannot_be_used_changes_nothing(
    settings: Settings, store: Review, arguments: list[str], said: str
) -> None:
    store.ingest([letter()])
    assert said in complaint(settings, *arguments, code=2)
    assert store.counts()["in review"] == 1


# --- pipes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", ["1\n3\n", '"1"\n\n3\n3\n', '{"id": 1}\n{"id": 3, "type": "x"}\n', "m-1\nm-3\n"])
def test_ids_come_through_a_pipe(settings: Settings, store: Review, lines: str) -> None:
    store.ingest([letter(f"m-{n}") for n in (1, 2, 3)])
    assert ask(settings, "retry", "-", "--no-wait", given=lines) == "1: requested\n3: requested\n"
    assert [store.get(row).state for row in (1, 2, 3)] == ["redriving", "in review", "redriving"]


def test_what_list_prints_is_what_other_commands_take(settings: Settings, store: Review) -> None:
    store.ingest([letter(f"m-{n}") for n in range(3)])
    listed = ask(settings, "list", "--json")
    assert ask(settings, "discard", "-", "--reason", "tests", given=listed).startswith("3 dead letters discarded.")


def test_nothing_in_the_pipe_is_nothing_and_not_everything(settings: Settings, store: Review) -> None:
    store.ingest([letter()])
    complaint(settings, "discard", "--id", "-", "--reason", "x", given="")
    complaint(settings, "retry", "-", given="")
    assert store.counts()["in review"] == 1


def test_a_line_that_is_no_id_is_named(settings: Settings, store: Review) -> None:
    assert "Line 2 of standard input" in complaint(settings, "retry", "-", given='1\n{"no": 1}\n', code=2)


# --- discarding -------------------------------------------------------------------------------------------------------


def test_many_are_discarded_only_by_who_knows_how_many_they_are(settings: Settings, store: Review) -> None:
    store.ingest([letter(f"m-{n}") for n in range(101)])
    arguments = ["discard", "--consumer", "billing", "--reason", "load test"]
    assert "101" in complaint(settings, *arguments)
    assert "not 100" in complaint(settings, *arguments, "--expect", "100")
    assert store.counts()["in review"] == 101
    assert ask(settings, *arguments, "--expect", "101").startswith(
        "101 dead letters discarded. Undo: ackline dlq undo 1 "
    )


def test_on_a_terminal_who_discards_many_types_how_many_they_are(settings: Settings, store: Review) -> None:
    store.ingest([letter(f"m-{n}") for n in range(101)])
    command = ["discard", "--consumer", "billing", "--reason", "load test"]
    shown = on_a_terminal(settings, *command, columns=100, typed="101\n", errors=True)
    assert "This discards 101 dead letters. Type how many to go on" in shown
    assert "101 dead letters discarded." in shown


def test_what_waits_for_a_second_person_ends_with_4(settings: Settings, store: Review) -> None:
    store.ingest([letter()])
    rules = {"ACKLINE_APPROVAL_RULES": '[{"action": "discard"}]'}
    done = enter(settings, "dlq", "discard", "1", "--reason", "x", **rules)
    assert done.code == 4
    assert "waits for a second person" in done.err
    assert store.get(1).state == "in review"


def test_what_was_discarded_comes_back(settings: Settings, store: Review) -> None:
    store.ingest([letter("m-1"), letter("m-2")])
    ask(settings, "discard", "1", "2", "--reason", "tests")
    assert ask(settings, "restore", "2", "--reason", "no test").startswith("1 dead letter restored.")
    assert ids(ask(settings, "list", "--state", "discarded", "--json")) == [1]
    assert json.loads(ask(settings, "undo", "1", "--reason", "all of it", "--json"))["count"] == 1


def test_a_note_is_with_the_dead_letter(settings: Settings, store: Review) -> None:
    store.ingest([letter()])
    assert ask(settings, "note", "1", "asked the customer") == "1: noted.\n"
    assert "ada: asked the customer" in ask(settings, "show", "1")


# --- editing ----------------------------------------------------------------------------------------------------------

MAIL = Properties(message_id="m-1", type="email.send", content_type="application/json", headers=worker_headers("email"))
MAIL_BODY = b'{"to": "ada at example", "subject": "Hi", "body": "0.10"}'


def test_an_edit_shows_what_differs_and_how_to_undo_it(settings: Settings, store: Review) -> None:
    store.ingest([read(MAIL, MAIL_BODY)])
    told = ask(settings, "edit", "1", "--set", "to=ada@example.test", "--reason", "typo")
    assert 'payload.to: "ada at example" → "ada@example.test"' in told
    assert "has version 1: its contract takes it. Send it back: ackline dlq retry 1" in told
    assert json.loads(store.payload(1))["to"] == "ada@example.test"
    assert "version 1: typo\n" in ask(settings, "show", "1")
    ask(settings, "revert", "1", "0", "--reason", "no typo")
    assert store.payload(1) == MAIL_BODY


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "to=nobody"], "to: "),
        (["--set", "to.name=nobody"], "could be set in"),
        (["--set", "to=ada at example"], "That changes nothing."),
        (["--file", "-"], "it is not JSON"),
        (["--header", "ackline-consumer=other"], "is written by Ackline"),
    ],
)
def test_an_edit_that_cannot_be_saved_says_why(
    settings: Settings, store: Review, arguments: list[str], said: str
) -> None:
    store.ingest([read(MAIL, MAIL_BODY)])
    assert said in complaint(settings, "edit", "1", *arguments, "--reason", "x", given="{")
    assert store.get(1).version == 0


def test_headers_are_edited(settings: Settings, store: Review) -> None:
    store.ingest([letter(tenant="blue", shard=7)])
    told = ask(settings, "edit", "1", "--header", "tenant=green", "--drop-header", "shard", "--reason", "moved")
    assert 'headers.tenant: "blue" → "green"' in told
    assert store.get(1).headers == {"tenant": "green"}


def test_an_edit_in_an_editor(settings: Settings, store: Review) -> None:
    store.ingest([read(MAIL, MAIL_BODY)])
    editor = {"EDITOR": "sed -i 's/ada at example/ada@example.test/'", "VISUAL": ""}
    done = enter(settings, "dlq", "edit", "1", "--reason", "typo", given="y\n", **editor)
    assert done.code == 0, done
    assert store.payload(1) == MAIL_BODY.replace(b"ada at example", b"ada@example.test")


def test_a_patch_is_tried_on_a_few_and_planned_for_all(settings: Settings, store: Review, tmp_path: Path) -> None:
    store.ingest([letter(f"m-{n}", body=json.dumps({"total": n}).encode()) for n in range(3)] + [letter("m-3", b"no")])
    patch = tmp_path / "patch.json"
    patch.write_text('[{"op": "replace", "path": "/total", "value": 9}]')
    told = ask(settings, "patch", str(patch), "--consumer", "billing", "--preview", code=1)
    assert "payload.total: 2 → 9" in told
    assert "4: order.placed\n  cannot be patched: payload: " in told
    assert objects(ask(settings, "redrives", "list", "--json")) == []
    told = ask(settings, "patch", str(patch), "--consumer", "billing")
    assert "Redrive 1 is planned: 3 messages. Nothing has been sent." in told
    assert "1 dead letter will not be sent:" in told
    patch.write_text("[{")
    assert "is not JSON" in complaint(settings, "patch", str(patch), "--consumer", "billing")


# --- redrives ---------------------------------------------------------------------------------------------------------


def test_a_redrive_is_planned_started_slowed_paused_resumed_and_cancelled(settings: Settings, store: Review) -> None:
    store.ingest([letter(f"m-{n}") for n in range(3)])
    told = ask(settings, "plan", "--consumer", "billing", "--rate", "600/m", "--reason", "the bank is back")
    for part in ("3 messages. Nothing has been sent.", "billing 3", "order.placed 3", "10 a second", "dlq start 1"):
        assert part in told
    assert "has not begun" in complaint(settings, "watch", "1")
    assert ask(settings, "start", "1").startswith(
        "Redrive 1 has begun: 3 messages.\n  Watch it:    ackline dlq watch 1"
    )
    assert ask(settings, "watch", "1", "--timeout", "0", code=3).startswith("Redrive 1 is running: 3 to be sent.")
    assert "sends 1 a minute" in ask(settings, "rate", "1", "1/m")
    assert "is paused" in ask(settings, "pause", "1")
    assert "paused by ada" in ask(settings, "watch", "1", code=1)
    assert "goes on" in ask(settings, "resume", "1")
    assert "cannot be resumed" in complaint(settings, "resume", "1")
    assert "is cancelled: 3 skipped" in ask(settings, "cancel", "1")
    assert "it adds up" in ask(settings, "redrives", "statement", "1")
    assert [item["state"] for item in objects(ask(settings, "redrives", "items", "1", "--json"))] == ["skipped"] * 3
    assert "3 skipped" in ask(settings, "redrives", "list")
    shown = ask(settings, "redrives", "show", "1")
    assert "the bank is back" in shown
    assert store.counts()["in review"] == 3


def test_what_is_not_sent_is_told_with_the_plan(settings: Settings, store: Review) -> None:
    store.ingest([letter("m-1"), letter("m-2")])
    ask(settings, "discard", "1", "--reason", "tests")
    told = ask(settings, "plan", "1", "2")
    assert "Redrive 1 is planned: 1 message." in told
    assert "1 dead letter will not be sent:" in told
    assert "it was discarded by ada" in ask(settings, "redrives", "items", "1", "--state", "ineligible")


def test_watching_all_is_live_until_ctrl_c(settings: Settings, store: Review) -> None:
    store.ingest([letter()])
    assert "Name a redrive" in complaint(settings, "watch", code=2)
    master, slave = pty.openpty()
    # Where tests run in the background of a shell, that has their processes ignore Ctrl-C.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "ackline.infra", "dlq", "watch"]
    variables = environment(settings, COLUMNS="80", LINES="24", TERM="xterm-256color")
    process = subprocess.Popen(command, env=variables, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    try:
        shown = b""
        while b"billing: ValueError" not in shown:
            shown += os.read(master, 65536)
        process.send_signal(signal.SIGINT)
        while b"It goes on without you." not in shown:
            shown += os.read(master, 65536)
        assert process.wait(60) == 3
    finally:
        process.kill()
        process.wait()
        os.close(master)


# --- elsewhere --------------------------------------------------------------------------------------------------------


def test_what_was_exported_is_imported_elsewhere(settings: Settings, store: Review, tmp_path: Path) -> None:
    store.ingest([letter("m-1"), letter("m-2", b"\xff\x00")])
    exported = enter(settings, "dlq", "export", "--consumer", "billing")
    assert exported.err == "2 dead letters exported.\n"
    other = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path / 'other.db'}"})
    assert ask(other, "import", "-", given=exported.out) == "2 dead letters taken in, 0 known already.\n"
    assert ask(other, "import", "-", given=exported.out) == "0 dead letters taken in, 2 known already.\n"
    assert len(ids(ask(other, "list", "--json"))) == 2
    assert "line 1: " in complaint(other, "import", "-", given="no JSON\n")


# --- the Tab key ------------------------------------------------------------------------------------------------------


def completed(settings: Settings, words: str) -> list[str]:
    """What the Tab key offers after *words*, by the script for fish."""
    begun, _, incomplete = words.rpartition(" ")
    more = {"_ACKLINE_COMPLETE": "fish_complete", "COMP_WORDS": begun, "COMP_CWORD": incomplete}
    done = enter(settings, **more)
    return [line.split(",", 1)[1].split("\t")[0] for line in done.out.splitlines() if line]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_what_a_shell_needs(settings: Settings, shell: str) -> None:
    done = enter(settings, "completion", shell)
    assert f"_ACKLINE_COMPLETE={shell}_complete" in done.out


def test_the_tab_key_completes_what_is_in_the_database(settings: Settings, store: Review) -> None:
    store.ingest([letter("m-1"), letter("m-2", consumer="shipping")])
    assert set(completed(settings, "ackline dlq re")) == {"redrives", "restore", "resume", "retry", "revert"}
    assert completed(settings, "ackline dlq show ") == ["2", "1"]
    assert completed(settings, "ackline dlq list --consumer s") == ["shipping"]
    assert len(completed(settings, "ackline dlq triage ")) == 2
    assert completed(settings, "ackline dlq watch ") == []


def test_the_tab_key_is_silent_where_there_is_no_database(settings: Settings, tmp_path: Path) -> None:
    nothing = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path / 'none.db'}"})
    assert completed(nothing, "ackline dlq show ") == []
    away = settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:1/none"})
    assert completed(away, "ackline dlq show ") == []


def test_every_command_says_what_it_does_in_a_line_that_is_not_cut() -> None:
    for command in dlq.commands.values():
        told = command.get_short_help_str(70)
        assert told.endswith(".")
        assert not told.endswith("..."), command.name


# --- what does not work ----------------------------------------------------------------------------------------------


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


def on_a_terminal(settings: Settings, *arguments: str, columns: int, typed: str = "", errors: bool = False) -> str:
    """What `ackline dlq` prints to a terminal of that width; errors: to standard error, too."""
    master, slave = pty.openpty()
    more = {"COLUMNS": str(columns), "TERM": "xterm-256color"}
    variables = {name: value for name, value in environment(settings, **more).items() if name not in ("NO_COLOR",)}
    command = [sys.executable, "-m", "ackline.infra", "dlq", *arguments]
    process = subprocess.Popen(
        command, env=variables, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave if errors else subprocess.DEVNULL
    )
    os.close(slave)
    os.write(master, typed.encode())
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
