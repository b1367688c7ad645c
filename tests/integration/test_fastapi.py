"""A publisher in somebody's own FastAPI app: as it is documented, and where it is composed with other things."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from pydantic import BaseModel

from ackline.infra.errors import ConfigurationError
from ackline.infra.link import BrokerUnreachable
from ackline.infra.names import UNROUTED
from ackline.infra.settings import Settings
from ackline.infra.topology import declare
from ackline.producer import Publisher, PublisherClosed, Receipt, message
from ackline.producer.fastapi import PublisherDep, ackline_lifespan, current_publisher
from ackline.producer.testing import FakePublisher
from tests.documented import write_files
from tests.integration.test_publisher import taken
from tests.roles import environment
from tests.waiting import until

NOWHERE = "amqp://guest:guest@127.0.0.1:1/"
#: Seconds that a message may wait for its confirm on a busy machine.
PATIENT = 90.0


@message("test.fastapi")
class Number(BaseModel):
    number: int


def app_with(**options: Any) -> FastAPI:
    app = FastAPI(lifespan=ackline_lifespan(**options))

    @app.post("/async")
    async def _(number: Number, publisher: PublisherDep) -> str:
        return (await publisher.apublish(number, timeout=PATIENT)).message_id

    @app.post("/sync")
    def _(number: Number, publisher: PublisherDep) -> str:
        return publisher.publish(number, timeout=PATIENT).message_id

    return app


def numbers(settings: Settings) -> list[int]:
    """What was published: nobody consumes it."""
    return sorted(json.loads(body)["number"] for _, body in taken(settings.broker, UNROUTED))


@pytest.fixture
def declared(ackline_settings: Settings) -> Settings:
    declare(ackline_settings.broker)
    return ackline_settings


# --- as it is documented --------------------------------------------------------------------------------


@contextmanager
def serving(folder: Path, settings: Settings, app: str) -> Iterator[httpx.Client]:
    """An app under uvicorn, as a process of its own."""
    log = folder / "uvicorn.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", app, "--port", "0"],
            cwd=folder,
            env=environment(settings),
            stdout=output,
            stderr=output,
        )
    try:
        found = until(lambda: re.search(r"running on (http://\S+) ", log.read_text()), what="uvicorn")
        with httpx.Client(base_url=found[1], timeout=PATIENT, trust_env=False) as client:
            yield client
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENT)
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def test_the_documented_app_publishes_to_rabbitmq_and_counts_what_may_be_lost(
    declared: Settings, tmp_path: Path
) -> None:
    write_files("publishing.md", "FastAPI", tmp_path)
    order = {"order_id": "A-1", "total": 9.5}
    with serving(tmp_path, declared, "shop_api:app") as client:
        answer = until(lambda: _accepted(client.post("/orders", json=order)), what="the order to be accepted")
        assert client.get("/products/lamp").json() == {"product": "lamp"}
        assert client.post("/orders", json={"order_id": "A-2"}).status_code == 422
    found = {properties.message_id: json.loads(body) for properties, body in taken(declared.broker, UNROUTED)}
    assert found[answer["message_id"]] == order


def _accepted(answer: httpx.Response) -> Any:
    assert answer.status_code in (202, 503), answer.text
    return answer.json() if answer.status_code == 202 else None


def test_the_documented_background_task_runs_after_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files("publishing.md", "FastAPI", tmp_path)
    program = """
from fastapi.testclient import TestClient
from shop_api import app, views
client = TestClient(app)
for _ in range(2):
    assert client.get("/products/lamp").json() == {"product": "lamp"}
