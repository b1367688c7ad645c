"""Who may do what, what a rule waits for, and how often a password may be tried."""

from __future__ import annotations

import itertools

import pytest

from ackline.dlq.errors import Forbidden
from ackline.dlq.rights import RIGHTS, Actor, Right, Role
from ackline.dlq.rules import RIGHT_OF, Asked, Kind, Rule, rules
from ackline.dlq.throttle import FORGET, FREE, LONGEST_PAUSE, Throttle
from ackline.infra.errors import ConfigurationError
from ackline.infra.settings import Settings

#: Written down a second time, on purpose: who changes the table says so here.
TABLE = """
                    viewer operator approver admin
view                   x       x        x      x
note                           x        x      x
triage                         x        x      x
edit                           x        x      x
redrive                        x        x      x
discard                        x        x      x
restore                        x        x      x
export                         x        x      x
import                                         x
unmask                                  x      x
approve                                 x      x
read the audit                          x      x
manage people                                  x
"""


def table() -> dict[tuple[Role, Right], bool]:
    head, *lines = TABLE.strip("\n").splitlines()
    ends = {Role(name): head.index(name) + len(name) for name in head.split()}
    return {
        (role, Right(line[:18].strip())): "x" in line[end - len(role) : end]
        for line in lines
        for role, end in ends.items()
    }


def test_the_table_says_what_each_role_may_do() -> None:
    assert table() == {(role, right): right in RIGHTS[role] for role in Role for right in Right}


def test_each_role_may_do_all_that_those_before_may() -> None:
    ranked = sorted(Role, key=lambda role: role.rank)
    assert all(RIGHTS[lesser] < RIGHTS[greater] for lesser, greater in itertools.pairwise(ranked))


def test_who_may_not_is_told_who_may() -> None:
    Actor("ada", Role.OPERATOR).must(Right.EDIT)
    with pytest.raises(Forbidden, match=r"^eve is an operator and may not unmask: that takes an approver.$"):
        Actor("eve", Role.OPERATOR).must(Right.UNMASK)


def test_an_action_on_record_tells_by_which_token_and_with_whose_approval() -> None:
    assert Actor("ada", Role.ADMIN).told == {}
    assert Actor("ada", Role.ADMIN, "ci", 7, "grace").told == {"token": "ci", "approval": 7, "approved_by": "grace"}


# --- rules ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "waits"),
    [
        ({"action": "redrive"}, True),
        ({"action": "discard"}, False),
        ({"action": "redrive", "types": ["payment.*"]}, True),
        ({"action": "redrive", "types": ["payment"]}, False),
        ({"action": "redrive", "types": ["order.placed", "order.*"]}, True),
        ({"action": "redrive", "consumers": ["bill*"]}, True),
        ({"action": "redrive", "consumers": ["bill"]}, False),
        ({"action": "redrive", "types": ["payment.*"], "consumers": ["shipping"]}, False),
        ({"action": "redrive", "over": 99}, True),
        ({"action": "redrive", "over": 100}, False),
        ({"action": "redrive", "edited": True}, False),
    ],
)
def test_a_rule_waits_for_what_meets_all_of_it(rule: dict[str, object], waits: bool) -> None:
    asked = Asked(Kind.REDRIVE, 100, {"payment.made", "order.placed"}, {"billing"})
    assert Rule.model_validate(rule).meets(asked) is waits


def test_a_rule_for_edits_waits_for_what_is_edited() -> None:
    rule = Rule.model_validate({"action": "redrive", "edited": True})
    assert rule.meets(Asked(Kind.REDRIVE, 1, (), (), edited=True))


def test_a_rule_says_what_it_waits_for() -> None:
    rule = Rule(
        action=Kind.REDRIVE, types=("payment.*", "order.placed"), consumers=("billing",), over=1000, edited=True
    )
    assert str(rule) == (
        "to redrive more than 1,000 dead letters that were edited of payment.*, order.placed of the consumer billing "
        "takes two people"
    )
    assert str(Rule(action=Kind.DISCARD)) == "to discard dead letters takes two people"


def test_rules_come_from_the_settings_and_each_wrong_one_is_named() -> None:
    assert rules(Settings()) == ()
    assert rules(Settings(approval_rules=({"action": "edit"},))) == (Rule(action=Kind.EDIT),)
    wrong = ({"action": "edit"}, {"action": "delete"}, {"action": "edit", "type": "x", "types": ["a*b"], "over": -1})
    with pytest.raises(ConfigurationError) as caught:
        rules(Settings(approval_rules=wrong))
    said = str(caught.value)
    assert "rule 2, action: Input should be 'redrive', 'discard', 'restore' or 'edit'" in said
    assert "rule 3, types: Value error, 'a*b' is no name" in said
    assert "rule 3, over: " in said
    assert "rule 3, type: Extra inputs are not permitted" in said


def test_whatever_can_wait_takes_a_right() -> None:
    assert set(RIGHT_OF) == set(Kind)


# --- how often a password may be tried -----------------------------------------------------------------


class Clock:
    """A clock that only tests move."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_after_some_tries_each_one_costs_a_longer_pause_up_to_a_longest() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    assert [throttle.enter("ada") for _ in range(FREE)] == [0.0] * FREE
    pauses = []
    for _ in range(9):
        pauses.append(throttle.enter("ada"))
        clock.now += pauses[-1]
        assert throttle.enter("ada") == 0.0
    assert pauses == [1, 2, 4, 8, 16, 32, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]
    assert throttle.enter("grace") == 0.0  # each name by itself


def test_a_try_during_the_pause_makes_it_no_longer() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    for _ in range(FREE):
        throttle.enter("ada")
    assert [throttle.enter("ada") for _ in range(50)] == [1.0] * 50
    clock.now += 1
    assert throttle.enter("ada") == 0.0


def test_tries_are_forgotten_by_success_and_in_time() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    for name in ("ada", "grace"):
        for _ in range(FREE):
            throttle.enter(name)
    throttle.succeeded("ada")
    clock.now += FORGET + LONGEST_PAUSE
    for name in ("ada", "grace"):
        assert [throttle.enter(name) for _ in range(FREE)] == [0.0] * FREE
