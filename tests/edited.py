"""An application for tests of edits: a consumer that takes one word only, and notes every message that it is given."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ackline.consumers import Context, Reject, consumer
from ackline.producer import message
from tests import notes

APP = "tests.edited"
FOLDER = "ACKLINE_TEST_EDITED"
CONSUMER = "edited"
RIGHT = "right"


@message("test.edited")
class Edited(BaseModel):
    number: int
    word: str


@consumer(CONSUMER)
def take(edited: Edited, ctx: Context) -> None:
    notes.add(Path(os.environ[FOLDER]) / "given", json.dumps([ctx.id, ctx.raw.decode()]))
    if edited.word != RIGHT:
        raise Reject(f"{edited.word!r} is not the word")


def given(folder: Path) -> list[tuple[str, Any]]:
    """The messages that the consumer was given, in their order: (id, payload)."""
    given = map(json.loads, notes.read(folder / "given"))
    return [(message_id, json.loads(body)) for message_id, body in given]
