"""Lanes: of each key one has the way, and the others follow in order."""

from __future__ import annotations

from ackline.consumers.key_lanes import KeyLanes


def test_of_each_key_the_first_has_the_way_and_the_others_follow_in_order() -> None:
    lanes: KeyLanes[str] = KeyLanes()
    assert [lanes.add(item[0], item) for item in ("a1", "a2", "b1", "a3", "b2")] == [True, False, True, False, False]
    assert lanes.leave("a") == "a2"
    assert lanes.leave("b") == "b2"
    assert lanes.leave("a") == "a3"
    assert lanes.leave("a") is None
    assert lanes.add("a", "a4"), "nothing of its key is under way"
    assert sorted(lanes) == ["a4", "b2"]


def test_only_the_first_of_a_lane_has_the_way_and_not_its_equal() -> None:
    lanes: KeyLanes[list[int]] = KeyLanes()
    first, second, another = [1], [2], [1]
    lanes.add("a", first)
    lanes.add("a", second)
    assert lanes.has_way("a", first)
    assert not lanes.has_way("a", second)
    assert not lanes.has_way("a", another)
    assert not lanes.has_way("b", first)


def test_what_is_tried_again_keeps_the_way() -> None:
    lanes: KeyLanes[str] = KeyLanes()
    lanes.add("a", "first")
    lanes.add("a", "second")
    lanes.renew("a", "first again")
    assert list(lanes) == ["first again", "second"]
    assert lanes.leave("a") == "second"


def test_a_lane_is_kept_for_what_still_runs_and_all_else_is_forgotten() -> None:
    lanes: KeyLanes[str] = KeyLanes()
    for item in ("a1", "a2", "b1", "b2"):
        lanes.add(item[0], item)
    lanes.keep({"a1"}.__contains__)
    assert list(lanes) == ["a1"]
    assert not lanes.add("a", "a1 anew")
    assert lanes.add("b", "b1 anew")
    assert lanes.leave("a") == "a1 anew"
    lanes.keep(lambda item: False)
    assert not lanes
