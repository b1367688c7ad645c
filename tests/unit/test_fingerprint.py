"""Which failures are the same kind, and which are not."""

from __future__ import annotations

import subprocess
import sys
import time
import traceback
from dataclasses import replace

import pytest

from ackline.dlq import fingerprint
from ackline.dlq.deadletter import DeadLetter
from ackline.dlq.fingerprint import frame_of, normalised
from ackline.infra import wire
from ackline.infra.names import DEAD, MESSAGES, RETURN, UNROUTED
from ackline.infra.properties import Properties
from tests.letters import letter, read, worker_properties
from tests.roles import ROOT

HANDLER = """\
Traceback (most recent call last):
  File "/srv/venv/lib/python3.11/site-packages/ackline/consumers/calling.py", line 40, in call
    handler(message)
  File "{root}/shop/billing.py", line {line}, in charge
    rates.of(order.country)
    ^^^^^^^^^^^^^^^^^^^^^^^
  File "{root}/shop/rates.py", line 7, in of
    return json.loads(text)
  File "/usr/lib/python3.11/json/decoder.py", line 340, in decode
    raise JSONDecodeError("Extra data", s, end)
json.decoder.JSONDecodeError: Extra data: line 1 column 5 (char 4)
"""


def failed(
    error_type: str = "ValueError", message: str = "no such user", traceback: str = "", **more: str
) -> DeadLetter:
    return replace(letter(), error_type=error_type, error_message=message, traceback=traceback, **more)  # type: ignore[arg-type]


def same(first: DeadLetter, second: DeadLetter) -> bool:
    return fingerprint.of(first).id == fingerprint.of(second).id


# --- what the worker says ---------------------------------------------------------------------------------------------


def test_the_same_bug_is_one_kind_on_every_machine_in_every_release_and_for_every_message() -> None:
    here = failed("JSONDecodeError", "Extra data: line 1 column 5 (char 4)", HANDLER.format(root="/srv/app", line=12))
    there = failed("JSONDecodeError", "Extra data: line 2 column 17", HANDLER.format(root="C:\\app", line=99))
    assert fingerprint.of(here).frame == fingerprint.of(there).frame == "rates.py:of"
    assert fingerprint.of(here).message == "Extra data: line <n> column <n> (char <n>)"
    assert same(here, replace(there, error_message="Extra data: line 2 column 17 (char 16)"))
    assert not same(here, there), "it says something else"


@pytest.mark.parametrize(
    "other",
    [
        failed("KeyError"),
        failed(message="no such order"),
        failed(consumer="shipping"),
        failed(traceback=HANDLER.format(root="/srv", line=1)),
    ],
    ids=["type", "message", "consumer", "place"],
)
def test_another_type_message_consumer_or_place_is_another_kind(other: DeadLetter) -> None:
    assert not same(failed(), other)


