"""Reports as files: what a spreadsheet and a reader of PDF get, and what cannot be one."""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Iterator
from datetime import date
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from pydantic import BaseModel
from sqlalchemy import Select, column, literal, select, union_all

from ackline.consumers import Ack, Reject
from ackline.consumers.handlers import reports
from ackline.consumers.handlers.reports import ReportRequested, make_report, report, write_csv, write_pdf
from ackline.consumers.testing import Outcome, run
from ackline.infra.errors import ConfigurationError
from ackline.infra.settings import settings
from ackline.producer.files import NoSuchFile, open_file


class Months(BaseModel):
    count: int


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One report, and a data folder of the test's own."""
    monkeypatch.setattr(reports, "_reports", {})
    monkeypatch.setenv("ACKLINE_DATA_DIR", str(tmp_path / "data"))
    settings.cache_clear()

    @report("months", database_url=f"sqlite:///{tmp_path / 'rows.db'}")
    def months(wanted: Months) -> Select[Any]:
        numbers = union_all(*(select(literal(number).label("month")) for number in range(1, wanted.count + 1)))
        return select(column("month")).select_from(numbers.subquery())

    yield
    settings.cache_clear()


def made(format_: str = "csv", **changes: Any) -> Outcome:
    asked = {"report": "months", "format": format_, "parameters": {"count": 3}} | changes
    return run(make_report, ReportRequested.model_validate(asked), message_id="m-1")


def kept(name: str) -> bytes:
    with open_file(settings(), "m-1", name) as file:
        return file.read()


def text_of(pdf: bytes) -> str:
    """The letters on its pages."""
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.S)
    written = b"".join(zlib.decompress(stream) for stream in streams)
    return b" ".join(re.findall(rb"\((.*?)\) Tj", written)).decode("cp1252")


def test_a_report_is_a_file_of_the_message_that_asked_for_it() -> None:
    assert made("csv").decision == Ack()
    assert kept("months.csv") == b"\xef\xbb\xbfmonth\r\n1\r\n2\r\n3\r\n"
    assert made("pdf").decision == Ack()
    assert kept("months.pdf").startswith(b"%PDF-")
    assert text_of(kept("months.pdf")) == "months month 1 2 3"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"report": "years"}, "there is no report 'years'; there are: months"),
        ({"parameters": {}}, "the parameters are none of months: count: Field required"),
        (
            {"parameters": {"count": "many"}},
            "the parameters are none of months: count: Input should be a valid integer",
        ),
    ],
)
def test_what_is_no_report_is_for_a_person(changes: dict[str, Any], reason: str) -> None:
    decision = made(**changes).decision
    assert isinstance(decision, Reject)
    assert decision.reason.startswith(reason)
    with pytest.raises(NoSuchFile):
        kept("months.csv")


def test_a_pdf_of_too_many_rows_is_refused_and_the_csv_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MAX_PDF_ROWS", 2)
    assert made("pdf").decision == Reject("the report has more than 2 rows: ask for it as csv")
    assert made("csv").decision == Ack()


@pytest.mark.parametrize("name", ["../months", "Mo/nths", "", "-", "-months", "months\n", "m" * 81, "Ökonomie"])
def test_the_name_of_a_report_can_be_part_of_an_address(name: str) -> None:
    with pytest.raises(ConfigurationError, match="letters, digits and dashes"):
        report(name)


def test_a_report_says_what_its_parameters_are() -> None:
    with pytest.raises(ConfigurationError, match="a pydantic model"):

        @report("wrong")
        def wrong(wanted: dict[str, str]) -> Select[Any]:
            raise NotImplementedError


def test_two_reports_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="There is another report 'months' already"):

        @report("months")
        def other(wanted: Months) -> Select[Any]:
            raise NotImplementedError


def test_a_spreadsheet_takes_no_text_for_a_formula() -> None:
    file = BytesIO()
    texts = ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "＝1", "plain", "a=b", "上海"]
    write_csv(file, ["a"], [[text] for text in texts] + [[-5], [None], [date(2026, 11, 1)]])
    assert not file.closed
    read = [row[0] if row else "" for row in csv.reader(StringIO(file.getvalue().decode("utf-8-sig"), newline=""))]
    assert read == ["a", *(f"'{text}" for text in texts[:8]), "plain", "a=b", "上海", "-5", "", "2026-11-01"]


def test_a_pdf_has_its_heads_on_each_page_and_western_letters() -> None:
    file = BytesIO()
    write_pdf(file, "sales", ["day", "said"], [[number, "“Über” 5 €"] for number in range(60)], None)
    found = text_of(file.getvalue())
    pages = len(re.findall(rb"/Type /Page\b", file.getvalue()))
    assert pages > 1
    assert found.count("said") == pages
    assert found.count("“Über” 5 €") == 60


@pytest.mark.parametrize(("heads", "row"), [(["a"], ["word " * 5000]), (["a"] * 200, ["word"] * 200)])
def test_what_is_larger_than_a_page_is_a_reason(heads: list[str], row: list[str]) -> None:
    with pytest.raises(Reject, match="does not fit on a page: ask for it as csv"):
        write_pdf(BytesIO(), "sales", heads, [row], None)


def test_letters_that_a_font_has_not_are_a_reason_and_no_empty_places(tmp_path: Path) -> None:
    font = tmp_path / "few.ttf"
    draw_font(font, "saleŁ ")
    write_pdf(BytesIO(), "sale", ["Ł"], [["a"], ["a\x07\r\na"]], font)
    reason = "the PDF's font has no letter {}: set ACKLINE_REPORT_FONT to one that has"
    with pytest.raises(Reject, match=re.escape(reason.format("'上'"))):
        write_pdf(BytesIO(), "sale", ["Ł"], [["上"]], font)
    with pytest.raises(Reject, match=re.escape(reason.format("'Ł'"))):
        write_pdf(BytesIO(), "sale", ["Ł"], [["a"]], None)


def draw_font(file: Path, letters: str) -> None:
    """A font in which each of these letters is the same square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 500), (500, 500), (500, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    names = [".notdef", *(f"uni{ord(letter):04X}" for letter in letters)]
    font = FontBuilder(1000)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(letter): f"uni{ord(letter):04X}" for letter in letters})
    font.setupGlyf(dict.fromkeys(names, square))
    font.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Few", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(file)
