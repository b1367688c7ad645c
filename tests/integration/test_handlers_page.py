"""The page for handler authors, `docs/handlers.md`: every Python file on it is run, every command is entered."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from sqlalchemy import create_engine, text

from ackline.consumers import (
    Ack,
    Batch,
    Breaker,
    Context,
    Park,
    Reject,
    Retry,
    consumer,
    exponential,
    middleware,
    registered,
)
from ackline.consumers.commands import worker
from ackline.consumers.testing import run as handle
from ackline.infra.durations import seconds
from ackline.infra.names import DEAD
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from tests import documented
from tests.amqp import Client
from tests.broker import Vhost
from tests.documented import DOCS
from tests.roles import role
from tests.roles import run as ackline
from tests.waiting import until

PAGE = (DOCS / "handlers.md").read_text()
#: The Python files of the page, by name.
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
#: The commands of the page.
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]

Test = TypeVar("Test", bound=Callable[..., None])

#: What tests of this module run.
_files_run: set[str] = set()
_commands_run: set[str] = set()


def runs(*files: str, commands: tuple[str, ...] = ()) -> Callable[[Test], Test]:
    """The test runs these files, and commands, of the page."""
    _files_run.update(files)
    _commands_run.update(commands)
    return lambda test: test


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_registry: None) -> Path:
    """All files of the page, in the working folder."""
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(middleware, "_everywhere", [])
    return tmp_path


@pytest.fixture
def load(folder: Path) -> Callable[[str], Any]:
    """Imports a file of the page."""

    return lambda name: documented.load(folder / name)


def _pytest(folder: Path, file: str, **environment: str) -> str:
    """Run a file of tests as its reader would, and return what pytest said."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "ACKLINE_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", "-q", file],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


# --- all of it ----------------------------------------------------------------------------------------------


def test_every_file_and_every_command_is_run() -> None:
    assert len(FILES) == PAGE.count("```python"), "each begins with its name, and no name is there twice"
    assert set(FILES) == _files_run
    assert set(COMMANDS) == _commands_run
    assert PAGE.count("```") == 2 * (PAGE.count("```python") + PAGE.count("```sh")), "a block of another kind"


def test_every_keyword_of_a_consumer_is_in_the_table_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `?(.*?)`? \|", _section("All keywords"), re.MULTILINE))
    keywords = {name: p.default for name, p in signature(consumer).parameters.items() if p.kind is p.KEYWORD_ONLY}
    shown = keywords | {"retry": exponential(), "batch": Batch()}  # what stands for their None
    names = {"exponential": exponential, "Batch": Batch, "none": None}
    assert {name: eval(default, names) or None for name, default in rows.items()} == {
        name: default or None for name, default in shown.items()
    }


def test_every_option_and_setting_of_the_worker_is_in_the_table_with_its_default() -> None:
    rows = re.findall(
        r"^\| (?:`(--[a-z-]+).*?`)? ?\| (?:`ACKLINE_([A-Z_]+)`)? ?\| (.*?) ?\|", _section("The worker"), re.M
    )
    assert {option for option, _, _ in rows if option} == {option for p in worker.params for option in p.opts}
    defaults = {variable.lower(): default for _, variable, default in rows if variable}
    fields = Settings.model_fields
    assert {name: None if value == "none" else seconds(value) for name, value in defaults.items()} == {
        name: fields[name].default for name in defaults
    }


def test_every_link_within_the_page_leads_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", PAGE, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", PAGE)) <= anchors


# --- a first handler ----------------------------------------------------------------------------------------


@runs("test_shop.py")
def test_the_first_test(folder: Path) -> None:
    assert "2 passed" in _pytest(folder, "test_shop.py")


