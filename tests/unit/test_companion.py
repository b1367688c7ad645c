"""A companion works between start and stop, on one thread at a time unless the last one is still coming to its end."""

from __future__ import annotations

import threading

from ackline.producer.companion import Companion


def test_it_works_between_start_and_stop_and_begins_again() -> None:
    begun, ended = threading.Semaphore(0), threading.Semaphore(0)

    def work(stopping: threading.Event) -> None:
        begun.release()
        assert stopping.wait(60)
        ended.release()

    companion = Companion(work, "test")
    companion.stop()
    companion.join(60)
    for _ in range(2):
        companion.start()
        companion.start()
        assert begun.acquire(timeout=60)
        companion.stop()
        companion.join(60)
        assert ended.acquire(timeout=60)
    assert not begun.acquire(blocking=False)


def test_one_that_does_not_end_does_not_keep_the_next_from_its_work() -> None:
    begun, over = threading.Semaphore(0), threading.Event()

    def work(stopping: threading.Event) -> None:
        begun.release()
        assert over.wait(60)

    companion = Companion(work, "test")
    companion.start()
    assert begun.acquire(timeout=60)
    companion.stop()
    companion.start()
    assert begun.acquire(timeout=60)
    over.set()
    companion.join(60)
