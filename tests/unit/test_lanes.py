"""Lanes: every item is worked on once, in a fair turn, on few threads, and a slow lane holds up no other."""

from __future__ import annotations

import threading
from collections import Counter

from ackline.producer.lanes import Lanes
from tests.waiting import until


def test_every_item_is_worked_on_once() -> None:
    done: Counter[int] = Counter()
    lock = threading.Lock()

    def work(item: int) -> None:
        with lock:
            done[item] += 1

    lanes = Lanes(work, threads=4, threads_per_lane=2, waiting=2000)
    assert all(lanes.put(f"lane {item % 7}", item) for item in range(2000))
    until(lambda: lanes.is_idle)
    assert done == Counter(range(2000))


def test_a_lane_has_its_threads_and_no_more_and_takes_so_many_beside_them() -> None:
    go, running = threading.Event(), threading.Semaphore(0)

    def work(item: int) -> None:
        running.release()
        assert go.wait(60)

    lanes = Lanes(work, threads=8, threads_per_lane=2, waiting=3)
    for item in range(2):
        assert lanes.put("slow", item)
        assert running.acquire(timeout=60)
    assert [lanes.put("slow", item) for item in range(4)] == [True, True, True, False]
    assert not running.acquire(blocking=False)
    go.set()
    until(lambda: lanes.is_idle)
    assert [running.acquire(blocking=False) for _ in range(4)] == [True, True, True, False]


def test_a_slow_lane_does_not_hold_up_another() -> None:
    go, done = threading.Event(), threading.Semaphore(0)

    def work(item: str) -> None:
        if item == "slow":
            assert go.wait(60)
        else:
            done.release()

    lanes = Lanes(work, threads=3, threads_per_lane=2, waiting=100)
    for _ in range(50):
        assert lanes.put("slow", "slow")
    for _ in range(50):
        assert lanes.put("fast", "fast")
    assert all(done.acquire(timeout=60) for _ in range(50))
    go.set()
    until(lambda: lanes.is_idle)


def test_lanes_take_turns_whatever_waits_in_them() -> None:
    go, order = threading.Event(), list[str]()
    first = threading.Event()

    def work(lane: str) -> None:
        first.set()
        assert go.wait(60)
        order.append(lane)

    lanes = Lanes(work, threads=1, threads_per_lane=1, waiting=100)
    for _ in range(10):
        lanes.put("a", "a")
    assert first.wait(60)
    for _ in range(3):
        lanes.put("b", "b")
    go.set()
    until(lambda: lanes.is_idle)
    assert "".join(order) == "a" + "ababab" + "a" * 6


def test_closed_lanes_finish_what_runs_and_begin_nothing() -> None:
    go, started, done = threading.Event(), threading.Event(), list[int]()

    def work(item: int) -> None:
        started.set()
        assert go.wait(60)
        done.append(item)

    lanes = Lanes(work, threads=1, threads_per_lane=1, waiting=10)
    for item in range(5):
        lanes.put("lane", item)
    assert started.wait(60)
    lanes.close()
    assert not lanes.put("lane", 5)
    assert not lanes.is_idle
    go.set()
    until(lambda: lanes.is_idle)
    assert done == [0]