@runs(
    "shop.py",
    commands=(
        "export ACKLINE_APP=shop",
        "ackline worker &",
        """ackline publish order.placed '{"order_id": "A-1", "total": 9.5}'""",
    ),
)
def test_the_first_handler(folder: Path, ackline_settings: Settings, vhost: Vhost) -> None:
    publish = shlex.split(COMMANDS[2])[1:]
    settings = ackline_settings.model_copy(update={"app": ("shop",)})
    with role(settings, "worker", PYTHONPATH=str(folder)) as running, Client(vhost.amqp_url) as client:
        assert ackline(settings, *publish, PYTHONPATH=str(folder)).returncode == 0
        # Nobody takes what it publishes.
        until(lambda: client.ready("ackline.unrouted") == 1, what="the message that the handler publishes")
        assert "charging 9.5" in running.log.read_text()
        refused = ackline(settings, *publish[:2], publish[2].replace("9.5", "-1"), PYTHONPATH=str(folder))
        assert refused.returncode == 0
        reason = until(lambda: client.take(DEAD), what="the dead letter").headers["ackline-reason"]
        assert reason == "a total cannot be negative"


# --- what a handler takes -----------------------------------------------------------------------------------


@runs("search.py")
def test_a_union_and_an_async_handler(load: Callable[[str], Any]) -> None:
    search = load("search.py")
    assert handle(search.index, search.ArticleChanged(slug="a", text="b")).decision == Ack()
    assert search.INDEX == {"a": "b"}
    assert handle(search.index, search.ArticleRemoved(slug="a")).decision == Ack()
    assert search.INDEX == {}


@runs("archive.py")
def test_bytes(load: Callable[[str], Any], folder: Path) -> None:
    archive = load("archive.py")
    assert handle(archive.keep, b"\xff\x00", message_type="scan.done", message_id="m-1").decision == Ack()
    assert (folder / "m-1.scan.done").read_bytes() == b"\xff\x00"


@runs("clicks.py")
def test_a_batch(load: Callable[[str], Any]) -> None:
    with closing(sqlite3.connect("clicks.db")) as database:
        database.execute("CREATE TABLE clicks (page TEXT, at INTEGER)")
        clicks = load("clicks.py")
        given = [clicks.PageClicked(page="/", at=at) for at in (1, -1, 2)]
        decisions = [outcome.decision for outcome in handle(clicks.write, given)]
        assert decisions == [Ack(), Reject("before 1970"), Ack()]
        assert database.execute("SELECT at FROM clicks").fetchall() == [(1,), (2,)]


# --- retries, time limits, context --------------------------------------------------------------------------


