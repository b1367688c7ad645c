"""The journal: what is in a handler, and who is a suspect."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator

import pytest

from ackline.consumers import journal
from ackline.consumers.journal import MOST_SUSPECTS, SLOTS, SUSPECT_SECONDS, Journal, journal_file, key_of, open_journal
from ackline.infra.properties import Properties
from tests.waiting import until


@pytest.fixture
def file() -> Iterator[int]:
    descriptor = journal_file(2)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def parent(file: int) -> Journal:
    return open_journal(file, 0)


@pytest.fixture
def first(file: int) -> Journal:
    """Of a process that has died."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return open_journal(file, 1, process=process.pid)


@pytest.fixture
def second(file: int) -> Journal:
    return open_journal(file, 2)


def test_a_key_is_a_consumer_and_a_message() -> None:
    message = Properties(message_id="m-1")
    assert key_of("billing", message, b"{}") == key_of("billing", Properties(message_id="m-1"), b"another attempt")
    assert key_of("billing", message, b"{}") != key_of("shipping", message, b"{}")
    assert key_of("billing", message, b"{}") != key_of("billing", Properties(message_id="m-2"), b"{}")


def test_a_message_without_an_id_is_known_by_its_body() -> None:
    assert key_of("billing", Properties(), b"1") == key_of("billing", Properties(), b"1")
    assert key_of("billing", Properties(), b"1") != key_of("billing", Properties(), b"2")
    assert len(key_of("billing", Properties(), b"1" * 1_000_000)) < 100


def test_the_longest_key_fits_between_its_neighbours(first: Journal, second: Journal) -> None:
    keys = [key_of("é" * 100, Properties(message_id=character * 255), b"") for character in "abc"]
    for key in keys:
        first.own.enter(key)
    assert all(second.names(key) for key in keys)


def test_what_was_in_a_handler_of_one_that_died_is_a_suspect_before_anybody_has_seen_that_death(
    first: Journal, second: Journal
) -> None:
    slot = first.own.enter(b"billing\x00m-1")
    assert second.names(b"billing\x00m-1")
    assert not second.names(b"billing\x00m-2")
    first.own.leave(slot)
    assert not second.names(b"billing\x00m-1")


def test_one_that_has_died_and_that_nobody_has_waited_for_is_dead(file: int, second: Journal) -> None:
    process = subprocess.Popen(["true"])
    try:
        open_journal(file, 1, process=process.pid).own.enter(b"billing\x00m-1")
        until(lambda: second.names(b"billing\x00m-1"), what="its end to be seen")
    finally:
        process.wait()


def test_what_is_in_a_handler_of_one_that_lives_is_no_suspect(file: int, second: Journal) -> None:
    # It has lost its connection, so that another gets the message as well.
    open_journal(file, 1).own.enter(b"billing\x00m-1")
    assert not second.names(b"billing\x00m-1")


def test_what_a_process_handles_itself_is_no_suspect_to_it(second: Journal) -> None:
    second.own.enter(b"billing\x00m-1")
    assert not second.names(b"billing\x00m-1")


def test_what_was_in_a_handler_at_a_death_is_a_suspect_until_it_is_acquitted(
    parent: Journal, first: Journal, second: Journal, file: int
) -> None:
    first.own.enter(b"billing\x00m-1")
    first.own.leave(first.own.enter(b"billing\x00m-2"))
    assert parent.accuse(1) == [b"billing\x00m-1"]
    successor = open_journal(file, 1)
    assert successor.names(b"billing\x00m-1")
    assert second.names(b"billing\x00m-1")
    assert not successor.names(b"billing\x00m-2")
    second.acquit(b"billing\x00m-1")
    assert not successor.names(b"billing\x00m-1")


def test_what_was_in_a_handler_at_an_end_that_was_asked_for_is_no_suspect(
    parent: Journal, first: Journal, second: Journal
) -> None:
    first.own.enter(b"billing\x00m-1")
    parent.excuse(1)
    assert not second.names(b"billing\x00m-1")
    assert parent.accuse(1) == []


def test_a_message_that_was_in_two_handlers_is_one_suspect(parent: Journal, first: Journal, second: Journal) -> None:
    first.own.enter(b"billing\x00m-1")
    parent.accuse(1)
    first.own.enter(b"billing\x00m-1")
    parent.accuse(1)
    second.acquit(b"billing\x00m-1")
    assert not second.names(b"billing\x00m-1")


def test_a_suspect_is_forgotten_after_a_while(file: int, first: Journal, second: Journal) -> None:
    times = iter([0.0, 0.0, SUSPECT_SECONDS - 1, SUSPECT_SECONDS])
    parent = open_journal(file, 0, clock=lambda: next(times))
    first.own.enter(b"billing\x00m-1")
    parent.accuse(1)
    parent.forget()
    assert second.names(b"billing\x00m-1")
    parent.forget()
    assert not second.names(b"billing\x00m-1")


def test_there_is_a_bound_to_suspects_and_the_oldest_goes_first(
    parent: Journal, first: Journal, second: Journal
) -> None:
    for number in range(MOST_SUSPECTS + 1):
        first.own.enter(b"%d" % number)
    parent.accuse(1)
    assert not second.names(b"0")
    assert second.names(b"1")
    assert second.names(b"%d" % MOST_SUSPECTS)


def test_the_place_of_one_that_was_acquitted_is_used_again(parent: Journal, first: Journal, second: Journal) -> None:
    for number in range(2 * SLOTS // 200):
        for inner in range(200):
            first.own.enter(b"%d-%d" % (number, inner))
        for key in parent.accuse(1):
            second.acquit(key)
    first.own.enter(b"last")
    parent.accuse(1)
    assert second.names(b"last")


def test_more_messages_than_there_is_room_for_disturb_nothing(first: Journal, second: Journal) -> None:
    slots = [first.own.enter(b"%d" % number) for number in range(SLOTS + 10)]
    assert second.names(b"0")
    assert not second.names(b"%d" % (SLOTS + 5))
    for slot in slots:
        first.own.leave(slot)
    assert not any(second.names(b"%d" % number) for number in (0, 1, SLOTS - 2))
    first.own.enter(b"again")


def test_threads_do_not_take_each_others_places(first: Journal, second: Journal) -> None:
    start = threading.Barrier(8)

    def enter(thread: int) -> None:
        start.wait()
        for number in range(200):
            first.own.leave(first.own.enter(b"%d-%d" % (thread, number)))
        first.own.enter(b"%d" % thread)

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(second.names(b"%d" % number) for number in range(8))
    assert not second.names(b"3-7")


def test_a_worker_without_a_parent_has_a_journal_of_its_own() -> None:
    private = journal.private_journal()
    private.own.leave(private.own.enter(b"billing\x00m-1"))
    assert not private.names(b"billing\x00m-1")
