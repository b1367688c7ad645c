"""`report.requested`: a table of the application as a PDF or CSV file, fetched by a link.

The application says what a report is, a query with parameters:

    @report("sales")
    def sales(wanted: Month) -> Select[Any]:
        return select(orders.c.day, orders.c.total).where(orders.c.month == wanted.month)

The file is `NAME.pdf` or `NAME.csv` of the message that asked for it. `pip install 'ackline[handlers]'`.
"""

from __future__ import annotations

import csv
import re
import tempfile
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from sqlalchemy import CursorResult, Select

from ackline.consumers import Context, Reject, consumer
from ackline.consumers.handlers.email import Address, SendEmail
from ackline.infra import database
from ackline.infra.errors import ConfigurationError
from ackline.infra.settings import Settings, settings
from ackline.infra.wire import uuid7
from ackline.producer import message
from ackline.producer.files import keep_file, link

F = TypeVar("F", bound=Callable[[Any], Select[Any]])

#: What can begin the name of a file.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,79}")
#: No font has a letter for them.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
#: Rows of a PDF at most: each takes about a millisecond, and nobody reads so many.
MAX_PDF_ROWS = 10_000
#: Rows that are fetched at once.
_FETCHED = 1000
#: What a spreadsheet takes for the beginning of a formula, which may call programs (OWASP: CSV injection).
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
#: Bytes of a file that are held in memory; a larger one is written to the disk.
_IN_MEMORY = 8 * 1024 * 1024


@message("report.requested")
class ReportRequested(BaseModel):
    """A report is wanted."""

    model_config = ConfigDict(extra="forbid")

    report: str = Field(max_length=80, description="which one")
    format: Literal["pdf", "csv"] = "pdf"
    parameters: dict[str, JsonValue] = Field(default_factory=dict, description="of that report")
    mail_to: Address | None = Field(default=None, description="address that gets a link to it")


@dataclass(frozen=True, slots=True)
class Report:
    """A report that can be asked for."""

    name: str
    #: The contract of its parameters.
    parameters: type[BaseModel]
    query: Callable[[Any], Select[Any]]
    #: SQLAlchemy URL; None: of the application's inboxes.
    database_url: str | None


_reports: dict[str, Report] = {}


def _place(query: Callable[[Any], Select[Any]]) -> tuple[str, str]:
    return query.__module__, query.__qualname__


