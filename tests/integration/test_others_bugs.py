"""What other tools for dead letters got wrong about edits, and Ackline does not; with a worker and a reviewer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from ackline.dlq import edits
from ackline.dlq.contracts import Contracts
from ackline.dlq.desk import Desk
from ackline.dlq.errors import Forbidden, Invalid, Refused
from ackline.dlq.rights import Actor, Role
from ackline.dlq.selection import Selection
from ackline.infra import database
from ackline.infra.database import reading
from ackline.infra.settings import Settings
from ackline.infra.tables import DeadLetterState, dead_letters
from ackline.producer import Publisher
from tests.edited import APP, CONSUMER, FOLDER, RIGHT, Edited, given
from tests.roles import role
from tests.waiting import until

ADA = Actor("ada", Role.OPERATOR)


class Review:
    """An operator's desk, with a worker and a reviewer at work."""

    def __init__(self, engine: Engine, settings: Settings, publisher: Publisher, folder: Path) -> None:
        self.desk = Desk(engine, settings, Contracts.of(settings))
        self._engine, self._publisher, self._folder = engine, publisher, folder

    def publish(self, number: int, word: str) -> str:
        """Publish a message; returns its id."""
        return self._publisher.publish(Edited(number=number, word=word)).message_id

    def failed(self, word: str = "wrong") -> int:
        """Publish a message that fails, and return its dead letter."""
        message_id = self.publish(1, word)
        until(lambda: self._where(message_id), what="the dead letter")
        (row,) = self._where(message_id)
        return int(row.id)

    def _where(self, message_id: str) -> Any:
        query = select(dead_letters).where(dead_letters.c.message_id == message_id)
        with reading(self._engine) as connection:
            return connection.execute(query).all()

    def row(self, row_id: int) -> Any:
        with reading(self._engine) as connection:
            return connection.execute(select(dead_letters).where(dead_letters.c.id == row_id)).one()

    def edit(self, row_id: int, word: str, version: int = 0) -> None:
        payload = json.dumps({"number": 1, "word": word})
        self.desk.edits.edit(ADA, row_id, payload, reason="the wrong word", expected_version=version)

    def retry(self, row_id: int, state: DeadLetterState, redrives: int) -> None:
        """Send it back, and wait until that has led to *state*, after so many redrives that failed."""
        self.desk.redrives.retry(ADA, [row_id])
        ended = (state, redrives)
        until(lambda: (self.row(row_id).state, self.row(row_id).redrive_count) == ended, what=f"it to be {state}")

    def words(self, row_id: int) -> list[str]:
        """The words that the consumer was given under the id of this message, when all that was sent has come."""
        marker = self.publish(2, RIGHT)  # behind everything that is in its queue
        until(lambda: marker in dict(given(self._folder)), what="the marker")
        message_id = self.row(row_id).message_id
        return [payload["word"] for found, payload in given(self._folder) if found == message_id]

    def count(self) -> int:
        """How many dead letters there are."""
        with reading(self._engine) as connection:
            return int(connection.execute(select(func.count()).select_from(dead_letters)).scalar_one())


@pytest.fixture
def settings(ackline_settings: Settings) -> Settings:
    return ackline_settings.model_copy(update={"app": (APP,)})


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    with database.opened(settings.database) as engine:
        yield engine


@pytest.fixture
def review(settings: Settings, engine: Engine, publisher: Publisher, tmp_path: Path) -> Iterator[Review]:
    with (
        role(settings, "worker", **{FOLDER: str(tmp_path)}),
        role(settings, "reviewer", **{FOLDER: str(tmp_path)}),
    ):
        yield Review(engine, settings, publisher, tmp_path)


def test_an_edited_message_is_sent_once_and_only_as_edited(review: Review) -> None:
    """Elsewhere: the edit sends both versions. And: the retry of an edited message never resolves."""
    row_id = review.failed()
    review.edit(row_id, RIGHT)
    review.retry(row_id, DeadLetterState.HANDLED, 0)
    assert review.words(row_id) == ["wrong", RIGHT]
    row = review.row(row_id)
    assert (json.loads(row.payload)["word"], row.flags, row.redrive_item_id) == ("wrong", [], None)
    assert review.count() == 1


