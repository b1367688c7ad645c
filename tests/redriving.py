"""An application for tests: two consumers of one type with a bug, which a file mends; one has an inbox.

The file `FIXED` in the folder that `FOLDER` names says for which messages the bug is mended: those with a number below
the one in it.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from pydantic import BaseModel
from sqlalchemy import Column, Engine, Integer, MetaData, Table, insert, select

from ackline.consumers import Context, consumer, fixed
from ackline.consumers.inbox import inbox
from ackline.infra import database
from ackline.producer import message
from tests import notes

FOLDER = "ACKLINE_TEST_REDRIVING"
#: Names the database of the effects, in which the inbox is too.
DATABASE = "ACKLINE_INBOX_DATABASE_URL"
FIXED = "fixed"
ONCE, BARE = "shipped-once", "shipped-bare"

service = MetaData()
#: No constraint: what is shipped twice is two rows.
shipments = Table(
    "shipments",
    service,
    Column("id", Integer, primary_key=True),
    Column("number", Integer, nullable=False),
)


@message("test.redriving.shipped")
class Shipped(BaseModel):
    number: int


class Broken(Exception):
    """The bug."""


def _fail(shipped: Shipped) -> None:
    try:
        mended = int((Path(os.environ[FOLDER]) / FIXED).read_text() or 0)
    except FileNotFoundError:
        mended = 0
    if shipped.number >= mended:
        raise Broken(f"no carrier for parcel {shipped.number}")


def mend(folder: Path, below: int) -> None:
    """Deploy a fix for the messages with a number below that."""
    draft = folder / "fixing"
    draft.write_text(str(below))
    draft.rename(folder / FIXED)


@consumer(ONCE, retry=fixed(attempts=1), inbox=inbox())
def ship_once(shipped: Shipped, ctx: Context) -> None:
    _fail(shipped)
    ctx.session.execute(insert(shipments).values(number=shipped.number))


@consumer(BARE, retry=fixed(attempts=1))
def ship(shipped: Shipped) -> None:
    notes.add(Path(os.environ[FOLDER]) / BARE, str(shipped.number))
    _fail(shipped)


def effects(url: str) -> Counter[int]:
    """How often the consumer with the inbox shipped each number."""
    engine: Engine = database.connect(url)
    try:
        with database.reading(engine) as connection:
            return Counter(connection.scalars(select(shipments.c.number)))
    finally:
        engine.dispose()


def tries(folder: Path) -> Counter[int]:
    """How often the handler without an inbox was called with each number."""
    return Counter(map(int, notes.read(folder / BARE)))
