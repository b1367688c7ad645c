"""The outbox of a Django service: rows in the transaction of Django's own connection, on SQLite and PostgreSQL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import django
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from django.conf import settings as django_settings
from django.db import connections, models, transaction
from sqlalchemy import Engine, inspect, make_url, select

from ackline.infra import database
from ackline.infra.tables import OutboxState, outbox_metadata
from ackline.infra.tables import outbox as table
from ackline.producer import django as outbox
from ackline.producer import outbox as sqlalchemy_outbox
from ackline.producer.outbox import Stored
from tests.amqp import Client
from tests.broker import Vhost
from tests.integration.test_relay import relaying, until_empty
from tests.relaying import Recorded, declare_queue, numbers

USING = "service"

django_settings.configure(USE_TZ=True, INSTALLED_APPS=[])
django.setup()


class Order(models.Model):  # type: ignore[misc]
    """What the service itself keeps."""

    number = models.IntegerField()

    class Meta:
        app_label = "shop"


class RolledBack(Exception):
    """The service changed its mind."""


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """The database as the relay sees it; to the service it is USING, and has its tables."""
    parsed = make_url(database_url)
    chosen: dict[str, Any] = {"ENGINE": f"django.db.backends.{'sqlite3' if parsed.host is None else 'postgresql'}"}
    chosen |= {"NAME": parsed.database, "USER": parsed.username, "PASSWORD": parsed.password}
    chosen |= {"HOST": parsed.host, "PORT": parsed.port}
    connections.settings[USING] = connections.configure_settings({"default": {}, USING: chosen})[USING]
    outbox.create_tables(USING)
    with connections[USING].schema_editor() as editor:
        editor.create_model(Order)
    engine = database.connect(database_url)
    with database.reading(engine):  # on SQLite the first connection makes the write-ahead log, with nobody else there
        pass
    yield engine
    engine.dispose()
    connections[USING].close()
    del connections[USING]
    del connections.settings[USING]


def waiting(engine: Engine) -> list[str]:
    """Ids of the messages that wait to be published now."""
    with database.reading(engine) as connection:
        return [row.message_id for row in sqlalchemy_outbox.listed(connection, OutboxState.WAITING, 100)]


def test_a_message_shares_the_fate_of_what_it_tells_about(engine: Engine, vhost: Vhost) -> None:
    declare_queue(vhost.amqp_url)
    for number in range(20):
        try:
            with transaction.atomic(using=USING):
                Order.objects.using(USING).create(number=number)
                outbox.add(Recorded(number=number), using=USING)
                if number % 2:
                    raise RolledBack
        except RolledBack:
            pass
    with relaying(vhost.amqp_url, engine), Client(vhost.amqp_url) as client:
        until_empty(engine)
        published = numbers(client)
    assert published == list(range(0, 20, 2))
    assert published == list(Order.objects.using(USING).order_by("pk").values_list("number", flat=True))


def test_an_inner_block_that_is_rolled_back_takes_its_messages_with_it(engine: Engine) -> None:
    with transaction.atomic(using=USING):
        first = outbox.add(Recorded(number=1), using=USING)
        with contextlib.suppress(RolledBack), transaction.atomic(using=USING):
            outbox.add(Recorded(number=2), using=USING)
            raise RolledBack
        third = outbox.add(Recorded(number=3), using=USING)
        assert waiting(engine) == []
    assert waiting(engine) == [first, third]


def test_outside_of_a_transaction_it_must_be_asked_for(engine: Engine) -> None:
    with pytest.raises(outbox.OutsideTransaction, match=r"'service' is in none: use transaction\.atomic\(\), or say"):
        outbox.add(Recorded(number=1), using=USING)
    assert waiting(engine) == []
    message_id = outbox.add(Recorded(number=1), using=USING, autocommit=True)
    assert waiting(engine) == [message_id]


def test_a_row_is_the_one_that_sqlalchemy_would_have_written(engine: Engine) -> None:
    later = datetime(2042, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)
    instance = Recorded(number=7, filling="é\x01")
    options: dict[str, Any] = {
        "message_id": "m-7",
        "correlation_id": "c-7",
        "headers": {"tenant": "blue"},
        "track": True,
        "deliver_at": later,
        "app_id": "shop",
    }
    with transaction.atomic(using=USING):
        assert outbox.add(instance, using=USING, **options) == "m-7"
    with database.writing(engine) as connection:
        sqlalchemy_outbox.add(connection, instance, **options)
        ours, theirs = connection.execute(select(table).order_by(table.c.id)).all()
        alike = [name for name in (*Stored._fields, "payload") if name not in ("id", "created_at")]
        assert [getattr(ours, name) for name in alike] == [getattr(theirs, name) for name in alike]
        assert len(ours.properties) == len(theirs.properties)  # they differ in the time, perhaps
        assert abs(theirs.created_at - ours.created_at) < timedelta(hours=1)
        scheduled = sqlalchemy_outbox.scheduled(connection, 10)
        assert [(row.id, row.due_at) for row in scheduled] == [(ours.id, later), (theirs.id, later)]


def test_what_is_due_soon_and_late_has_the_same_order_for_the_relay(engine: Engine) -> None:
    with transaction.atomic(using=USING):
        late = outbox.add(Recorded(number=1), using=USING, delay=timedelta(days=4000))
        soon = outbox.add(Recorded(number=2), using=USING, delay=60)
        at_once = outbox.add(Recorded(number=3), using=USING, deliver_at=datetime(2001, 1, 1, tzinfo=UTC))
    assert waiting(engine) == [at_once]
    with database.reading(engine) as connection:
        assert [row.message_id for row in sqlalchemy_outbox.scheduled(connection, 10)] == [soon, late]


def test_the_tables_are_those_of_the_page(engine: Engine) -> None:
    outbox.create_tables(USING)  # a second time changes nothing
    made = _checks(engine)
    with database.writing(engine) as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "include_name": lambda name, kind, _: kind != "table" or name in outbox_metadata.tables,
            },
        )
        assert compare_metadata(context, outbox_metadata) == []
        outbox_metadata.drop_all(connection)
        sqlalchemy_outbox.create_tables(connection)
    assert made == _checks(engine)


def _checks(engine: Engine) -> dict[str, Any]:
    """Names of the constraints, and what they hold."""
    seen = inspect(engine)
    return {
        name: (
            seen.get_pk_constraint(name),
            {check["name"]: check["sqltext"] for check in seen.get_check_constraints(name)},
        )
        for name in outbox_metadata.tables
    }


def test_another_database_is_refused_with_a_sentence() -> None:
    connections.settings["other"] = {**connections.settings["default"], "ENGINE": "django.db.backends.dummy"}
    with pytest.raises(outbox.UnknownDatabase, match="An outbox needs PostgreSQL or SQLite; 'other' is unknown"):
        outbox.add(Recorded(number=1), using="other")
    del connections.settings["other"]
