"""A column among many values: one parameter, however many there are, where `IN` has one for each."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import BigInteger, Boolean, ColumnElement, Dialect, Text, TypeDecorator, bindparam
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


class _List(TypeDecorator[Collection[Any]]):
    """A list as the text of a JSON array, which both databases take apart faster than a driver sends its elements."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Collection[Any] | None, dialect: Dialect) -> str:
        return json.dumps(value)


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
