"""Many values as one parameter: the text of a JSON array, which both databases take apart faster than a driver sends
its elements one by one. `among` stands for `IN`, `rows` for an executemany.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    Dialect,
    Subquery,
    Text,
    TypeDecorator,
    bindparam,
    cast,
    func,
    literal_column,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.operators import OperatorType


class among(FunctionElement[bool]):  # noqa: N801 - used as a function
    """Whether *column*, of texts or of whole numbers, is one of *values*; of none it never is."""

    inherit_cache = True
    type = Boolean()

    def __init__(self, column: ColumnElement[Any], values: Iterable[Any]) -> None:
        super().__init__(column, bindparam("among", list(values), type_=_List(), unique=True))

    def self_group(self, against: OperatorType | None = None) -> among:
        """Itself: where a database has no booleans, SQLAlchemy would write `... = 1`, and no index would serve."""
        return self


def rows(connection: Connection, name: str, columns: Mapping[str, Any], values: Iterable[Sequence[Any]]) -> Subquery:
    """A table *name* of *values*, each of which has a text, number, boolean, time or None for each of *columns*.

    columns: the types, by name.
    """
    read: list[ColumnElement[Any]]
    given = bindparam("rows", list(values), type_=_List(), unique=True)
    if connection.dialect.name == "postgresql":
        row = func.json_array_elements(cast(given, JSON)).table_valued("value").c.value
        read = [cast(row.op("->>")(literal_column(f"{at}")), type_) for at, type_ in enumerate(columns.values())]
    else:
        row = func.json_each(given).table_valued("value").c.value
        read = [
            func.json_extract(row, literal_column(f"'$[{at}]'"), type_=type_)
            for at, type_ in enumerate(columns.values())
        ]
    return select(*(found.label(column) for column, found in zip(columns, read, strict=True))).subquery(name)


class _List(TypeDecorator[Collection[Any]]):
    """A list as the text of a JSON array."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Collection[Any] | None, dialect: Dialect) -> str:
        time = _time_on_sqlite if dialect.name == "sqlite" else datetime.isoformat
        # What is no Unicode stays so, and the driver refuses it: written as an escape, SQLite would take it.
        return json.dumps(value, ensure_ascii=False, default=time)


def _time_on_sqlite(value: datetime) -> str:
    """As SQLAlchemy stores it there."""
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


@compiles(among, "sqlite")
def _sqlite(element: among, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(part, **options) for part in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({values}))"  # noqa: S608 - compiled SQL


@compiles(among, "postgresql")
def _postgresql(element: among, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(part, **options) for part in element.clauses)
    value = "value::bigint" if isinstance(element.clauses.clauses[0].type, BigInteger) else "value"
    elements = f"SELECT {value} FROM json_array_elements_text(CAST({values} AS json))"  # noqa: S608 - compiled SQL
    return f"{column} = ANY (ARRAY({elements}))"