@runs("payments.py")
@pytest.mark.parametrize(
    ("status", "decision"), [(201, Ack()), (410, Reject("not retried: AccountClosed: DE89")), (429, Retry(30.0))]
)
def test_retries(status: int, decision: object, load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def post(url: str, **_: Any) -> httpx.Response:
        return httpx.Response(status, headers={"Retry-After": "30"}, request=httpx.Request("POST", url))

    monkeypatch.setattr(httpx, "post", post)
    payments = load("payments.py")
    assert handle(payments.pay, payments.PaymentRequested(iban="DE89")).decision == decision


def test_retries_end_with_their_attempts_and_their_time(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(httpx, "post", lambda url, **_: httpx.Response(503, request=httpx.Request("POST", url)))
    payments = load("payments.py")
    payment = payments.PaymentRequested(iban="DE89")
    tries = [handle(payments.pay, payment, attempt=attempt) for attempt in range(1, 9)]
    assert [getattr(one.decision, "delay", None) for one in tries] == [1, 2, 4, 8, 16, 32, 64, None]
    late = handle(payments.pay, payment, attempt=2, failing_for="2h").decision
    assert isinstance(late, Reject)
    assert late.reason.startswith("given up after 2 attempts")
    assert payments.RETRY.jitter


@runs("policies.py")
def test_policies(load: Callable[[str], Any]) -> None:
    policies = load("policies.py")
    assert [policies.PATIENT.delay(attempt) for attempt in (1, 19)] == [60, 60]
    assert [policies.BY_HAND.delay(attempt) for attempt in (1, 2, 3, 4)] == [1, 30, 300, 6 * 3600]
    assert (policies.PATIENT.attempts, policies.BY_HAND.attempts) == (20, 5)
    assert policies.OUTAGES_ONLY.retries(ConnectionResetError())
    assert not policies.OUTAGES_ONLY.retries(ValueError())


@runs("reports.py")
def test_time_limits(load: Callable[[str], Any]) -> None:
    reports = load("reports.py")
    assert handle(reports.render, reports.ReportWanted(month="May")).decision == Ack()
    hurried = replace(registered()["reports"], time_limit=0.2)
    late = handle(hurried, reports.ReportWanted(month="the longest"))
    assert (type(late.error).__name__, late.decision) == ("TimeLimitExceeded", Retry(60.0))


@runs("imports.py")
def test_the_context(load: Callable[[str], Any]) -> None:
    imports = load("imports.py")
    done = handle(imports.load, imports.ImportRequested(rows=4))
    assert done.published == [imports.ImportFinished(rows=4)]
    assert done.progress == [(row / 4, f"{row} of 4 rows") for row in range(4)]
    assert done.logs == ["4 rows, from a body of 10 bytes"]
    assert handle(imports.load, imports.ImportRequested(rows=4), stopping=True).decision == Park(1.0)


def test_the_context_has_what_the_page_says() -> None:
    named = set(re.findall(r"`(?:await )?ctx\.(\w+)", _section("Context"))) | {"session"}
    public = {name for name in dir(Context) if not name.startswith("_")}
    assert public - named == {"enlist_again", "enlisted", "forget_enlisted", "has_enlisted", "lend", "on_confirmed"}
    assert named <= public


@runs("invoices.py")
def test_middleware(load: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    invoices = load("invoices.py")
    first, again = (handle(invoices.send, invoices.InvoiceDue(number=7), message_id="m-1") for _ in range(2))
    assert (first.decision, again.decision) == (Ack(), Ack())
    assert capsys.readouterr().out == "invoice 7\n"
    assert [len(outcome.logs) for outcome in (first, again)] == [1, 1]
    assert re.fullmatch(r"took \d+\.\d{3} s", first.logs[0])


# --- exactly-once effects -----------------------------------------------------------------------------------


@runs("ledger.py")
def test_an_inbox(load: Callable[[str], Any], folder: Path) -> None:
    url = f"sqlite:///{folder / 'ledger.db'}"
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE bookings (order_id TEXT, cents INTEGER)"))
    ledger = load("ledger.py")
    paid = ledger.OrderPaid(order_id="A-1", cents=950)
    outcomes = [handle(ledger.book, paid, message_id="m-1", database_url=url) for _ in range(2)]
    assert [one.decision for one in outcomes] == [Ack(), Ack()]
    assert [one.published for one in outcomes] == [[ledger.ReceiptIssued(order_id="A-1")], []]
    with engine.connect() as connection:
        assert connection.execute(text("SELECT * FROM bookings")).all() == [("A-1", 950)]
    engine.dispose()


@runs("refunds.py")
def test_a_claim(load: Callable[[str], Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, calls = [503, 201], list[str]()

    def post(url: str, **_: Any) -> httpx.Response:
        calls.append(url)
        return httpx.Response(answers.pop(0), request=httpx.Request("POST", url))

    monkeypatch.setattr(httpx, "post", post)
    refunds = load("refunds.py")
    granted, url = refunds.RefundGranted(order_id="A-1"), f"sqlite:///{folder / 'claims.db'}"
    tries = [handle(refunds.refund, granted, message_id="m-1", database_url=url).decision for _ in range(3)]
    assert tries == [Retry(1.0), Ack(), Ack()]
    assert calls == ["https://bank.example/refunds/A-1"] * 2


# --- what concerns several messages, and processes: what a worker does then is tested where that is -----------------


@runs("stock.py")
def test_an_ordered_consumer(load: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    stock = load("stock.py")
    found = registered()["stock"]
    assert found.order is not None
    assert (found.order.by, found.order.shards) == ("article_id", 8)
    assert handle(stock.move, stock.StockMoved(article_id="A", by=2)).decision == Ack()
    assert capsys.readouterr().out == "A 2\n"


@runs("shipping.py")
def test_a_breaker(load: Callable[[str], Any]) -> None:
    shipping = load("shipping.py")
    shipping.CARRIER = ("127.0.0.1", 1)
    breaker = registered()["shipping"].breaker
    assert breaker is not None
    default = Breaker(on=breaker.on)
    assert (breaker.failures, breaker.probe) == (default.failures, default.probe), "the example shows the defaults"
    outcome = handle(shipping.ship, shipping.ParcelPacked(barcode="1"))
    assert isinstance(outcome.error, breaker.on)


@runs("newsletters.py")
def test_a_rate(load: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    newsletters = load("newsletters.py")
    assert registered()["newsletters"].rate == 100
    assert handle(newsletters.send, newsletters.NewsletterDue(address="a@example.test")).decision == Ack()
    assert capsys.readouterr().out == "a@example.test\n"


@runs("thumbnails.py")
def test_a_handler_that_can_be_killed(load: Callable[[str], Any]) -> None:
    thumbnails = load("thumbnails.py")
    assert handle(thumbnails.shrink, thumbnails.ImageUploaded(path="a.png")).decision == Ack()


@runs("previews.py")
def test_what_does_not_belong_in_a_handler(
    load: Callable[[str], Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = folder / "tools"
    tools.mkdir()
    program = tools / "ffmpeg"
    program.write_text('#!/bin/sh\n[ "$2" = a.mp4 ] && : > "$2.png" && exit 0\necho "no video" >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    previews = load("previews.py")
    assert handle(previews.preview, previews.VideoUploaded(path="a.mp4")).decision == Ack()
    assert (folder / "a.mp4.png").exists()
    assert handle(previews.preview, previews.VideoUploaded(path="b.txt")).decision == Reject("no video\n")


# --- commands -----------------------------------------------------------------------------------------------


@runs(commands=("ackline worker --consumers billing --concurrency 4 --processes 2 --prefetch 200 --max-memory 1GB",))
def test_the_options_of_the_worker(folder: Path, ackline_settings: Settings) -> None:
    [command] = [line for line in COMMANDS if line.startswith("ackline worker --consumers")]
    settings = ackline_settings.model_copy(update={"app": ("shop",)})
    with role(settings, *shlex.split(command)[1:], PYTHONPATH=str(folder)) as running:
        assert running.stop(signal.SIGTERM) == 0


@runs(commands=("ackline worker --reload",))
def test_reload(folder: Path, ackline_settings: Settings) -> None:
    settings = ackline_settings.model_copy(update={"app": ("shop",)})
    with role(settings, "worker", "--reload", PYTHONPATH=str(folder)) as running:
        assert running.stop(signal.SIGTERM) == 0


@runs(
    commands=(
        "ackline consumers list",
        'ackline consumers pause billing --reason "double charges, see #812"',
        "ackline consumers resume billing",
    )
)
def test_pause_and_resume(folder: Path, ackline_settings: Settings) -> None:
    settings = ackline_settings.model_copy(update={"app": ("shop",)})
    show, pause, resume = (line for line in COMMANDS if line.startswith("ackline consumers"))
    with role(settings, "worker", PYTHONPATH=str(folder)):
        shown = []
        for command in (pause, show, resume, show):
            done = ackline(settings, *shlex.split(command)[1:])
            assert done.returncode == 0, done.stdout + done.stderr
            shown.append(done.stdout)
    assert "double charges, see #812" in shown[1]
    assert "double charges" not in shown[3]


# --- testing, and mail --------------------------------------------------------------------------------------


@runs("test_payments.py")
def test_testing(folder: Path, broker: Broker) -> None:
    said = _pytest(
        folder,
        "test_payments.py",
        ACKLINE_AMQP_URL=broker.amqp_url,
        ACKLINE_MANAGEMENT_URL=str(broker.management_url),
    )
    assert "4 passed" in said


@runs("welcome.py")
def test_a_handler_that_sends_mail(load: Callable[[str], Any]) -> None:
    welcome = load("welcome.py")
    outcome = handle(welcome.welcome, welcome.CustomerJoined(name="Ada", address="ada@example.test"))
    assert outcome.published == [
        welcome.SendEmail(to="ada@example.test", subject="Welcome", body="Hello Ada"),
    ]
