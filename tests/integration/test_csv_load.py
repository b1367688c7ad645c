"""CSV files into a table of either database: all rows of a file, or none and a reason."""

from __future__ import annotations

import enum
import re
from datetime import date
from io import BytesIO

import pytest
from pydantic import BaseModel, Field
from sqlalchemy import JSON, Boolean, Column, Date, Engine, Enum, Integer, MetaData, Table, Text, insert, select
from sqlalchemy.orm import Session

from ackline.consumers import Reject
from ackline.consumers.handlers.csv_load import load_csv


class Unit(enum.Enum):
    PIECE = "pc"
    METRE = "m"


class Article(BaseModel):
    sku: str = Field(pattern=r"^[A-Z]-\d+$")
    name: str = Field(min_length=1)
    cents: int = Field(ge=0, alias="Price (cents)")
    unit: Unit = Unit.PIECE
    since: date | None = None
    sold: bool = False


articles = Table(
    "art icles",  # to be quoted
    MetaData(),
    Column("sku", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("cents", Integer, nullable=False),
    Column("unit", Enum(Unit, native_enum=False), nullable=False),
    Column("since", Date),
    Column("sold", Boolean, nullable=False),
    Column("left out", JSON),
)
HEADER = b"sku,name,Price (cents)\n"


@pytest.fixture
def table(engine: Engine) -> Engine:
    articles.create(engine)
    return engine


def load(engine: Engine, content: bytes) -> int:
    """In a transaction, as an inbox has it."""
    with Session(engine) as session, session.begin():
        return load_csv(BytesIO(content), Article, articles, session)


def rows(engine: Engine) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(select(articles).order_by(articles.c.sku))]


def reason(engine: Engine, content: bytes) -> str:
    """Why the file is rejected, with nothing of it in the table."""
    before = rows(engine)
    with pytest.raises(Reject) as rejected:
        load(engine, content)
    assert rows(engine) == before
    return rejected.value.reason


# --- loaded ---------------------------------------------------------------------------------------------------


def test_every_row_is_in_the_table_with_its_types(table: Engine) -> None:
    content = (
        'sku,Price (cents),name,since,unit,sold\nA-1,5,"Schraube, ""M4""\nlang",2026-11-01,m,true\nA-2,0,钉子,,,\n'
    )
    assert load(table, content.encode()) == 2
    assert rows(table) == [
        ("A-1", 'Schraube, "M4"\nlang', 5, Unit.METRE, date(2026, 11, 1), True, None),
        ("A-2", "钉子", 0, Unit.PIECE, None, False, None),
    ]


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffsku,name,Price (cents)\r\nA-1,Nails,5\r\n",
        "sku;name;Price (cents)\nA-1;Nails;5",
        "name\tPrice (cents)\tsku\n\nNails\t5\tA-1\n\n",
        '"sku","name","Price (cents)"\n"A-1","Nails","5"\n',
    ],
)
def test_files_are_read_as_spreadsheets_write_them(table: Engine, content: str) -> None:
    assert load(table, content.encode()) == 1
    [row] = rows(table)
    assert row[:3] == ("A-1", "Nails", 5)


def test_a_file_that_is_larger_than_a_chunk_is_loaded_whole(table: Engine) -> None:
    content = HEADER + b"".join(b"A-%d,Nails,%d\n" % (number, number) for number in range(2500))
    assert load(table, content) == len(rows(table)) == 2500


def test_a_file_with_a_header_alone_has_no_rows(table: Engine) -> None:
    assert load(table, HEADER) == 0


# --- rejected -------------------------------------------------------------------------------------------------


def test_each_wrong_line_is_named_by_its_number_in_the_file(table: Engine) -> None:
    content = HEADER + b'A-1,"two\nlines",5\nA-2,,-1\nA-3,Nails\nB,Nails,5\nA-5,Nails,5\n'
    assert reason(table, content) == (
        "3 of 5 rows are wrong: "
        "line 4: name: String should have at least 1 character; "
        "Price (cents): Input should be greater than or equal to 0; "
        "line 5: 2 cells, but the header has 3; "
        r"line 6: sku: String should match pattern '^[A-Z]-\d+$'"
    )


