"""A worker that is killed in the middle of loading a CSV file leaves nothing of it; the next one loads it once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from ackline.infra import database
from ackline.infra.settings import Settings
from tests import documented
from tests.doors import gateway
from tests.roles import RoleProcess
from tests.waiting import until

pytestmark = pytest.mark.faults

ROWS = 5000


@pytest.fixture
def shop(postgresql_url: str, tmp_path: Path) -> Iterator[Engine]:
    """The application of the page, in *tmp_path*, and its database."""
    for section in ("Data from a paged API", "A CSV file into a table"):
        documented.write_files("scenarios.md", section, tmp_path)
    engine = database.connect(postgresql_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE articles (sku text PRIMARY KEY, name text NOT NULL, cents int NOT NULL)"))
    yield engine
    engine.dispose()


def count(shop: Engine, query: str) -> int:
    with shop.connect() as connection:
        return int(connection.execute(text(query)).scalar_one())


def test_a_file_whose_worker_is_killed_is_loaded_once(
    shop: Engine, ackline_settings: Settings, postgresql_url: str, tmp_path: Path
) -> None:
    variables = {"PYTHONPATH": str(tmp_path), "SHOP_DATABASE_URL": postgresql_url}
    settings = ackline_settings.model_copy(update={"app": ("articles",)})
    worker = RoleProcess(settings, "worker", **variables)
    worker.start()
    try:
        with gateway(settings, **variables) as client, shop.connect() as other:
            # The COPY waits at this row for what becomes of another transaction.
            other.execute(text(f"INSERT INTO articles VALUES ('A-{ROWS // 2}', 'Nails', 1)"))
            content = "sku,name,cents\n" + "".join(f"A-{number},Nails,{number}\n" for number in range(ROWS))
            answer = client.post("/v1/uploads", files={"file": ("articles.csv", content, "text/csv")})
            assert answer.status_code == 202
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%' AND wait_event_type = 'Lock'"
            until(lambda: count(shop, waiting), what="the COPY to wait in the middle")
            worker.kill()
            other.rollback()
            until(lambda: not count(shop, waiting.partition(" AND ")[0]), what="the end of its transaction")
            assert count(shop, "SELECT count(*) FROM articles") == 0
            worker.start()
            until(lambda: count(shop, "SELECT count(*) FROM articles") == ROWS, what="all rows")
        assert worker.stop() == 0
        assert count(shop, "SELECT count(*) FROM ackline_inbox WHERE claimed_until IS NULL") == 1
    finally:
        worker.kill()
