"""The worker that the fixture `ackline_worker` starts for the tests of those who write handlers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import BaseModel

from ackline.consumers import Context, Reject
from ackline.consumers.inbox import inbox
from ackline.consumers.testing import NotHandled, RunningWorker, workers
from ackline.infra.database import DatabaseUnavailable
from ackline.infra.errors import AcklineError, ConfigurationError
from ackline.infra.running_broker import Broker, credentials
from ackline.infra.settings import settings
from ackline.producer import message
from tests.amqp import Client
from tests.broker import Vhost
from tests.working import consumer_of

#: Seconds that a noisy machine may need.
PATIENCE = 90.0


@message("test.testing.placed")
class Placed(BaseModel):
    number: int = 1


@message("test.testing.paid")
class Paid(BaseModel):
    number: int = 1


def test_it_waits_until_all_is_handled_retries_included(vhost: Vhost) -> None:
    lock, tries = threading.Lock(), list[tuple[str, int]]()

    def handler(placed: Placed, ctx: Context) -> None:
        with lock:
            tries.append((ctx.consumer, ctx.attempt))
        if ctx.consumer == "second" and ctx.attempt == 1:
            raise ConnectionError
        ctx.publish(Paid(number=placed.number))

    consumers = [consumer_of(name, handler, Placed) for name in ("first", "second")]
    with RunningWorker(vhost.amqp_url, consumers, 8).running() as worker:
        for number in range(5):
            worker.publish(Placed(number=number))
        worker.wait_until_handled(PATIENCE)
        assert sorted(tries) == [("first", 1)] * 5 + [("second", 1)] * 5 + [("second", 2)] * 5
        with Client(worker.url) as client:
            assert client.ready("ackline.unrouted") == 10, "what handlers publish nobody takes here"


def test_a_message_that_is_published_twice_is_waited_for_twice(vhost: Vhost) -> None:
    numbers: list[int] = []

    def handler(placed: Placed) -> None:
        numbers.append(placed.number)

    with RunningWorker(vhost.amqp_url, [consumer_of("billing", handler, Placed)], 1).running() as worker:
        for _ in range(2):
            worker.publish(Placed(number=7), message_id="m-1")
        worker.wait_until_handled(PATIENCE)
        assert numbers == [7, 7]
        worker.publish(Placed(number=8), message_id="m-1")
        worker.wait_until_handled(PATIENCE)
        assert numbers == [7, 7, 8]


def test_bytes_come_as_they_are_with_what_was_given(vhost: Vhost) -> None:
    seen: list[tuple[bytes, str | None, str | None, object]] = []

    def handler(body: bytes, ctx: Context) -> None:
        seen.append((body, ctx.id, ctx.correlation_id, ctx.headers.get("x")))

    scans = consumer_of("scans", handler, types={"scan.#": None}, takes_bytes=True)
    with RunningWorker(vhost.amqp_url, [scans], 1).running() as worker:
        id_ = worker.publish(
            b"\xff", message_type="scan.done", message_id="m-1", correlation_id="c-1", headers={"x": "y"}
        )
        worker.wait_until_handled(PATIENCE)
        with pytest.raises(ConfigurationError, match=r"None of scans takes order\.placed"):
            worker.publish(b"", message_type="order.placed")
        with pytest.raises(ConfigurationError, match="cannot be waited for"):
            worker.publish(b"", message_type="scan.done", message_id="")
    assert (id_, seen) == ("m-1", [(b"\xff", "m-1", "c-1", "y")])


def test_what_goes_to_review_is_said(vhost: Vhost) -> None:
    def handler(placed: Placed) -> None:
        raise Reject("no such account")

    with RunningWorker(vhost.amqp_url, [consumer_of("billing", handler, Placed)], 1).running() as worker:
        worker.publish(Placed(), message_id="m-1")
        with pytest.raises(NotHandled, match=r"^In review: test\.testing\.placed m-1 for billing: no such account$"):
            worker.wait_until_handled(PATIENCE)


def test_what_is_not_handled_in_time_is_said(vhost: Vhost) -> None:
    go_on = threading.Event()

    def handler(placed: Placed) -> None:
        go_on.wait(PATIENCE)

    with RunningWorker(vhost.amqp_url, [consumer_of("billing", handler, Placed)], 1).running() as worker:
        worker.publish(Placed(), message_id="m-1")
        with pytest.raises(NotHandled, match=r"^Not handled within 0 s: test\.testing\.placed m-1 for billing: "):
            worker.wait_until_handled(0)
        go_on.set()
        worker.wait_until_handled(PATIENCE)


def test_what_ended_the_worker_is_raised(vhost: Vhost) -> None:
    def handler(placed: Placed) -> None: ...

    nowhere = inbox("postgresql://nobody@127.0.0.1:1/none")
    running = RunningWorker(vhost.amqp_url, [consumer_of("billing", handler, Placed, inbox=nowhere)], 1).running()

    def wait() -> None:
        with running as worker:
            worker.publish(Placed())
            worker.wait_until_handled(PATIENCE)
            pytest.fail("nobody handled it")

    with pytest.raises(DatabaseUnavailable):
        wait()


# --- the vhost, and the fixture --------------------------------------------------------------------------------------


@pytest.fixture
def _configured(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ACKLINE_AMQP_URL", broker.amqp_url)
    monkeypatch.setenv("ACKLINE_MANAGEMENT_URL", str(broker.management_url))
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.mark.usefixtures("_configured")
def test_workers_have_a_vhost_of_their_own_which_is_deleted_afterwards(broker: Broker) -> None:
    def handler(placed: Placed) -> None: ...

    with workers() as start:
        with start(consumer_of("billing", handler, Placed), concurrency=1) as worker:
            worker.publish(Placed())
            worker.wait_until_handled(PATIENCE)
        assert urlsplit(worker.url).path != urlsplit(broker.amqp_url).path
    name = urlsplit(worker.url).path[1:]
    with httpx.Client(auth=credentials(broker.amqp_url), timeout=60, trust_env=False) as api:
        assert api.get(f"{broker.management_url}/api/vhosts/{name}").status_code == 404


@pytest.mark.usefixtures("_configured")
def test_without_the_right_to_make_a_vhost_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACKLINE_AMQP_URL", "amqp://nobody:wrong@127.0.0.1/")
    settings.cache_clear()
    with pytest.raises(AcklineError, match="The user of ACKLINE_AMQP_URL needs the tag administrator"), workers():
        pass


def _pytest(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "pytest.ini").write_text("[pytest]\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "ACKLINE_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", "-q", "-rs"],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_the_fixture_is_skipped_where_no_broker_is_configured(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(ackline_worker): ...\n")
    done = _pytest(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout
    assert "No broker is configured: set ACKLINE_AMQP_URL" in done.stdout
