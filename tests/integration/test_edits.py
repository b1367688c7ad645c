"""Edits of dead letters, the same on SQLite and PostgreSQL: checked, masked, and one after the other."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, SecretStr, field_validator
from sqlalchemy import Engine, delete, select, update
from sqlalchemy.exc import DatabaseError

from ackline.consumers.masking import MASK
from ackline.dlq import edits, patching, search_values
from ackline.dlq.contracts import Contracts
from ackline.dlq.desk import Desk
from ackline.dlq.edits import Version
from ackline.dlq.errors import Forbidden, Invalid, NeedsApproval, NoSuchDeadLetter, NotFound, Refused
from ackline.dlq.rights import Actor, Role
from ackline.dlq.selection import Selection
from ackline.dlq.store import Store
from ackline.dlq.transition import transitions
from ackline.infra import wire
from ackline.infra.properties import Properties
from ackline.infra.settings import Settings
from ackline.infra.tables import DeadLetterState, action_items, actions, dead_letters
from ackline.infra.tables import edits as edits_table
from ackline.infra.tables import search_values as values_table
from ackline.producer import message
from tests.letters import read, worker_headers

TYPE = "test.edits.paid"
ADA, BOB = Actor("ada", Role.OPERATOR), Actor("bob", Role.APPROVER)
VIEWER = Actor("vera", Role.VIEWER)


class Card(BaseModel):
    number: SecretStr = Field(min_length=4)
    label: str = ""


@message(TYPE, key="order_id")
class Paid(BaseModel):
    order_id: str
    total: float
    card: Card | None = None
    kind: Literal["new", "old"] = "new"

    @field_validator("card")
    @classmethod
    def _is_no_test_card(cls, card: Card | None) -> Card | None:
        if card is not None and card.number.get_secret_value().startswith("0000"):
            raise ValueError(f"{card.number.get_secret_value()} is a test card")
        return card


PAYLOAD = b'{"order_id": "A-1", "total": 9.50, "card": {"number": "4111-2222", "label": "blue"}}'
RIGHT = '{"order_id": "A-1", "total": 10.50}'


@pytest.fixture
def desk(engine: Engine) -> Desk:
    return Desk(engine, Settings(), Contracts({}))


def stored(engine: Engine, payload: bytes = PAYLOAD, type_: str = TYPE, **headers: Any) -> int:
    """A dead letter in review; returns its id."""
    properties = Properties(
        message_id=wire.uuid7(),
        type=type_,
        content_type="application/json" if type_ == TYPE else None,
        headers=worker_headers(**wire.key_headers("A-1")) | {"tenant": "north"} | headers,
    )
    letter = read(properties, payload)
    Store(engine).ingest([letter])
    with engine.begin() as connection:
        found = select(dead_letters.c.id).where(dead_letters.c.message_id == letter.message_id)
        return int(connection.execute(found).scalar_one())


def now_sent(engine: Engine, row_id: int) -> tuple[bytes, Properties, int]:
    """What a redrive would send: payload, properties, version."""
    with engine.begin() as connection:
        row = edits.current(connection, row_id)
    return row.payload, Properties.from_wire(row.properties), row.version


def edit(desk: Desk, row_id: int, payload: str | bytes | None = RIGHT, version: int = 0, **more: Any) -> Version:
    terms: dict[str, Any] = {"reason": "wrong total", "expected_version": version}
    return desk.edits.edit(ADA, row_id, payload, **(terms | more))


def test_an_edit_is_the_next_version_and_the_original_stays(engine: Engine, desk: Desk) -> None:
    row_id = stored(engine)
    first = edit(desk, row_id)
    second = edit(desk, row_id, RIGHT.replace("10.5", "11.5"), version=1, reason="  typo\x00 ")
    assert (first.version, first.actor, first.reason, first.checked) == (1, "ada", "wrong total", True)
    assert first.diff == [
        {"path": "payload.total", "before": 9.5, "after": 10.5},
        {"path": "payload.card", "before": {"number": MASK, "label": "blue"}},
    ]
    assert second.diff == [{"path": "payload.total", "before": 10.5, "after": 11.5}]
    assert desk.edits.versions(VIEWER, row_id) == [first, second]
    payload, properties, version = now_sent(engine, row_id)
    assert (json.loads(payload)["total"], version) == (11.5, 2)
    with engine.begin() as connection:
        row = connection.execute(select(dead_letters).where(dead_letters.c.id == row_id)).one()
        assert (bytes(row.payload), row.state, row.version) == (PAYLOAD, "in review", 2)
        assert Properties.from_wire(bytes(row.properties)).message_id == properties.message_id
        done = connection.execute(select(actions).join(action_items).order_by(actions.c.id)).all()
    assert [(action.actor, action.action, action.reason) for action in done] == [
        ("ada", "edit", "wrong total"),
        ("ada", "edit", "typo\\x00"),
    ]
    assert done[1].details == {"from_version": 1, "version": 2, "changed": ["payload.total"]}


def test_no_version_is_changed_or_deleted_afterwards(engine: Engine, desk: Desk) -> None:
    edit(desk, stored(engine))
    for statement in (update(edits_table).values(reason="another"), delete(edits_table)):
        with pytest.raises(DatabaseError), engine.begin() as connection:
            connection.execute(statement)


@pytest.mark.parametrize(
    ("payload", "faults"),
    [
        ('{"order_id": 1, "kind": "odd"}', ["payload.order_id", "payload.total", "payload.kind"]),
        ('{"order_id": "A-1", "total": 1, "card": {"number": "12"}}', ["payload.card.number"]),
        ("{", ["payload"]),
        (b"\xff", ["payload"]),
        ('{"order_id": "A-1", "total": NaN}', ["payload"]),
        ("\ud800", []),
    ],
)
def test_what_breaks_the_contract_is_refused_with_every_fault(
    engine: Engine, desk: Desk, payload: str | bytes, faults: list[str]
) -> None:
    row_id = stored(engine)
    with pytest.raises(Invalid) as raised:
        edit(desk, row_id, payload)
    assert [fault.path for fault in raised.value.faults] == faults
    assert now_sent(engine, row_id)[2] == 0


def test_no_fault_quotes_a_secret(engine: Engine, desk: Desk) -> None:
    row_id = stored(engine)
    with pytest.raises(Invalid) as raised:
        edit(desk, row_id, '{"order_id": "A-1", "total": 1, "card": {"number": "0000-4711"}}')
    assert f"{MASK} is a test card" in str(raised.value)
    assert "0000-4711" not in str(raised.value) + str(raised.value.faults)


def test_a_second_editor_with_an_old_version_is_told_who_was_first(engine: Engine, desk: Desk) -> None:
    row_id = stored(engine)
    edit(desk, row_id)
    with pytest.raises(
        Refused, match=rf"Dead letter {row_id} has version 1, not 0: ada edited it at 2\d\d\d-.*Z\. Look"
    ):
        desk.edits.edit(BOB, row_id, RIGHT, reason="me too", expected_version=0)
    with pytest.raises(Refused, match="has version 1, not 7"):
        edit(desk, row_id, version=7)
    assert now_sent(engine, row_id)[2] == 1


def test_of_editors_at_the_same_moment_one_is_first(engine: Engine, desk: Desk) -> None:
    row_id = stored(engine)
    gate = threading.Barrier(4)

    def attempt(number: int) -> bool:
        gate.wait()
        try:
            edit(desk, row_id, json.dumps({"order_id": "A-1", "total": number}))
        except Refused:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(attempt, range(4)))
    assert sum(made) == 1
    assert json.loads(now_sent(engine, row_id)[0])["total"] == made.index(True)


def test_only_what_is_in_review_is_edited(engine: Engine, desk: Desk) -> None:
    row_id = stored(engine)
    desk.letters.discard(ADA, Selection(ids=(row_id,)), "a test order")
    with pytest.raises(Refused, match=f"Dead letter {row_id} cannot be edited: it is discarded"):
        edit(desk, row_id)
    with pytest.raises(NoSuchDeadLetter):
        edit(desk, row_id + 1)
    with pytest.raises(NoSuchDeadLetter):
        desk.edits.versions(ADA, row_id + 1)


def test_an_edit_says_why_and_changes_something(engine: Engine, desk: Desk) -> None:
    row_id = stored(engine)
    with pytest.raises(Invalid, match="An edit needs a reason"):
        edit(desk, row_id, reason=" ")
    with pytest.raises(Invalid, match="That changes nothing"):
        edit(desk, row_id, PAYLOAD)
    with pytest.raises(Invalid, match="That changes nothing"):
        edit(desk, row_id, None, headers={"tenant": "north"})


def test_what_an_operator_leaves_masked_stays_as_it_was(engine: Engine, desk: Desk) -> None:
    row_id = stored(engine)
    seen = Contracts({}).mask(TYPE, PAYLOAD)
    assert seen["card"] == {"number": MASK, "label": "blue"}
    made = edit(desk, row_id, json.dumps(seen | {"total": 12}))
    assert made.diff == [{"path": "payload.total", "before": 9.5, "after": 12}]
    assert json.loads(now_sent(engine, row_id)[0]) == json.loads(PAYLOAD) | {"total": 12}
    new = {"order_id": "A-1", "total": 12, "card": {"number": "4333-4444", "label": "blue"}}
    made = edit(desk, row_id, json.dumps(new), version=1)
    assert made.diff == [{"path": "payload.card.number", "before": MASK, "after": MASK}]
    assert json.loads(now_sent(engine, row_id)[0]) == new
    with engine.begin() as connection:
        told = str([connection.scalars(select(column)).all() for column in (edits_table.c.diff, actions.c.details)])
    assert "4111" not in told
    assert "4333" not in told
    with pytest.raises(Invalid, match=r"A secret is missing: payload\.card\.number"):
        edit(desk, stored(engine, b'{"order_id": "A-1"}'), json.dumps(seen))


_DEATH: dict[str, Any] = {"x-death": [{"queue": "billing"}]}


def test_headers_of_the_application_can_be_edited_and_no_others(engine: Engine, desk: Desk) -> None:
    row_id = stored(engine, raw=b"\xff\x00", gone=1, **_DEATH)
    made = edit(
        desk, row_id, None, headers={"tenant": "south", "raw": "\\xff\\x00", "new": [Decimal("1.5"), {"deep": None}]}
    )
    assert made.diff == [
        {"path": "headers.gone", "before": 1},
        {"path": "headers.tenant", "before": "north", "after": "south"},
        {"path": "headers.new", "after": [1.5, {"deep": None}]},
    ]
    payload, properties, _ = now_sent(engine, row_id)
    headers = properties.headers
    assert payload == PAYLOAD
    assert (headers.get("tenant"), headers.get("raw"), headers.get("new")) == (
        "south",
        b"\xff\x00",
        [1.5, {"deep": None}],
    )
    assert headers.text(wire.CONSUMER) == "billing"
    assert "x-death" in headers
    assert "gone" not in headers
    for name in ("ackline-attempt", "ackline-key", "x-death", "x-delivery-count", "x-first-death-queue", "CC", "BCC"):
        with pytest.raises(Invalid, match="is written by Ackline or by the broker") as raised:
            edit(desk, row_id, None, version=1, headers={name: 1, "tenant": "east"})
        assert [fault.path for fault in raised.value.faults] == [f"headers.{name}"]
    for wrong in ({"big": 2**64}, {"": 1}, {"x" * 256: 1}):
        with pytest.raises(Invalid, match="These headers cannot be set"):
            edit(desk, row_id, None, version=1, headers=wrong)
    with pytest.raises(Invalid, match="The headers are too large"):
        edit(desk, row_id, None, version=1, headers={"long": "x" * wire.FRAME_MAX})


def test_the_key_of_a_message_follows_its_payload(engine: Engine, desk: Desk) -> None:
    row_id = stored(engine)
    edit(desk, row_id, RIGHT.replace("A-1", "B-2"))
    _, properties, _ = now_sent(engine, row_id)
    expected = wire.key_headers("B-2")
    assert {name: properties.headers.get(name) for name in expected} == expected
    with engine.begin() as connection:
        assert connection.scalar(select(dead_letters.c.ordering_key)) == "B-2"


def test_an_edit_is_found_by_what_it_holds(engine: Engine, desk: Desk) -> None:
    search_values.register(engine, ["payload.order_id"])
    row_id = stored(engine)
    edit(desk, row_id, RIGHT.replace("A-1", "B-2"))
    with engine.begin() as connection:
        assert connection.execute(select(values_table.c.value)).scalars().all() == ['"B-2"']
    found = desk.letters.page(ADA, Selection.parse(where='payload.order_id = "B-2"'))
    assert [row.id for row in found.items] == [row_id]


def test_a_revert_is_a_version_that_equals_an_earlier_one(engine: Engine, desk: Desk) -> None:
    row_id = stored(engine, b'{"order_id": 7}')
    edit(desk, row_id, headers={"tenant": "south"})
    made = desk.edits.revert(BOB, row_id, 0, reason="it was right", expected_version=1)
    assert (made.version, made.actor, made.checked) == (2, "bob", False)
    assert made.diff[-1] == {"path": "headers.tenant", "before": "south", "after": "north"}
    payload, properties, version = now_sent(engine, row_id)
    assert (payload, properties.headers.get("tenant"), version) == (b'{"order_id": 7}', "north", 2)
    desk.edits.revert(BOB, row_id, 1, reason="no, wrong", expected_version=2)
    assert now_sent(engine, row_id)[0] == RIGHT.encode()
    with pytest.raises(NotFound, match="has no version 9"):
        desk.edits.revert(BOB, row_id, 9, reason="x", expected_version=3)
    with pytest.raises(Invalid, match="That changes nothing"):
        desk.edits.revert(BOB, row_id, 1, reason="x", expected_version=3)
    with pytest.raises(Refused, match="bob edited it"):
        desk.edits.revert(BOB, row_id, 0, reason="x", expected_version=1)
    with engine.begin() as connection:
        details = connection.scalars(select(actions.c.details).where(actions.c.action == "revert")).all()
    assert [found["to_version"] for found in details] == [0, 1]


def test_a_message_without_a_contract_may_be_any_bytes(engine: Engine, desk: Desk) -> None:
    row_id = stored(engine, b"\x00\x01", "foreign.thing")
    made = edit(desk, row_id, b"\xfe\x00")
    assert made.checked is False
    assert made.diff == [{"path": "payload", "before": "\\x00\x01", "after": "\\xfe\\x00"}]
    assert now_sent(engine, row_id)[0] == b"\xfe\x00"
    _, properties, _ = now_sent(engine, row_id)
    assert properties.headers.text(wire.KEY) == "A-1", "a key that Ackline does not know stays the publisher's"


PATCH = [{"op": "replace", "path": "/total", "value": 1}]


def test_a_patch_is_previewed_on_a_sample_and_changes_nothing(engine: Engine, desk: Desk) -> None:
    good, other, broken = stored(engine), stored(engine, RIGHT.encode()), stored(engine, b"no json")
    discarded = stored(engine)
    desk.letters.discard(ADA, Selection(ids=(discarded,)), "a test order")
    seen = {found.id: found for found in desk.edits.preview_patch(ADA, Selection(type=TYPE), PATCH)}
    assert list(seen) == [broken, other, good]
    assert (seen[good].diff, seen[good].faults) == ([{"path": "payload.total", "before": 9.5, "after": 1}], [])
    assert "not JSON" in seen[broken].faults[0].message
    assert [found.id for found in desk.edits.preview_patch(ADA, Selection(type=TYPE), PATCH, sample=1)] == [broken]
    (bad,) = desk.edits.preview_patch(ADA, Selection(ids=(good,)), [{"op": "remove", "path": "/total"}])
    assert [fault.path for fault in bad.faults] == ["payload.total"]
    assert desk.edits.versions(ADA, good) == []
    with pytest.raises(Invalid):
        desk.edits.preview_patch(ADA, Selection(), [{"op": "fly"}])


def test_a_preview_tells_secrets_to_those_who_may_see_them_only(engine: Engine, desk: Desk) -> None:
    row_id = stored(engine)
    guess = [{"op": "test", "path": "/card/number", "value": "4111-2222"}, *PATCH]
    (found,) = desk.edits.preview_patch(ADA, Selection(ids=(row_id,)), guess)
    assert "is masked" in found.faults[0].message
    (found,) = desk.edits.preview_patch(BOB, Selection(ids=(row_id,)), guess)
    assert found.faults == []
    by_secret = Selection.parse(where='payload.card.number = "4111-2222"')
    assert desk.edits.preview_patch(ADA, by_secret, PATCH) == []
    assert len(desk.edits.preview_patch(BOB, by_secret, PATCH)) == 1


def test_patched_versions_are_added_where_nobody_was_faster(engine: Engine, desk: Desk) -> None:
    ids = [stored(engine) for _ in range(3)]
    patch = patching.prepare(PATCH)
    with engine.begin() as connection:
        rows = edits.currents(connection, ids)
    changes = [edits.patched(Contracts({}), row, patch, unmask=False) for row in rows.values()]
    edit(desk, ids[1])
    with engine.begin() as connection, transitions(connection) as moves:
        moves.move([ids[2]], DeadLetterState.IN_REVIEW, DeadLetterState.DISCARDED, **_discarded())
        added = edits.add(connection, [change for change in changes if change], "ada", "patch")
    assert added == [ids[0]]
    assert b'"total": 1,' in now_sent(engine, ids[0])[0]
    with engine.begin() as connection:
        row = edits.current(connection, ids[0])
    assert edits.patched(Contracts({}), row, patch, unmask=False) is None, "it is that already"


def _discarded() -> dict[str, Any]:
    return {"discarded_at": wire.now(), "discarded_by": "ada", "discard_reason": "a test order"}


def test_an_edit_that_takes_two_people_waits_for_the_second(engine: Engine) -> None:
    desk = Desk(engine, Settings(approval_rules=({"action": "edit", "types": ["test.edits.*"]},)), Contracts({}))
    row_id = stored(engine)
    seen = Contracts({}).mask(TYPE, PAYLOAD)
    with pytest.raises(NeedsApproval) as raised:
        edit(desk, row_id, json.dumps(seen | {"total": 12}), headers={"tenant": "south", "rate": Decimal("1.5")})
    assert now_sent(engine, row_id)[2] == 0
    done = desk.approvals.approve(BOB, raised.value.approval, "looks right")
    assert (done.state, done.result) == ("done", {"version": 1})
    (made,) = desk.edits.versions(ADA, row_id)
    assert (made.actor, made.reason) == ("ada", "wrong total")
    payload, properties, _ = now_sent(engine, row_id)
    assert json.loads(payload) == json.loads(PAYLOAD) | {"total": 12}
    assert (properties.headers.get("tenant"), properties.headers.get("rate")) == ("south", 1.5)
    with pytest.raises(NeedsApproval) as raised:
        desk.edits.revert(ADA, row_id, 0, reason="wrong after all", expected_version=1)
    assert desk.approvals.approve(BOB, raised.value.approval).result == {"version": 2}
    assert now_sent(engine, row_id)[0] == PAYLOAD


def test_who_may_only_look_cannot_edit(engine: Engine, desk: Desk) -> None:
    row_id = stored(engine)
    with pytest.raises(Forbidden, match="vera is a viewer and may not edit"):
        desk.edits.edit(VIEWER, row_id, RIGHT, reason="x", expected_version=0)
    with pytest.raises(Forbidden):
        desk.edits.revert(VIEWER, row_id, 0, reason="x", expected_version=0)
    with pytest.raises(Forbidden):
        desk.edits.preview_patch(VIEWER, Selection(), PATCH)
    assert now_sent(engine, row_id)[2] == 0