assert views == {"lamp": 2}, views
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_documented_tests_pass_without_a_broker(tmp_path: Path) -> None:
    write_files("publishing.md", "FastAPI", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "ACKLINE_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


# --- composed -------------------------------------------------------------------------------------------


def test_routes_publish_whether_they_are_async_or_not(declared: Settings) -> None:
    with TestClient(app_with(with_settings=declared)) as client:
        for number, path in enumerate(("/async", "/sync")):
            assert client.post(path, json={"number": number}).status_code == 200
    assert numbers(declared) == [0, 1]


def test_what_is_in_flight_when_the_app_ends_is_confirmed_first(declared: Settings) -> None:
    app = FastAPI(lifespan=ackline_lifespan(with_settings=declared))
    submitted: list[Future[Receipt]] = []
    used: list[Publisher] = []

    @app.post("/submit")
    async def _(publisher: PublisherDep) -> None:
        used.append(publisher)
        submitted.extend(publisher.submit(Number(number=number), timeout=PATIENT) for number in range(500))

    with TestClient(app) as client:
        assert client.post("/submit").status_code == 200
    assert all(future.done() for future in submitted)
    assert numbers(declared) == list(range(500))
    with pytest.raises(PublisherClosed):
        used[0].publish(Number(number=500))


def test_each_app_has_its_own_publisher_and_those_mounted_in_it_have_that_one() -> None:
    settings = Settings(amqp_url=NOWHERE)
    seen: dict[str, Any] = {}

    def app_that_looks(name: str, **options: Any) -> FastAPI:
        app = FastAPI(**options)

        @app.get("/look")
        async def _(publisher: PublisherDep) -> None:
            seen[name] = publisher

        @app.websocket("/socket")
        async def _(socket: WebSocket, publisher: PublisherDep) -> None:
            await socket.accept()
            seen[f"{name} socket"] = publisher
            await socket.close()

        return app

    first, second = (
        app_that_looks(name, lifespan=ackline_lifespan(with_settings=settings)) for name in ("first", "second")
    )
    first.mount("/mounted", app_that_looks("mounted"))
    with TestClient(first) as one, TestClient(second) as two:
        for client, path in ((one, "/look"), (one, "/mounted/look"), (two, "/look")):
            assert client.get(path).status_code == 200
        with one.websocket_connect("/socket"):
            pass
    assert seen["first"] is seen["mounted"] is seen["first socket"]
    assert seen["first"] is not seen["second"]


def test_a_lifespan_of_ones_own_runs_inside_and_keeps_its_state() -> None:
    events = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        events.append("began")
        yield {"greeting": "hello"}
        events.append("ended")

    app = FastAPI(lifespan=ackline_lifespan(own, with_settings=Settings(amqp_url=NOWHERE)))

    @app.get("/")
    async def _(request: Request, publisher: PublisherDep) -> str:
        events.append(f"served, closed: {publisher._closed}")
        return str(request.state.greeting)

    with TestClient(app) as client:
        assert client.get("/").json() == "hello"
    assert events == ["began", "served, closed: False", "ended"]


def test_it_starts_without_a_broker_unless_it_is_told_to_wait(ackline_settings: Settings) -> None:
    nowhere = Settings(amqp_url=NOWHERE)
    with TestClient(app_with(with_settings=nowhere)):
        pass
    with (
        pytest.raises(BrokerUnreachable, match=r"127\.0\.0\.1:1"),
        TestClient(app_with(with_settings=nowhere, wait=0.2)),
    ):
        pytest.fail("it served")
    with TestClient(app_with(with_settings=ackline_settings, wait=PATIENT)) as client:
        assert client.get("/docs").status_code == 200


def test_an_app_without_a_publisher_says_how_to_get_one() -> None:
    app = FastAPI()

    @app.get("/")
    async def _(publisher: PublisherDep) -> None:
        pytest.fail("it was called")

    with TestClient(app) as client, pytest.raises(ConfigurationError, match="lifespan=ackline_lifespan"):
        client.get("/")


def test_an_override_takes_the_place_of_the_broker_and_nothing_is_configured() -> None:
    app = app_with(with_settings=Settings(data_dir=Path("/nonexistent")))
    with pytest.raises(ConfigurationError, match="No broker is configured"), TestClient(app):
        pytest.fail("it served")
    fake = FakePublisher()
    app.dependency_overrides[current_publisher] = lambda: fake
    with TestClient(app) as client:
        for number, path in enumerate(("/async", "/sync")):
            assert client.post(path, json={"number": number}).status_code == 200
    assert fake.of(Number) == [Number(number=0), Number(number=1)]
