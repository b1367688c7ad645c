"""A confirmation does what a `concurrent.futures.Future` does, whoever looks at it and whenever."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ALL_COMPLETED, Future, InvalidStateError, as_completed, wait
from concurrent.futures import TimeoutError as NotYet

import pytest

from ackline.producer.confirmation import Confirmation


def confirmed(result: int) -> Confirmation[int]:
    confirmation: Confirmation[int] = Confirmation()
    confirmation.set_result(result)
    return confirmation


def failed(error: Exception) -> Confirmation[int]:
    confirmation: Confirmation[int] = Confirmation()
    confirmation.set_exception(error)
    return confirmation


def test_it_gives_its_result_or_its_error_once_it_is_settled() -> None:
    pending: Future[int] = Confirmation()
    assert not pending.done()
    assert pending.running()
    with pytest.raises(NotYet):
        pending.result(0)
    pending.set_result(7)
    assert (pending.done(), pending.running(), pending.result(), pending.exception()) == (True, False, 7, None)
    error = KeyError("x")
    assert failed(error).exception() is error
    with pytest.raises(KeyError):
        failed(error).result()


def test_it_is_settled_once_and_cannot_be_cancelled() -> None:
    confirmation: Confirmation[int] = Confirmation()
    assert not confirmation.cancel()
    confirmation.set_result(1)
    with pytest.raises(InvalidStateError):
        confirmation.set_result(2)
    with pytest.raises(InvalidStateError):
        confirmation.set_exception(KeyError())
    assert (confirmation.result(), confirmation.cancelled()) == (1, False)


def test_callbacks_are_called_once_whether_it_is_settled_before_or_after() -> None:
    seen: list[int] = []
    confirmation: Confirmation[int] = Confirmation()
    confirmation.add_done_callback(lambda done: seen.append(done.result()))
    confirmation.add_done_callback(lambda done: seen.append(done.result() + 1))
    assert seen == []
    confirmation.set_result(5)
    confirmed(8).add_done_callback(lambda done: seen.append(done.result()))
    assert seen == [5, 6, 8]


def test_wait_and_as_completed_take_it_for_a_future() -> None:
    pending: list[Confirmation[int]] = [Confirmation() for _ in range(50)]

    def settle() -> None:
        for index, one in enumerate(pending):
            one.set_result(index)

    settling = threading.Thread(target=settle)
    both: list[Future[int]] = [confirmed(-1), *pending]
    assert wait(both, timeout=0).done == {both[0]}
    settling.start()
    assert sorted(one.result() for one in as_completed(both, timeout=30)) == list(range(-1, 50))
    assert wait(both, timeout=30, return_when=ALL_COMPLETED).not_done == set()
    settling.join()


def test_asyncio_awaits_it() -> None:
    async def run() -> list[object]:
        pending: Confirmation[int] = Confirmation()
        wrapped = asyncio.wrap_future(pending)
        threading.Thread(target=pending.set_result, args=(3,)).start()
        others = asyncio.wrap_future(confirmed(4)), asyncio.wrap_future(failed(KeyError("x")))
        return list(await asyncio.wait_for(asyncio.gather(wrapped, *others, return_exceptions=True), 30))

    three, four, error = asyncio.run(run())
    assert (three, four, type(error)) == (3, 4, KeyError)


def test_however_threads_race_every_waiter_wakes_and_every_callback_is_called_once() -> None:
    rounds, waiters = 500, 3
    confirmations: list[Confirmation[int]] = [Confirmation() for _ in range(rounds)]
    barrier = threading.Barrier(waiters + 2)
    called: list[int] = []
    woken: list[int] = []
    won: list[int] = []

    def look() -> None:
        for confirmation in confirmations:
            barrier.wait()
            confirmation.add_done_callback(lambda done: called.append(done.result()))
            woken.append(confirmation.result(60))

    def settle() -> None:
        for confirmation in confirmations:
            barrier.wait()
            try:
                confirmation.set_result(1)
            except InvalidStateError:
                continue
            won.append(1)

    threads = [threading.Thread(target=target) for target in [look] * waiters + [settle] * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(woken), len(called), len(won)) == (rounds * waiters, rounds * waiters, rounds)


def test_in_a_forked_child_it_can_be_settled_whatever_threads_of_the_parent_were_about_to_do() -> None:
    confirmation: Confirmation[int] = Confirmation()
    confirmation._open.clear()  # one was settling it

    def settle() -> None:
        confirmation.forget_threads()
        confirmation.set_result(1)

    with confirmation._condition:
        settling = threading.Thread(target=settle)
        settling.start()
        settling.join(30)
        assert confirmation.done()
