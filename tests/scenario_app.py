"""An application of handlers that come with Ackline: a service that is called, a source, a table."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sqlalchemy import CheckConstraint, Column, Connection, Integer, MetaData, Table, Text, insert

from ackline.consumers.handlers.bulk_insert import inserts
from ackline.consumers.handlers.http_call import calls
from ackline.consumers.handlers.paged_sync import pages, syncs
from ackline.producer import message

APP = "tests.scenario_app"
#: Names the database of the tables below.
DATABASE = "ACKLINE_INBOX_DATABASE_URL"
#: Name the addresses of a service and of a paged API.
SERVICE, SOURCE = "ACKLINE_TEST_SERVICE_URL", "ACKLINE_TEST_SOURCE_URL"
#: Names a file: who creates it dies, with a page written and not committed.
DIES = "ACKLINE_TEST_SCENARIO_DIES"
NOBODY = "http://127.0.0.1:1"

metadata = MetaData()
#: No constraint: an item that is brought twice is two rows.
products = Table("products", metadata, Column("id", Text, nullable=False), Column("name", Text, nullable=False))
readings = Table(
    "readings",
    metadata,
    Column("meter", Text, nullable=False),
    Column("number", Integer, nullable=False),
    CheckConstraint("number >= 0", name="from_zero"),
)


@message("test.reading")
class Reading(BaseModel):
    meter: str
    number: int


def store(connection: Connection, items: list[dict[str, Any]]) -> None:
    connection.execute(insert(products), items)
    fatal = os.environ.get(DIES)
    if fatal and items[0]["id"] == "p-00050" and not Path(fatal).exists():
        Path(fatal).touch()
        os.kill(os.getpid(), signal.SIGKILL)


CallService = calls("service", os.environ.get(SERVICE, NOBODY), headers={"X-Team": "shop"}, seconds=200)
SyncSource = syncs("source", pages(os.environ.get(SOURCE, NOBODY), limit=10, seconds=200), store)
inserts("readings", Reading, readings)
