"""Which consumers are paused: kept in the database, told to running workers (see `control`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from sqlalchemy import Connection, Engine, delete, inspect, select
from sqlalchemy.dialects import postgresql, sqlite

from ackline.consumers.control import Change, Pause
from ackline.infra import database
from ackline.infra.names import CONTROL
from ackline.infra.properties import Properties
from ackline.infra.tables import pauses
from ackline.infra.wire import now
from ackline.producer.errors import Unroutable
from ackline.producer.publisher import Publisher

#: Seconds to wait for the broker's confirm that workers will be told.
_TELL_SECONDS = 10.0


def paused(engine: Engine) -> dict[str, Pause]:
    """The paused consumers, by name; none in a database without Ackline's tables. Raises `DatabaseUnavailable`."""
    with database.reading(engine) as connection:
        return _all(connection) if inspect(connection).has_table(pauses.name) else {}


def _all(connection: Connection) -> dict[str, Pause]:
    rows = connection.execute(select(pauses.c.consumer, pauses.c.at, pauses.c.actor, pauses.c.reason))
    return {row.consumer: Pause(row.at, row.actor, row.reason) for row in rows}


def pause(engine: Engine, names: Collection[str], actor: str, reason: str) -> dict[str, Pause]:
    """Pause consumers; those of them that were paused already, by name: they stay as they are. To be told by `tell`.

    Raises `DatabaseUnavailable`.
    """
    dialect = postgresql if engine.dialect.name == "postgresql" else sqlite
    shared = {"at": now(), "actor": actor, "reason": reason}
    with database.writing(engine) as connection:
        before = _all(connection)
        for name in sorted(set(names)):  # in one order, so that two who do it at once cannot wait for each other
            row = dialect.insert(pauses).values(consumer=name, **shared).on_conflict_do_nothing()
            connection.execute(row)
    return {name: before[name] for name in names if name in before}


def resume(engine: Engine, names: Collection[str]) -> set[str]:
    """Resume consumers; those of them that were paused. To be told by `tell`. Raises `DatabaseUnavailable`."""
    statement = delete(pauses).where(pauses.c.consumer.in_(names)).returning(pauses.c.consumer)
    with database.writing(engine) as connection:
        return set(connection.execute(statement).scalars())


def tell(publisher: Publisher, change: Change) -> None:
    """Tell every running worker, so that it takes effect at once. Raises `PublishError` when that failed.

    Workers that have the database see it without being told, within a minute.
    """
    body = change.model_dump_json().encode()
    properties = Properties(content_type=b"application/json", type=change.event)
    try:
        publisher.send(CONTROL, "", properties, body, timeout=_TELL_SECONDS).result(_TELL_SECONDS + 1)
    except Unroutable:  # no worker runs: there is nobody to tell
        return


def reader(url: str) -> Callable[[], Mapping[str, Pause]]:
    """For a worker: a function that reads the paused consumers from the database at *url*, on a connection that it
    does not keep. Raises `ConfigurationError` for a URL that cannot be used."""

    def read() -> Mapping[str, Pause]:
        engine = database.connect(url)
        try:
            return paused(engine)
        finally:
            engine.dispose()

    database.connect(url).dispose()
    return read
