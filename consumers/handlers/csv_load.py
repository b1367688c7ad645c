"""A CSV file into a table: every row is checked, then all of them are in the table, or none.

`load_csv` is for a consumer with an inbox: what it writes commits with the note that the message is handled. A file in
which anything is wrong goes to review, with the lines that are. On PostgreSQL the rows go by COPY.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from io import TextIOWrapper
from itertools import islice
from typing import Any, BinaryIO

from pydantic import BaseModel, ValidationError
from sqlalchemy import Connection, Table, insert
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.orm import Session

from ackline.consumers.decision import Reject

#: What separates cells: that one which makes the first line the header.
_SEPARATORS = ",;\t"
#: Lines that are named as wrong, and letters of what is said of each.
_NAMED, _SAID = 10, 200
#: Characters of a line at most: a hundred million separators would be as many cells in memory, several times.
_LONGEST = 1_000_000
#: Rows of one INSERT where there is no COPY.
_CHUNK = 1000


def load_csv(file: BinaryIO, rows: type[BaseModel], table: Table, session: Session) -> int:
    """Load *file* into *table*, in the transaction of *session*, which the caller commits. Returns how many rows.

    The file is UTF-8, with or without a byte order mark; its cells are separated by commas, semicolons or tabs. Its
    first line names the fields of *rows*, by their aliases where they have some, in any order; a field with a default
    may be missing, and an empty cell of it takes the default. Each further line is read by *rows*, each field of which
    is a column of *table*.

    Raises `Reject` with what is wrong, up to ten lines with their numbers: then roll the transaction back, as an inbox
    does. Also for what the table's constraints refuse, a row that is there already included.
    """
    text = TextIOWrapper(file, "utf-8-sig", newline="")
    try:
        read = _Rows(text, rows)
        _insert(session.connection(), table, [table.c[name] for name in rows.model_fields], iter(read))
        return read.count
    except UnicodeDecodeError:
        raise Reject("the file is not UTF-8: save it as 'CSV UTF-8'") from None
    finally:
        text.detach()


class _Rows:
    """The rows of a file, as values in the order of the fields; what is wrong is said after the last of them."""

    def __init__(self, text: TextIOWrapper, model: type[BaseModel]) -> None:
        self.count = 0
        self._model = model
        lines = _lines_of(text)
        first = next(lines, "").rstrip("\r\n")
        self._names = _header(first, model)
        self._reader = csv.reader(lines, strict=True, delimiter=_separator(first, model))
        self._optional = frozenset(
            _name(key, model) for key, field in model.model_fields.items() if not field.is_required()
        )

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        wrong: list[str] = []
        lines = self._lines()
        for line, cells in lines:
            self.count += 1
            try:
                row = self._row(cells)
            except ValueError as error:
                wrong.append(f"line {line:,}: {_said(error)}")
                if len(wrong) == _NAMED:
                    break
                continue
            if not wrong:  # else nothing of it will be kept
                yield row
        if wrong:
            more = " (there may be more)" if len(wrong) == _NAMED else ""
            raise Reject(f"{len(wrong)} of {self.count:,} rows are wrong{more}: {'; '.join(wrong)}")

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Each row with the number of its first line in the file."""
        line = 2
        while True:
            try:
                cells = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise Reject(f"line {line:,} is no CSV: {error}") from None
            if cells:  # an empty line is none
                yield line, cells
            line = 2 + self._reader.line_num

    def _row(self, cells: list[str]) -> tuple[Any, ...]:
        if len(cells) != len(self._names):
            raise ValueError(f"{len(cells)} cells, but the header has {len(self._names)}")
        if any("\x00" in cell for cell in cells):  # no database takes it
            raise ValueError("a NUL character")
        found = {
            name: cell for name, cell in zip(self._names, cells, strict=True) if cell or name not in self._optional
        }
        row = self._model.model_validate_strings(found)
        return tuple(getattr(row, name) for name in self._model.model_fields)


def _lines_of(text: TextIOWrapper) -> Iterator[str]:
    """Its lines. Raises `Reject` for one that is longer than a table's row can be."""
    number = 0
    while line := text.readline(_LONGEST + 1):
        number += 1
        if len(line) > _LONGEST:
            raise Reject(f"line {number:,} has more than {_LONGEST:,} characters")
        yield line


def _name(field: str, model: type[BaseModel]) -> str:
    """What a field is called in the file."""
    return model.model_fields[field].alias or field


def _separator(first: str, model: type[BaseModel]) -> str:
    known = {_name(field, model) for field in model.model_fields}
    return max(_SEPARATORS, key=lambda separator: len(known.intersection(_cells(first, separator))))


def _cells(line: str, separator: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=separator), [])]
    except csv.Error as error:
        raise Reject(f"line 1 is no CSV: {error}") from None


def _header(first: str, model: type[BaseModel]) -> list[str]:
    """The names in the first line. Raises `Reject` when they are not those of the model."""
    found = _cells(first, _separator(first, model))
    names = {_name(field, model): description.is_required() for field, description in model.model_fields.items()}
    wrong = [f"{name!r} is missing" for name, is_required in names.items() if is_required and name not in found]
    wrong += [f"{name[:80]!r} is not known" for name in found if name not in names]
    wrong += [f"{name!r} is there twice" for name in names if found.count(name) > 1]
    if wrong:
        raise Reject(f"line 1 is not the header {', '.join(names)}: {'; '.join(wrong[:_NAMED])}")
    return found


def _said(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)[:_SAID]


def _insert(connection: Connection, table: Table, columns: Sequence[Any], rows: Iterator[tuple[Any, ...]]) -> None:
    """Raises `Reject` for what the table does not take."""
    try:
        if connection.dialect.name == "postgresql":
            _copy(connection, table, columns, rows)
            return
        names = [column.key for column in columns]
        while chunk := [dict(zip(names, row, strict=True)) for row in islice(rows, _CHUNK)]:
            connection.execute(insert(table), chunk)
    except (DataError, IntegrityError) as error:
        raise Reject(f"the table {table.name} does not take it: {error.orig}") from error
    except OverflowError as error:  # how SQLite's driver says that a number has more than 64 bits
        raise Reject(f"the table {table.name} does not take it: {error}") from error


def _copy(connection: Connection, table: Table, columns: Sequence[Any], rows: Iterator[tuple[Any, ...]]) -> None:
    import psycopg

    quoted = connection.dialect.identifier_preparer
    target = f"{quoted.format_table(table)} ({', '.join(quoted.format_column(column) for column in columns)})"
    binds: list[Callable[[Any], Any] | None] = [
        column.type.dialect_impl(connection.dialect).bind_processor(connection.dialect) for column in columns
    ]
    driver: Any = connection.connection.driver_connection
    try:
        with driver.cursor() as cursor, cursor.copy(f"COPY {target} FROM STDIN") as copy:
            for row in rows:
                copy.write_row([value if bind is None else bind(value) for bind, value in zip(binds, row, strict=True)])
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        said = ": ".join(filter(None, (error.diag.message_primary, error.diag.message_detail)))
        raise Reject(f"the table {table.name} does not take it: {said}") from error
