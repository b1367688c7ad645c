"""The database: settings of SQLite, the upgrade, and what a user is told when it does not work."""

from __future__ import annotations

import multiprocessing
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, make_url, text

from ackline.infra import database
from ackline.infra.database import DatabaseUnavailable
from ackline.infra.errors import ConfigurationError
from ackline.infra.tables import inbox_metadata, metadata, outbox_metadata
from tests.waiting import until


@pytest.fixture
def database_file(tmp_path: Path) -> Path:
    """A file whose path is not a plain one, in a folder that is not there yet."""
    return tmp_path / "new folder" / "a%b.db"


@pytest.fixture
def url(database_url: str) -> str:
    """The URL of an empty database."""
    return database_url


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = database.connect(url)
    yield engine
    engine.dispose()


def test_the_migrations_lead_to_the_tables_of_the_page(url: str, engine: Engine) -> None:
    database.upgrade(url)
    with database.reading(engine) as connection:
        compared = {"compare_type": True, "compare_server_default": True, "include_name": _is_not_full_text}
        context = MigrationContext.configure(connection, opts=compared)
        assert compare_metadata(context, [metadata, outbox_metadata, inbox_metadata]) == []  # type: ignore[arg-type]


def _is_not_full_text(name: str | None, kind: str, _parents: object) -> bool:
    """What SQLAlchemy has no words for; the search is tested by itself."""
    return not (kind in ("table", "index") and "dead_letter" in str(name) and "_text" in str(name))


def test_the_migrations_have_the_checks_of_the_page(url: str, engine: Engine) -> None:
    database.upgrade(url)  # Alembic does not compare check constraints
    migrated = _checks(engine)
    with engine.begin() as connection:
        for tables in (metadata, outbox_metadata, inbox_metadata):
            tables.drop_all(connection)
            tables.create_all(connection)
    assert migrated == _checks(engine)
    assert sum(map(len, migrated.values())) >= 11


def _checks(engine: Engine) -> dict[str, dict[str, str]]:
    seen = inspect(engine)
    return {
        table: {str(check["name"]): check["sqltext"] for check in seen.get_check_constraints(table)}
        for table in [*metadata.tables, *outbox_metadata.tables, *inbox_metadata.tables]
    }


def test_an_upgrade_of_what_is_up_to_date_changes_nothing_and_waits_for_nobody(url: str, engine: Engine) -> None:
    database.upgrade(url)
    with database.writing(engine) as connection:
        connection.execute(text("INSERT INTO accepted (message_id, type, at) VALUES ('ada', 't', '2026-01-01')"))
        database.upgrade(url)
    with database.reading(engine) as connection:
        assert connection.execute(text("SELECT message_id FROM accepted")).scalars().all() == ["ada"]


def test_roles_that_start_at_once_upgrade_once(url: str, engine: Engine) -> None:
    spawning = multiprocessing.get_context("spawn")
    gate = spawning.Barrier(6)
    processes = [spawning.Process(target=_upgrade_at_once, args=(url, gate)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0] * 6
    assert "dead_letters" in inspect(engine).get_table_names()


def _upgrade_at_once(url: str, gate: object) -> None:
    database.BUSY_SECONDS = 90  # a slow machine is not the question here
    gate.wait(120)  # type: ignore[attr-defined]
    database.upgrade(url)


def test_a_failed_transaction_leaves_nothing(url: str, engine: Engine) -> None:
    database.upgrade(url)
    with pytest.raises(ZeroDivisionError), database.writing(engine) as connection:  # noqa: PT012
        connection.execute(text("INSERT INTO accepted (message_id, type, at) VALUES ('ada', 't', '2026-01-01')"))
        _ = 1 / 0
    with database.reading(engine) as connection:
        assert connection.execute(text("SELECT count(*) FROM redrives")).scalar() == 0


def test_sqlite_is_set_for_what_is_committed_to_survive(
    tmp_path: Path, own_busy_seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", own_busy_seconds)
    engine = database.connect(f"sqlite:///{tmp_path / 'ackline.db'}")
    with database.reading(engine) as connection:
        settings = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    engine.dispose()
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}


def test_a_reader_of_sqlite_waits_for_no_writer(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ackline.db'}"
    database.upgrade(url)
    engine = database.connect(url)
    with database.writing(engine) as writer:
        writer.execute(text("INSERT INTO accepted (message_id, type, at) VALUES ('ada', 't', '2026-01-01')"))
        with database.reading(engine) as reader:
            assert reader.execute(text("SELECT count(*) FROM redrives")).scalar() == 0
    engine.dispose()


def test_a_locked_sqlite_says_so_in_a_sentence(
    tmp_path: Path, own_busy_seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", own_busy_seconds)
    url = f"sqlite:///{tmp_path / 'ackline.db'}"
    database.upgrade(url)
    holder = sqlite3.connect(tmp_path / "ackline.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    engine = database.connect(url)
    try:
        locked = pytest.raises(DatabaseUnavailable, match="has been locked by another process for 5 s")
        with locked, database.writing(engine):
            pass
    finally:
        engine.dispose()
        holder.close()


@pytest.mark.parametrize(
    "wrong", ["mysql://localhost/x", "sqlite://", "sqlite:///:memory:", "nonsense", "", "postgresql+nonsense:"]
)
def test_a_url_that_cannot_be_used_is_a_sentence(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="ACKLINE_DATABASE_URL cannot be used: it must read"):
        database.upgrade(wrong)


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseUnavailable, match=r"The folder .* of the database cannot be created: Not a directory"):
        database.upgrade(f"sqlite:///{tmp_path / 'file' / 'folder' / 'ackline.db'}")


def test_a_file_that_is_a_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="cannot be opened"):
        database.upgrade(f"sqlite:///{tmp_path}")


def test_a_file_that_is_no_database_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "ackline.db").write_bytes(b"something else altogether" * 100)
    with pytest.raises(DatabaseUnavailable, match="is not a database"):
        database.upgrade(f"sqlite:///{tmp_path / 'ackline.db'}")


def test_a_postgresql_that_is_not_there_is_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(DatabaseUnavailable, match=f"Nothing answers as PostgreSQL at 127.0.0.1:{port}"):
        database.upgrade(f"postgresql://ada@127.0.0.1:{port}/ackline")


def test_a_postgresql_that_refuses_is_a_sentence_without_the_password(postgresql_url: str) -> None:
    right = make_url(postgresql_url)
    wrong = right.set(password="wrong-secret").render_as_string(hide_password=False)
    with pytest.raises(DatabaseUnavailable, match=r"refuses the user .* wrong user or password") as raised:
        database.upgrade(wrong)
    assert "wrong-secret" not in str(raised.value)
    absent = right.set(database="nowhere").render_as_string(hide_password=False)
    with pytest.raises(DatabaseUnavailable, match="has no database 'nowhere': create it"):
        database.upgrade(absent)


def test_a_connection_that_the_server_ended_is_replaced(postgresql_url: str) -> None:
    engine = database.connect(postgresql_url)
    other = database.connect(postgresql_url)
    with database.reading(engine) as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar()
    with database.writing(other) as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    def gone() -> bool:
        with database.reading(other) as connection:
            return not connection.execute(text("SELECT 1 FROM pg_stat_activity WHERE pid = :pid"), {"pid": pid}).all()

    until(gone, what="the connection to be gone")
    with database.reading(engine) as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
    engine.dispose()
    other.dispose()
