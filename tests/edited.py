"""An application for tests of edits: a consumer that takes one word only, and notes every message that it is given."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ackline.consumers import Context, Reject, consumer
from ackline.producer import message

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
    line = json.dumps([ctx.id, ctx.raw.decode()]).encode() + b"\n"
    # One write of one short line in append mode: lines of processes do not mix.
    descriptor = os.open(Path(os.environ[FOLDER]) / "given", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)
    if edited.word != RIGHT:
        raise Reject(f"{edited.word!r} is not the word")


def given(folder: Path) -> list[tuple[str, Any]]:
    """The messages that the consumer was given, in their order: (id, payload)."""
    try:
        lines = (folder / "given").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [(message_id, json.loads(body)) for message_id, body in map(json.loads, lines)]