def report(name: str, /, *, database_url: str | None = None) -> Callable[[F], F]:
    """Make a function the report of that *name*: letters, digits, then dashes too. Returns the function unchanged.

    It takes a pydantic model, the parameters that are asked for, and returns the query, whose columns' names are the
    heads of the table. database_url: where it is run; `ACKLINE_INBOX_DATABASE_URL` when not given, and Ackline's own
    database without that. Raises `ConfigurationError`, also for a name that another function has.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} is no name of a report: letters, digits and dashes, 80 at most, and no dash first."
        )

    def register(function: F) -> F:
        hints = typing.get_type_hints(function)
        hints.pop("return", None)
        [parameters] = hints.values() or [None]
        if not (isinstance(parameters, type) and issubclass(parameters, BaseModel)):
            raise ConfigurationError(
                f"The report {name!r} takes one parameter, which is annotated with a pydantic model."
            )
        other = _reports.get(name)
        if other is not None and _place(other.query) != _place(function):  # not its module, imported again
            raise ConfigurationError(f"There is another report {name!r} already: take another name.")
        _reports[name] = Report(name, parameters, function, database_url)
        return function

    return register


@consumer("reports", time_limit="10m")
def make_report(wanted: ReportRequested, ctx: Context) -> None:
    """Keep the report as a file of the message that asked for it, and mail a link to it."""
    configured = settings()
    id_ = ctx.id or uuid7()
    name = keep_report(configured, id_, wanted)
    if wanted.mail_to is not None:
        body = f"It is ready for {configured.link_days:g} days:\n\n{link(configured, id_, name)}\n"
        ctx.publish(SendEmail(to=wanted.mail_to, subject=f"Your report: {name}", body=body))


def keep_report(configured: Settings, of: str, wanted: ReportRequested) -> str:
    """Keep the report as a file of the message or job whose id is *of*. Returns the file's name.

    Raises `Reject` for what is no report, `DatabaseUnavailable`, `StorageUnavailable`.
    """
    name = f"{wanted.report}.{wanted.format}"
    with written(configured, wanted) as file:
        keep_file(configured, of, name, file)
    return name


@contextmanager
def written(configured: Settings, wanted: ReportRequested) -> Iterator[IO[bytes]]:
    """The report as a file, from its beginning. Raises `Reject`, `DatabaseUnavailable`."""
    found = _reports.get(wanted.report)
    if found is None:
        raise Reject(f"there is no report {wanted.report!r}; there are: {', '.join(sorted(_reports)) or 'none'}")
    try:
        query = found.query(found.parameters.model_validate(wanted.parameters))
    except ValidationError as error:
        raise Reject(f"the parameters are none of {found.name}: {faults(error)}") from None
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
        with _result(found.database_url or configured.inbox_database, query) as result:
            heads = list(result.keys())
            if wanted.format == "csv":
                write_csv(file, heads, result)
            else:
                write_pdf(file, found.name, heads, result, configured.report_font)
        file.seek(0)
        yield file


def faults(error: ValidationError) -> str:
    """What does not fit, field by field."""
    return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())


@contextmanager
def _result(database_url: str, query: Select[Any]) -> Iterator[CursorResult[Any]]:
    """The rows, of which a few are in memory at a time."""
    engine = database.connect(database_url)
    try:
        with database.reading(engine) as connection:
            yield connection.execution_options(yield_per=_FETCHED).execute(query)
    finally:
        engine.dispose()


def write_csv(file: IO[bytes], heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV that spreadsheets open: UTF-8 with a byte order mark, and no text a formula."""
    text = TextIOWrapper(file, "utf-8-sig", newline="")
    writer = csv.writer(text)
    writer.writerow(heads)
    for row in rows:
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell for cell in row])
    text.flush()
    text.detach()


def write_pdf(
    file: IO[bytes], title: str, heads: Sequence[str], rows: Iterable[Sequence[Any]], font: Path | None
) -> None:
    """Write a table as PDF, whose heads are on each page.

    Raises `Reject` for more than `MAX_PDF_ROWS` rows, for columns and rows that are larger than a page, and for letters
    that the font has not. Control characters become spaces.
    """
    from fpdf import FPDF
    from fpdf.errors import FPDFException, FPDFUnicodeEncodingException
    from fpdf.fonts import FontFace, TTFFont

    page = FPDF(orientation="landscape" if len(heads) > 6 else "portrait")
    page.core_fonts_encoding = "windows-1252"
    family = "helvetica"
    if font is not None:
        family = "report"
        page.add_font(family, fname=font)
    page.set_font(family, size=14)
    page.set_title(title)
    page.add_page()
    try:
        page.cell(text=title, new_x="LMARGIN", new_y="NEXT", h=10)
        page.set_font(family, size=9)
        with page.table(headings_style=FontFace(fill_color=(230, 230, 230))) as table:
            table.row(heads)
            for number, row in enumerate(rows, 1):
                if number > MAX_PDF_ROWS:
                    raise Reject(f"the report has more than {MAX_PDF_ROWS:,} rows: ask for it as csv")
                table.row(["" if cell is None else _CONTROL.sub(" ", str(cell)) for cell in row])
    except FPDFUnicodeEncodingException as error:
        raise _no_letter(error.character) from None
    except (FPDFException, ValueError) as error:  # how it says that a row, or a column, finds no place
        raise Reject(f"the report does not fit on a page: ask for it as csv ({error})") from None
    used = page.current_font
    if isinstance(used, TTFFont) and used.missing_glyphs:  # their places would be empty
        raise _no_letter(chr(used.missing_glyphs[0]))
    file.write(page.output())


def _no_letter(letter: str) -> Reject:
    return Reject(f"the PDF's font has no letter {letter!r}: set ACKLINE_REPORT_FONT to one that has")
