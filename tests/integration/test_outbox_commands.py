"""`ackline relay` and `ackline outbox` as an operator uses them, in processes of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, inspect, make_url, text

from ackline.infra import database
from ackline.infra.properties import Properties
from ackline.infra.settings import Settings
from ackline.producer import outbox
from ackline.producer.outbox import Entry
from tests.amqp import Client
from tests.relaying import Recorded, declare_queue, numbers
from tests.roles import role, run
from tests.waiting import until


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A service's own database, without an outbox."""
    engine = create_engine(f"sqlite:///{tmp_path / 'service.db'}")
    yield engine
    engine.dispose()


def said(settings: Settings, *arguments: str, code: int = 0) -> tuple[str, str]:
    """What a command prints to standard output and standard error."""
    done = run(settings, *arguments)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def test_an_operator_sees_what_failed_and_mends_it(ackline_settings: Settings, engine: Engine) -> None:
    settings = ackline_settings
    declare_queue(settings.broker)
    url = engine.url.render_as_string(hide_password=False)
    _, error = said(settings, "outbox", "list", "--database-url", url, code=1)
    assert "has no outbox yet: create it with the service's migrations or `outbox.create_tables`" in error

    with role(settings, "relay", "--database-url", url) as relay:
        assert "created the tables of the outbox, ackline_outbox and ackline_leases, in" in relay.log.read_text()
        with engine.begin() as connection:
            outbox.add(connection, Recorded(number=1), message_id="fine")
            outbox.put(connection, [Entry("spoiled\x1b[31m", "test.recorded", Properties.from_wire(b""), b"{}")])
            outbox.add(connection, Recorded(number=2), message_id="later", delay=3600)
        until(lambda: "row 2 of the outbox failed" in relay.log.read_text(), what="the relay to give one up")
        with Client(settings.broker) as client:
            assert numbers(client) == [1]
        assert relay.stop() == 0

    listed, error = said(settings, "outbox", "list", "--database-url", url)
    assert "spoiled\\x1b[31m  failed" in listed
    assert "its properties are not those of an AMQP message" in listed
    assert "later" in listed
    assert "fine" not in listed
    assert error == "0 wait to be published now.\n"
    listed, _ = said(settings, "outbox", "list", "--state", "scheduled", "--json", "--database-url", url)
    row = json.loads(listed)
    assert (row["message_id"], row["state"], row["due_at"][-1]) == ("later", "scheduled", "Z")

    assert said(settings, "outbox", "cancel", "later", "--database-url", url)[0] == "later: cancelled\n"
    _, error = said(settings, "outbox", "cancel", "fine", "no-such", "--database-url", url, code=1)
    assert error == (
        "ackline: fine: not cancelled, it is published.\n"
        "ackline: no-such: not cancelled, the outbox has no such message.\n"
    )
    assert said(settings, "outbox", "retry", "spoiled\x1b[31m", "--database-url", url)[0].endswith(": waiting\n")
    _, error = said(settings, "outbox", "list", "--database-url", url)
    assert error == "1 wait to be published now.\n"


def test_the_relay_of_ackline_itself_upgrades_its_database(ackline_settings: Settings) -> None:
    declare_queue(ackline_settings.broker)
    with role(ackline_settings, "relay") as relay:
        engine = database.connect(ackline_settings.database)
        assert {"dead_letters", "ackline_outbox"} <= set(inspect(engine).get_table_names())
        with database.writing(engine) as connection:
            outbox.add(connection, Recorded(number=1))
        with Client(ackline_settings.broker) as client:
            until(lambda: numbers(client) == [1], what="the message")
        engine.dispose()
        assert relay.stop() == 0


def test_a_relay_that_may_not_create_the_tables_or_use_them_says_what_to_do(
    ackline_settings: Settings, postgresql_url: str
) -> None:
    admin = create_engine(postgresql_url, isolation_level="AUTOCOMMIT")
    user = f"u_{make_url(postgresql_url).database}"
    limited = make_url(postgresql_url).set(username=user, password="secret").render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"CREATE USER {user} PASSWORD 'secret'"))
        connection.execute(text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))
        try:
            _, error = said(ackline_settings, "relay", "--database-url", limited, code=1)
            assert f"has no outbox, and the user '{user}' may not create its tables: create it with" in error
            assert "secret" not in error
            outbox.create_tables(connection)
            _, error = said(ackline_settings, "relay", "--database-url", limited, code=1)
            grants = [
                f"GRANT SELECT, UPDATE, DELETE ON ackline_outbox TO {user};",
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON ackline_leases TO {user};",
            ]
            assert f"what a relay does: {' '.join(grants)}" in error
            for grant in grants:
                connection.execute(text(grant))
            with role(ackline_settings, "relay", "--database-url", limited) as relay:
                assert relay.stop() == 0
        finally:
            connection.execute(text(f"DROP OWNED BY {user}"))
            connection.execute(text(f"DROP USER {user}"))
    admin.dispose()


@pytest.mark.parametrize("command", [["relay"], ["outbox", "list"]], ids=lambda command: command[0])
def test_a_url_that_cannot_be_used_is_named_by_its_option(ackline_settings: Settings, command: list[str]) -> None:
    _, error = said(ackline_settings, *command, "--database-url", "mysql://u:hunter2@host/shop", code=2)
    assert error.startswith("ackline: --database-url cannot be used: it must read postgresql://")