def test_what_a_message_is_about_makes_no_kind() -> None:
    assert same(failed(), replace(failed(), message_id="m-2", payload=b"other", type="order.changed", attempts=9))


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    program = (
        "from ackline.dlq import fingerprint; from tests.letters import letter; print(fingerprint.of(letter()).id)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint.of(letter()).id == "4a367f59649bbf14"


# --- what the broker says ---------------------------------------------------------------------------------------------


def dead_by_broker(reason: str, **headers: int) -> DeadLetter:
    death = {"queue": "billing", "reason": reason, "exchange": MESSAGES, "routing-keys": ["order.placed"], "count": 1}
    return read(Properties(message_id="m-1", headers={"x-death": [death], **headers}))


def test_what_the_broker_dead_letters_is_a_kind_for_each_consumer_and_cause() -> None:
    crashed = dead_by_broker("delivery_limit", **{"x-delivery-count": 21})
    assert same(crashed, dead_by_broker("delivery_limit", **{"x-delivery-count": 20}))
    assert same(crashed, dead_by_broker("delivery_limit"))
    assert not same(crashed, dead_by_broker("expired"))
    assert not same(crashed, replace(crashed, consumer="shipping"))
    found = fingerprint.of(crashed)
    assert (found.error_type, found.frame, found.message) == (
        "crash",
        "",
        "It crashed or lost its worker <n> times (the broker's delivery limit on the queue <text>).",
    )


def test_each_type_that_nobody_consumes_is_a_kind_of_its_own() -> None:
    placed = read(worker_properties(), exchange=MESSAGES, queue=UNROUTED)
    assert not same(placed, replace(placed, type="order.changed"))
    assert fingerprint.of(placed).message == "No consumer takes messages of type 'order.placed'."
    gone = read(worker_properties(), exchange=RETURN, queue=UNROUTED)
    assert not same(placed, gone)
    assert same(gone, replace(gone, type="order.changed")), "of a consumer that is gone the type says nothing"


def test_what_nobody_explains_has_a_fingerprint_too() -> None:
    found = fingerprint.of(read(Properties(), exchange=DEAD))
    assert (found.error_type, found.frame) == ("", "")
    assert found.message == f"It was put into {DEAD} without a reason."


# --- the place --------------------------------------------------------------------------------------------------------


def test_of_chained_exceptions_the_one_that_was_raised_counts() -> None:
    first = 'Traceback (most recent call last):\n  File "/app/a.py", line 1, in first\n    x\nKeyError: 1\n'
    then = 'Traceback (most recent call last):\n  File "/app/b.py", line 2, in then\n    y\nValueError: 2\n'
    between = "\nDuring handling of the above exception, another exception occurred:\n\n"
    assert frame_of(first + between + then) == "b.py:then"


def test_a_library_counts_only_where_the_application_has_no_frame() -> None:
    lines = [
        "Traceback (most recent call last):",
        '  File "/work/lib64/python3.12/site-packages/ackline/consumers/calling.py", line 1, in call',
        '  File "/work/lib/python3.12/site-packages/shop/billing.py", line 1, in charge',
        '  File "/usr/lib/python3.12/socket.py", line 1, in connect',
        "OSError: no",
    ]
    assert frame_of("\n".join(lines)) == "billing.py:charge"
    del lines[2]
    assert frame_of("\n".join(lines)) == "calling.py:call"
    del lines[1]
    assert frame_of("\n".join(lines)) == "socket.py:connect"
    assert frame_of(lines[-1]) == ""


def test_frames_of_exception_groups_are_read() -> None:
    def fail() -> None:
        raise ExceptionGroup("both", [ValueError(1)])

    with pytest.raises(ExceptionGroup) as caught:
        fail()
    said = "".join(traceback.format_exception(caught.value))
    assert "+ Exception Group Traceback" in said
    assert frame_of(said) == "test_fingerprint.py:fail"


def test_a_traceback_that_was_cut_has_the_same_place() -> None:
    whole = HANDLER.format(root="/srv/app", line=12)
    assert frame_of(wire.cut_start(whole, 260)) == frame_of(whole)


# --- the message ------------------------------------------------------------------------------------------------------

NORMALISED = {
    "user 42 is unknown": "user <n> is unknown",
    "balance is -3.50, not 1,000": "balance is <n>, not <n>",
    "took 1.5e-9 s": "took <n> s",
    "took 15s": "took <n>s",
    "user 'ada' has no \"email\" and no `name`": "user <text> has no <text> and no <text>",
    "can't open ann's file 7": "can't open ann's file <n>",
    "no key b'\\x00'": "no key <text>",
    "unexpected: 'a value that was cut somewhe…": "unexpected: <text>",
    "one of 'a', 'b', 'c'": "one of <text>",
    "one of 1, 2, 3": "one of <n>",
    "order 0190f5c0-1234-7abc-8def-0123456789ab is gone": "order <id> is gone",
    "order-17 for ada@example.com": "order-<n> for <email>",
    "customer cus_Nf8xK2bQ9 refused": "customer cus_<id> refused",
    "since 2026-01-02T03:04:05.678Z, or 2026-01-02": "since <date>, or <date>",
    "<Order object at 0x7f3a2b>": "<Order object at <hex>>",
    "commit 9fceb02d0ae598e95dc970b74767f19372d61af8": "commit <hex>",
    "no such file: /var/data/x.csv": "no such file: <path>",
    "no such file: C:\\data\\x.csv": "no such file: <path>",
    "503 from https://api.example.com/v1/x?y=1 after 30s": "<n> from <url> after <n>s",
    "10.0.0.1:5432 refuses": "<n> refuses",
    "key=17 and key=None": "key=<n> and key=None",
    "wants and/or application/json": "wants and/or application/json",
    "two\n  lines": "two lines",
    "utf8 and sha256": "utf<n> and sha<n>",
    "Bestellung ohne Größe": "Bestellung ohne Größe",
    "": "",
}


@pytest.mark.parametrize(("said", "expected"), NORMALISED.items())
def test_what_differs_from_message_to_message_is_taken_out(said: str, expected: str) -> None:
    assert normalised(said) == expected


HOSTILE = ["'", "'a", '"', "`'\"", "1.", "1a.", "-1", "a@", "/", "\\", "0-", "1111-11-11T", "ab12-", "<n>, ", "…", "é1"]


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_hostile_message_costs_no_more_than_another(piece: str) -> None:
    began = time.process_time()
    for _ in range(20):  # a millisecond each; all of the text, or a pattern that backtracks, takes a hundred
        fingerprint.of(failed(message=piece * 100_000, traceback=f'  File "{piece}' * 50_000))
    assert time.process_time() - began < 1


def test_a_fingerprint_is_bounded() -> None:
    found = fingerprint.of(failed("E" * 100, "word " * 1000, f'  File "/{"a" * 5000}.py", line 1, in {"f" * 5000}'))
    assert (len(found.id), len(found.message), len(found.frame)) == (16, 200, 200)