def test_the_second_edit_of_a_message_is_the_one_that_is_sent(review: Review) -> None:
    """Elsewhere: the second edit is ignored. What comes back edited is the same dead letter, not another one."""
    row_id = review.failed()
    review.edit(row_id, "nearly")
    review.retry(row_id, DeadLetterState.IN_REVIEW, 1)
    assert "'nearly' is not the word" in review.row(row_id).reason
    review.edit(row_id, RIGHT, version=1)
    review.retry(row_id, DeadLetterState.HANDLED, 1)
    assert review.words(row_id) == ["wrong", "nearly", RIGHT]
    assert review.count() == 1


def test_an_edit_that_came_to_nothing_is_never_called_handled(review: Review) -> None:
    """Elsewhere: "processed", although the edit was discarded."""
    row_id = review.failed()
    review.edit(row_id, "nearly")
    review.retry(row_id, DeadLetterState.IN_REVIEW, 1)
    assert review.row(row_id).handled_at is None
    with pytest.raises(Invalid):
        review.desk.edits.edit(ADA, row_id, '{"number": "no"}', reason="worse", expected_version=1)
    with pytest.raises(Refused):
        review.edit(row_id, RIGHT, version=0)
    review.desk.letters.discard(ADA, Selection(ids=(row_id,)), "cannot be mended")
    with pytest.raises(Refused):
        review.edit(row_id, RIGHT, version=1)
    assert review.words(row_id) == ["wrong", "nearly"]
    row = review.row(row_id)
    assert (row.state, row.handled_at, row.version) == ("discarded", None, 1)


def test_an_edited_message_goes_to_the_consumer_that_failed_with_its_id_and_headers(review: Review) -> None:
    row_id = review.failed()
    before = review.row(row_id)
    review.edit(row_id, RIGHT)
    review.desk.edits.edit(ADA, row_id, headers={"tenant": "south"}, reason="moved", expected_version=1)
    review.retry(row_id, DeadLetterState.HANDLED, 0)
    after = review.row(row_id)
    assert (after.message_id, after.consumer, after.properties) == (before.message_id, CONSUMER, before.properties)
    assert review.words(row_id) == ["wrong", RIGHT]


def test_a_user_who_may_only_read_cannot_edit(review: Review, engine: Engine) -> None:
    """Elsewhere: a read-only user can edit."""
    row_id = review.failed()
    reader = Actor("vera", Role.VIEWER)
    with pytest.raises(Forbidden):
        review.desk.edits.edit(reader, row_id, '{"number": 1, "word": "x"}', reason="x", expected_version=0)
    with pytest.raises(Forbidden):
        review.desk.edits.revert(reader, row_id, 0, reason="x", expected_version=0)
    with pytest.raises(Forbidden):
        review.desk.redrives.retry(reader, [row_id])
    assert review.row(row_id).version == 0
    assert review.words(row_id) == ["wrong"]


def test_a_script_in_a_payload_comes_back_as_data(review: Review, engine: Engine) -> None:
    """Elsewhere: it runs in the operator's browser. Whether a browser takes it for a page is the API's to prevent."""
    script = "<script>alert(1)</script>\x1b[2J"
    row_id = review.failed(script)
    payload = json.dumps({"number": 1, "word": f"{script}{script}"})
    made = review.desk.edits.edit(ADA, row_id, payload, reason=script, expected_version=0)
    assert made.diff == [{"path": "payload.word", "before": script, "after": f"{script}{script}"}]
    assert review.desk.edits.versions(ADA, row_id)[0].reason == script
    assert review.desk.letters.payload(ADA, row_id, version=0) == review.row(row_id).payload
    with reading(engine) as connection:
        assert edits.current(connection, row_id).payload == payload.encode()