def test_after_ten_wrong_lines_no_more_are_read(table: Engine) -> None:
    said = reason(table, HEADER + b"A-1,Nails,5\n" + b"A-2,Nails,none\n" * 50)
    assert said.startswith("10 of 11 rows are wrong (there may be more): line 3: ")
    assert said.count("line ") == 10


def test_wrong_rows_behind_many_good_ones_leave_nothing(table: Engine) -> None:
    good = b"".join(b"A-%d,Nails,5\n" % number for number in range(3000))
    assert reason(table, HEADER + good + b"A-0\n").startswith("1 of 3,001 rows are wrong: line 3,002: 1 cells")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "'sku' is missing"),
        (b"sku,name\nA-1,Nails\n", "'Price (cents)' is missing"),
        (b"sku,name,cents\n", "'Price (cents)' is missing; 'cents' is not known"),
        (HEADER.replace(b"\n", b",sku\n"), "'sku' is there twice"),
        ("sku,name,Price (cents)\nA-1,Nägel,5\n".encode("latin-1"), "the file is not UTF-8"),
        ("sku,name,Price (cents)\n".encode("utf-16"), "the file is not UTF-8"),
        (HEADER + b'A-1,"Nails,5\n', "line 2 is no CSV: unexpected end of data"),
        (HEADER + b"A-1," + b"N" * 200_000 + b",5\n", "line 2 is no CSV: field larger than field limit"),
        (HEADER + b"A-1,Nai\x00ls,5\n", "line 2: a NUL character"),
        (b"," * 1_000_001, "line 1 has more than 1,000,000 characters"),
        (HEADER + b"," * 1_000_001, "line 2 has more than 1,000,000 characters"),
    ],
)
def test_what_is_no_such_file_is_said_in_a_sentence(table: Engine, content: bytes, said: str) -> None:
    assert said in reason(table, content)


@pytest.mark.parametrize(
    ("last", "said"),
    [("A-9999,Nägel,5\n".encode("latin-1"), "the file is not UTF-8"), (b'A-9999,"Nails,5\n', "line 3,002 is no CSV")],
)
def test_what_is_wrong_with_the_end_of_a_file_leaves_nothing_of_its_beginning(
    table: Engine, last: bytes, said: str
) -> None:
    assert said in reason(table, HEADER + b"".join(b"A-%d,Nails,5\n" % number for number in range(3000)) + last)


@pytest.mark.parametrize("content", [b"A-1,Nails,5\nA-2,Nails,5\nA-1,Nails,5\n", b"A-0,Nails,5\n"])
def test_what_the_table_refuses_is_a_reason(table: Engine, content: bytes) -> None:
    with table.begin() as connection:
        connection.execute(insert(articles).values(sku="A-0", name="Old", cents=1, unit=Unit.PIECE, sold=False))
    found = reason(table, HEADER + content)
    assert re.match("the table art icles does not take it: (UNIQUE constraint failed|.*Key .* already exists)", found)


def test_a_number_that_the_table_cannot_hold_is_a_reason(table: Engine) -> None:
    said = reason(table, HEADER + b"A-1,Nails,99999999999999999999\n")
    assert re.match("the table art icles does not take it: .*(too large to convert|is out of range)", said)


def test_what_was_written_before_in_the_transaction_stays_its_own(table: Engine) -> None:
    with Session(table) as session, session.begin():
        session.execute(insert(articles).values(sku="A-0", name="Old", cents=1, unit=Unit.PIECE, sold=False))
        load_csv(BytesIO(HEADER + b"A-1,Nails,5\n"), Article, articles, session)
    assert [row[0] for row in rows(table)] == ["A-0", "A-1"]
