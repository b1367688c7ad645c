"""Two people for what the rules say: asked by one, approved by another, carried out as it was asked for."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, Integer, delete, insert, text, update
from sqlalchemy.exc import DBAPIError

from ackline.dlq.approvals import Approvals
from ackline.dlq.contracts import Contracts
from ackline.dlq.desk import Desk
from ackline.dlq.errors import Forbidden, NeedsApproval, NotFound, Refused
from ackline.dlq.rights import RIGHTS, Actor, Right, Role
from ackline.dlq.rules import Kind, rules
from ackline.dlq.selection import Selection
from ackline.dlq.store import Store
from ackline.infra.settings import Settings
from ackline.infra.tables import ApprovalState, approvals, edits, redrive_items, redrives
from ackline.infra.wire import now
from tests.letters import letter

ADA, BOB, EVE = Actor("ada", Role.OPERATOR), Actor("bob", Role.APPROVER), Actor("eve", Role.ADMIN)
RULES = ({"action": "discard"}, {"action": "redrive", "edited": True}, {"action": "edit", "types": ["payment.*"]})


@pytest.fixture
def desk(engine: Engine) -> Desk:
    """A desk with three dead letters, where every discard takes two people."""
    Store(engine).ingest([letter("m-1"), letter("m-2"), letter("m-3")])
    return Desk(engine, Settings(approval_rules=RULES), Contracts({}))


def asked(desk: Desk, who: Actor = ADA, number: int = 1) -> int:
    """The request by which *who* asks to discard a dead letter."""
    with pytest.raises(NeedsApproval) as caught:
        desk.letters.discard(who, Selection.parse(ids=[number]), "a test order")
    return caught.value.approval


def states(desk: Desk) -> list[str]:
    return [summary.state for summary in reversed(desk.letters.page(EVE, Selection.parse()).items)]


def record(desk: Desk) -> list[tuple[str, str]]:
    return [(action.actor, action.action) for action in reversed(desk.audit.page(EVE).items)]


class Counted:
    """An action that counts how often it is carried out, and for whom."""

    def __init__(self) -> None:
        self.done: list[tuple[Actor, dict[str, Any]]] = []

    def __call__(self, who: Actor, request: Any) -> dict[str, Any]:
        self.done.append((who, request))
        return {"times": len(self.done)}


# --- the way of a request ----------------------------------------------------------------------------------------


def test_what_a_rule_says_waits_and_nothing_is_done(desk: Desk) -> None:
    with pytest.raises(NeedsApproval) as caught:
        desk.letters.discard(ADA, Selection.parse(ids=[1]), "a test order")
    assert caught.value.rule == "to discard dead letters takes two people"
    assert str(caught.value) == (
        "This waits for a second person, as request 1: to discard dead letters takes two people. "
        "`ackline approvals approve 1` by somebody else carries it out."
    )
    assert states(desk) == ["in review"] * 3
    found = desk.approvals.get(ADA, caught.value.approval)
    assert (found.state, found.requested_by, found.reason) == (ApprovalState.WAITING, "ada", "a test order")
    assert found.expires_at - found.requested_at == timedelta(hours=24)


def test_a_second_person_has_it_carried_out_as_its_requester(desk: Desk) -> None:
    number = asked(desk)
    found = desk.approvals.approve(BOB, number, "seen")
    assert (found.state, found.decided_by, found.decision_reason) == (ApprovalState.DONE, "bob", "seen")
    assert found.result is not None
    assert found.result["count"] == 1
    assert states(desk) == ["discarded", "in review", "in review"]
    assert record(desk) == [("ada", "ask for approval"), ("bob", "approve"), ("ada", "discard"), ("ada", "carry out")]
    [discard] = desk.audit.page(EVE, action="discard").items
    assert discard.details["approval"] == number
    assert discard.details["approved_by"] == "bob"
    assert desk.audit.verify(EVE).broken is None


def test_what_no_rule_says_is_done_at_once(desk: Desk) -> None:
    desk.approvals.approve(BOB, asked(desk))
    desk.letters.restore(ADA, [1], "it was none")
    assert states(desk) == ["in review"] * 3


def test_asking_twice_is_asking_once(desk: Desk) -> None:
    first = asked(desk)
    assert asked(desk) == first
    other = asked(desk, number=2)
    assert other != first
    assert asked(desk, Actor("carl", Role.OPERATOR)) not in (first, other)
    desk.approvals.withdraw(ADA, first)
    assert asked(desk) != first


def test_nobody_is_their_own_second_person(desk: Desk) -> None:
    number = asked(desk, EVE)
    for name in ("eve", "EVE", " Eve "):
        with pytest.raises(Forbidden, match=f"it takes a second person to approve request {number}"):
            desk.approvals.approve(Actor(name.strip(), Role.ADMIN), number)
    with pytest.raises(Forbidden, match="may withdraw request"):
        desk.approvals.refuse(EVE, number)
    assert desk.approvals.get(EVE, number).state == ApprovalState.WAITING
    assert states(desk) == ["in review"] * 3


def test_the_database_itself_knows_no_first_person_as_the_second(engine: Engine, desk: Desk) -> None:
    number = asked(desk)
    for state in ("approved", "done", "failed"):
        for decided_by in ("ada", "Ada", None):
            change = update(approvals).where(approvals.c.id == number)
            with pytest.raises(DBAPIError, match="four_eyes"), engine.begin() as connection:
                connection.execute(change.values(state=state, decided_at=now(), decided_by=decided_by))


def test_the_database_itself_keeps_what_was_asked_for_and_decided(engine: Engine, desk: Desk) -> None:
    number = asked(desk)
    mine = update(approvals).where(approvals.c.id == number)
    kept = "what was asked for stays as it was"
    for change, said in (
        (mine.values(request={"ids": [1, 2, 3]}), kept),
        (mine.values(requested_by="carl"), kept),
        (mine.values(action="redrive"), kept),
        (delete(approvals), "what was asked for is on record for good"),
    ):
        with pytest.raises(DBAPIError, match=said), engine.begin() as connection:
            connection.execute(change)
    desk.approvals.refuse(BOB, number)
    with pytest.raises(DBAPIError, match="what was decided stays decided"), engine.begin() as connection:
        connection.execute(mine.values(state="done", decided_by="eve"))


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR])
def test_who_may_not_approve_does_not(desk: Desk, role: Role) -> None:
    number = asked(desk)
    for decide in (desk.approvals.approve, desk.approvals.refuse):
        with pytest.raises(Forbidden, match="may not approve: that takes an approver"):
            decide(Actor("carl", role), number)
    with pytest.raises(Forbidden, match="ada asked for it, and nobody else withdraws request"):
        desk.approvals.withdraw(Actor("carl", role), number)


def test_an_approver_must_have_the_right_to_do_it_themselves(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    number = asked(desk)
    less = {**RIGHTS, Role.APPROVER: RIGHTS[Role.APPROVER] - {Right.DISCARD}}
    monkeypatch.setattr("ackline.dlq.rights.RIGHTS", less)
    with pytest.raises(Forbidden, match="bob is an approver and may not discard"):
        desk.approvals.approve(BOB, number)
    assert states(desk) == ["in review"] * 3


def test_a_request_is_decided_once(desk: Desk) -> None:
    number = asked(desk)
    assert desk.approvals.refuse(BOB, number, "no").state == ApprovalState.REFUSED
    said = rf"Request {number} does not wait any more: it is refused, by bob\."
    for decide in (desk.approvals.approve, desk.approvals.refuse):
        with pytest.raises(Refused, match=said):
            decide(EVE, number)
    with pytest.raises(Refused, match=said):
        desk.approvals.withdraw(ADA, number)
    with pytest.raises(NotFound, match="There is no request 99"):
        desk.approvals.approve(EVE, 99)
    assert states(desk) == ["in review"] * 3


def test_of_many_who_approve_at_once_one_does(engine: Engine) -> None:
    known = Approvals(engine, Settings(approval_rules=({"action": "redrive"},)))
    counted = Counted()
    known.register(Kind.REDRIVE, counted)
    with pytest.raises(NeedsApproval) as caught:
        known.require(ADA, Kind.REDRIVE, {"ids": [7]}, summary="send 7", count=1, types=["a"], consumers=["b"])
    gate = threading.Barrier(6)

    def approve(index: int) -> bool:
        gate.wait()
        try:
            known.approve(Actor(f"approver-{index}", Role.APPROVER), caught.value.approval)
        except Refused:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(approve, range(6))) == [False] * 5 + [True]
    [(who, request)] = counted.done
    assert (who.name, who.role, who.approval, request) == ("ada", Role.OPERATOR, caught.value.approval, {"ids": [7]})


def test_a_request_expires(desk: Desk, engine: Engine) -> None:
    number = asked(desk)
    late = "UPDATE approvals SET expires_at = requested_at"
    with engine.begin() as connection:  # it takes the owner of the database to bring that forward
        if engine.dialect.name == "sqlite":
            connection.execute(text("DROP TRIGGER approvals_asked"))
        else:
            connection.execute(text("ALTER TABLE approvals DISABLE TRIGGER ALL"))
        connection.execute(text(late))
    with pytest.raises(Refused, match=f"Request {number} does not wait any more: it is expired"):
        desk.approvals.approve(BOB, number)
    assert desk.approvals.get(ADA, number).state == ApprovalState.EXPIRED
    assert asked(desk) != number
    assert states(desk) == ["in review"] * 3


# --- what has changed between asking and approving ---------------------------------------------------------------


def test_what_is_no_more_as_it_was_asked_for_fails_and_says_why(desk: Desk) -> None:
    number = asked(desk)
    other = asked(desk, Actor("carl", Role.OPERATOR))
    assert desk.approvals.approve(BOB, other).state == ApprovalState.DONE
    found = desk.approvals.approve(BOB, number)
    assert found.state == ApprovalState.FAILED
    assert found.result is not None
    assert "1" in found.result["error"]
    assert "discarded" in found.result["error"]
    assert record(desk)[-1] == ("ada", "carry out")


def test_a_requester_who_may_not_any_more_or_is_disabled_fails_it(desk: Desk) -> None:
    root = Actor("root", Role.ADMIN)
    desk.people.add(root, "eve", Role.ADMIN)
    desk.people.add(root, "ada", Role.OPERATOR)
    first, second, third = asked(desk), asked(desk, number=2), asked(desk, number=3)
    desk.people.set_role(root, "ada", Role.VIEWER)
    found = desk.approvals.approve(BOB, first)
    assert found.result == {"error": "ada is a viewer and may not discard: that takes an operator."}
    desk.people.set_role(root, "ada", Role.ADMIN)
    desk.people.disable(root, "ada")
    found = desk.approvals.approve(BOB, second)
    assert (found.state, found.result) == (ApprovalState.FAILED, {"error": "ada, who asked for it, is disabled."})
    assert states(desk) == ["in review"] * 3
    desk.people.enable(root, "ada")
    assert desk.approvals.approve(BOB, third).state == ApprovalState.DONE


def test_what_a_small_token_asked_for_is_carried_out_with_no_more_rights(desk: Desk) -> None:
    desk.people.add(Actor("root", Role.ADMIN), "ada", Role.ADMIN)
    counted = Counted()
    desk.approvals.register(Kind.DISCARD, counted)
    number = asked(desk, Actor("ada", Role.OPERATOR, token="ci"))
    desk.approvals.approve(BOB, number)
    assert counted.done[0][0] == Actor("ada", Role.OPERATOR, None, number, "bob")


def test_an_error_that_nobody_foresaw_fails_it_and_is_logged(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    known = Approvals(engine, Settings(approval_rules=({"action": "redrive"},)))

    def broken(who: Actor, request: Any) -> None:
        raise ZeroDivisionError("secret")

    known.register(Kind.REDRIVE, broken)
    with pytest.raises(NeedsApproval) as caught:
        known.require(ADA, Kind.REDRIVE, {}, summary="", count=1, types=(), consumers=())
    found = known.approve(BOB, caught.value.approval)
    assert (found.state, found.result) == (
        ApprovalState.FAILED,
        {"error": "It ended in an error that the log of this process has."},
    )
    assert "ZeroDivisionError: secret" in caplog.text


# --- edits -------------------------------------------------------------------------------------------------------


def edited(engine: Engine, dead_letter_id: int, actor: str) -> None:
    """Have a dead letter edited by *actor*, as far as the question who did it goes."""
    row = {"version": 1, "at": now(), "actor": actor, "reason": "", "payload": b"", "properties": b"", "diff": []}
    with engine.begin() as connection:
        connection.execute(insert(edits).values(row | {"dead_letter_id": dead_letter_id, "checked": False}))


def test_who_edited_what_would_be_sent_is_no_second_person_for_it(engine: Engine, desk: Desk) -> None:
    known, counted = desk.approvals, Counted()
    known.register(Kind.REDRIVE, counted)
    about: dict[str, Any] = {"summary": "", "count": 2, "types": ["order.placed"], "consumers": ["billing"]}
    known.require(ADA, Kind.REDRIVE, {"ids": [1, 2]}, **about)  # nothing was edited: no rule
    edited(engine, 2, "bob")
    with pytest.raises(NeedsApproval, match="to redrive dead letters that were edited takes two people") as caught:
        known.require(ADA, Kind.REDRIVE, {"ids": [1, 2]}, **about)
    with pytest.raises(Forbidden, match="bob edited what would be sent: somebody else approves request"):
        known.approve(BOB, caught.value.approval)
    assert known.approve(EVE, caught.value.approval).state == ApprovalState.DONE
    assert len(counted.done) == 1


def test_who_edited_or_patched_what_a_plan_holds_is_no_second_person_for_it(engine: Engine, desk: Desk) -> None:
    known, counted = desk.approvals, Counted()
    known.register(Kind.REDRIVE, counted)
    about: dict[str, Any] = {"summary": "", "count": 1, "types": ["order.placed"], "consumers": ["billing"]}

    def planned(patch: Any, version: int) -> int:
        """A plan of eve's with the dead letter 1, as far as the question who changed it goes."""
        numbers = [name for name, column in redrives.c.items() if isinstance(column.type, Integer)]
        row: dict[str, Any] = dict.fromkeys([name for name in numbers if name != "id"], 0)
        row |= {"created_at": now(), "actor": "eve", "reason": "", "state": "planned", "selection": {}, "options": {}}
        with engine.begin() as connection:
            statement = insert(redrives).values(row | {"canary": False, "patch": patch}).returning(redrives.c.id)
            number: int = connection.execute(statement).scalar_one()
            item = {"id": f"i-{number}", "redrive_id": number, "dead_letter_id": 1, "consumer": "billing"}
            item |= {"version": version, "fingerprint": "", "state": "planned"}
            connection.execute(insert(redrive_items).values(item))
        return number

    edited(engine, 1, "bob")
    known.require(ADA, Kind.REDRIVE, {"redrive": planned(None, 0)}, **about)  # it sends the payload as it came
    for number, changed_by, other in ((planned(None, 1), BOB, EVE), (planned([], 0), EVE, BOB)):
        with pytest.raises(NeedsApproval) as caught:
            known.require(ADA, Kind.REDRIVE, {"redrive": number}, **about)
        with pytest.raises(Forbidden, match="edited what would be sent"):
            known.approve(changed_by, caught.value.approval)
        assert known.approve(other, caught.value.approval).state == ApprovalState.DONE


