"""Inserting many rows at once, faster than one statement with many sets of parameters.

SQLite gets statements of many rows, each of which runs without the interpreter's lock, so that other threads of the
process go on meanwhile; PostgreSQL gets a `COPY`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import chain
from typing import Any

from sqlalchemy import Connection, Dialect, Table
from sqlalchemy.exc import DBAPIError

#: Rows of one statement for SQLite, whose text is compiled once for each connection.
_ROWS = 100


def insert_rows(connection: Connection, table: Table, names: tuple[str, ...], rows: Sequence[Sequence[Any]]) -> None:
    """Insert *rows* into *table*: of each the values of the columns *names*, as Python has them.

    Raises what an INSERT raises. Nothing is known of the columns that are not named but what the database says.
    """
    if connection.dialect.name == "postgresql":
        _copy(connection, table, names, rows)
        return
    processed = list(_processed(connection.dialect, table, names, rows))
    full = len(processed) - len(processed) % _ROWS
    statement = _insert(connection.dialect, table, names, _ROWS)
    for start in range(0, full, _ROWS):
        connection.exec_driver_sql(statement, tuple(chain.from_iterable(processed[start : start + _ROWS])))
    if full < len(processed):
        connection.exec_driver_sql(_insert(connection.dialect, table, names, 1), processed[full:])


def _processed(
    dialect: Dialect, table: Table, names: tuple[str, ...], rows: Iterable[Sequence[Any]]
) -> Iterable[tuple[Any, ...]]:
    """*rows* as the driver takes them."""
    processors = _processors(dialect, table, names)
    for row in rows:
        values = list(row)
        for index, process in processors:
            values[index] = process(values[index])
        yield tuple(values)


@cache
def _processors(dialect: Dialect, table: Table, names: tuple[str, ...]) -> list[tuple[int, Callable[[Any], Any]]]:
    """Of the columns that need one: what makes of a value what the driver takes."""
    found = [table.c[name].type.dialect_impl(dialect).bind_processor(dialect) for name in names]
    return [(index, process) for index, process in enumerate(found) if process is not None]


@cache
def _insert(dialect: Dialect, table: Table, names: tuple[str, ...], rows: int) -> str:
    values = f"({', '.join('?' * len(names))})"
    return f"INSERT INTO {_named(dialect, table, names)} VALUES {', '.join([values] * rows)}"  # noqa: S608 - our names


def _named(dialect: Dialect, table: Table, names: tuple[str, ...]) -> str:
    quote = dialect.identifier_preparer.quote
    return f"{quote(table.name)} ({', '.join(map(quote, names))})"


def _copy(connection: Connection, table: Table, names: tuple[str, ...], rows: Iterable[Sequence[Any]]) -> None:
    statement = f"COPY {_named(connection.dialect, table, names)} FROM STDIN"
    errors = connection.dialect.loaded_dbapi.Error
    raw = connection.connection
    try:
        with raw.cursor() as cursor, cursor.copy(statement) as copy:  # type: ignore[attr-defined]
            for row in _processed(connection.dialect, table, names, rows):
                copy.write_row(row)
    except errors as error:
        lost = connection.dialect.is_disconnect(error, raw, None)
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            statement, None, error, errors, dialect=connection.dialect, connection_invalidated=lost
        ) from error
