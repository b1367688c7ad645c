"""Fixtures that every test may use: a broker, a vhost and settings of its own, PostgreSQL, a mail sink."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from ackline.consumers.consumer import _consumers
from ackline.infra import database
from ackline.infra.running_broker import Broker, BrokerUnavailable
from ackline.infra.settings import Settings
from ackline.producer import Publisher
from ackline.producer.message import _contracts
from tests import broker as test_broker
from tests import ports, postgresql, redis_server
from tests.amqp import Client
from tests.broker import Vhost, settings_for
from tests.mail import MailSink

#: Whoever uses one of them works with a broker. What starts one otherwise is marked where it stands.
BROKER_FIXTURES = frozenset({"broker", "own_broker", "server", "data_dir", "shared_up"})


def pytest_configure() -> None:
    ports.draw_apart()


def pytest_report_header() -> str:
    return test_broker.header()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that work with a broker: on another RabbitMQ only these can differ."""
    for item in items:
        if not BROKER_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("broker")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests said with `say`."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, sentence in report.user_properties:
            if name == "says":
                terminalreporter.write_line(str(sentence))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what was captured, and what processes have logged, only where it explains a failure; of long text the end.

    Tests of broken text log surrogates. pytest-xdist sends what was captured as UTF-8, and would end at them.
    """
    report = yield
    if not report.failed:
        report.sections = []
        return report
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    logs = sorted(folder.rglob("*.log")) if folder is not None else []
    said = [(f"the end of {log.relative_to(folder)}", _end(log.read_text(errors="replace"), 15)) for log in logs]
    report.sections = [(name, _end(text, 40)) for name, text in report.sections] + said
    return report


def _end(text: str, lines: int) -> str:
    """The last *lines* of *text*, as UTF-8 can say it."""
    return "\n".join(text.splitlines()[-lines:]).encode("utf-8", "backslashreplace").decode()


@pytest.fixture
def say(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Has a sentence, with the figures that a test saw, printed at the end of the run."""
    return lambda sentence: record_property("says", sentence)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The broker of this run, shared by all tests. None of them may stop it: see `own_broker`."""
    try:
        running = test_broker.start(tmp_path_factory.mktemp("broker"))
    except BrokerUnavailable as error:
        pytest.fail(str(error), pytrace=False)
    with running:
        yield running


@pytest.fixture
def vhost(broker: Broker) -> Iterator[Vhost]:
    """A fresh vhost of the shared broker, deleted after the test."""
    with test_broker.fresh_vhost(broker) as fresh:
        yield fresh


@pytest.fixture
def client(vhost: Vhost) -> Iterator[Client]:
    """A foreign client of the test's vhost."""
    with Client(vhost.amqp_url) as connected:
        yield connected


@pytest.fixture
def publisher(vhost: Vhost) -> Iterator[Publisher]:
    """A publisher to the test's vhost."""
    with Publisher(vhost.amqp_url) as connected:
        yield connected


@pytest.fixture
def ackline_settings(vhost: Vhost, tmp_path: Path) -> Settings:
    """Settings of one Ackline with nothing in it: its own vhost, data folder and SQLite database."""
    return settings_for(vhost.amqp_url, vhost.management_url, tmp_path / "data")


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker for one test alone, which may stop, kill and start it again on the same ports and data."""
    with test_broker.own(tmp_path / "broker") as running:
        yield running


@pytest.fixture
def own_broker_settings(own_broker: Broker, tmp_path: Path) -> Settings:
    """Settings of one Ackline on the default vhost of `own_broker`."""
    return settings_for(own_broker.amqp_url, own_broker.management_url, tmp_path / "data")


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """A PostgreSQL server: the SQLAlchemy URL of its maintenance database."""
    try:
        with postgresql.server() as url:
            yield url
    except postgresql.PostgresqlUnavailable as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def postgresql_url(postgresql_server: str) -> Iterator[str]:
    """The SQLAlchemy URL of an empty PostgreSQL database of this test's own."""
    with postgresql.fresh_database(postgresql_server) as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a Redis server, with nothing in it that matters."""
    try:
        with redis_server.server() as url:
            yield url
    except redis_server.RedisUnavailable as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def own_busy_seconds() -> Iterator[int]:
    """The seconds that a writer of SQLite waits for another one. Here it is more: a slow disk is not the question."""
    own, database.BUSY_SECONDS = database.BUSY_SECONDS, 60
    yield own
    database.BUSY_SECONDS = own


@pytest.fixture
def database_file(tmp_path: Path) -> Path:
    """Where `database_url` has its SQLite database."""
    return tmp_path / "ackline.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, database_file: Path) -> str:
    """The URL of an empty database: the test runs on each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{database_file}"
    return str(request.getfixturevalue("postgresql_url"))


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on a fresh, upgraded database of each kind."""
    database.upgrade(database_url)
    engine = database.connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def own_registry() -> Iterator[None]:
    """The test knows no contract and no consumer but `email` and those that it imports, and forgets them."""
    registries: tuple[dict[str, Any], ...] = (_contracts, _consumers)
    kept = [(registry, dict(registry)) for registry in registries]
    for registry, before in kept:
        for name, found in before.items():
            module = getattr(found, "handler", found).__module__
            is_handler = module.startswith("ackline.consumers.handlers.")
            if not module.startswith("ackline.") or (is_handler and not module.endswith(".email")):
                del registry[name]
    yield
    for registry, before in kept:
        registry.clear()
        registry.update(before)


@pytest.fixture
def smtp_sink(tmp_path: Path) -> Iterator[MailSink]:
    """A mail server of this test's own, which keeps mail and refuses whom it is told to refuse."""
    with MailSink(tmp_path / "mail") as running:
        yield running