def test_the_second_person_sees_what_an_edit_changes(desk: Desk) -> None:
    desk.approvals._rules = rules(Settings(approval_rules=({"action": "edit"},)))
    with pytest.raises(NeedsApproval) as caught:
        desk.edits.edit(ADA, 1, b'{"order_id": "A-2"}', reason="typo", expected_version=0)
    found = desk.approvals.get(BOB, caught.value.approval)
    assert found.diff == [{"path": "payload.order_id", "before": "A-1", "after": "A-2"}]
    assert desk.letters.payload(EVE, 1) == b'{"order_id": "A-1"}'
    assert desk.approvals.approve(BOB, found.id).state == ApprovalState.DONE
    assert [version.actor for version in desk.edits.versions(EVE, 1)] == ["ada"]


# --- reading -----------------------------------------------------------------------------------------------------


def test_requests_are_listed_by_state_in_pages(desk: Desk) -> None:
    numbers = [asked(desk, number=number) for number in (1, 2, 3)]
    desk.approvals.refuse(BOB, numbers[1])
    viewer = Actor("carl", Role.VIEWER)
    page = desk.approvals.page(viewer, limit=2)
    assert [found.id for found in page.items] == numbers[:0:-1]
    assert page.next == numbers[1]
    assert [found.id for found in desk.approvals.page(viewer, after=page.next).items] == numbers[:1]
    assert [found.id for found in desk.approvals.page(viewer, [ApprovalState.REFUSED]).items] == [numbers[1]]
    with pytest.raises(NotFound, match="There is no request 99"):
        desk.approvals.get(viewer, 99)
