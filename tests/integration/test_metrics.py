"""What the gateway tells Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from ackline.infra import database
from ackline.infra.settings import Settings
from ackline.infra.tables import outbox
from tests.roles import listening, role
from tests.waiting import until

MAIL = {"to": "ada@example.test", "subject": "Hello", "body": "From a test"}
NOWHERE = "amqp://guest:guest@127.0.0.1:1/"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@contextmanager
def gateway(settings: Settings, **variables: str) -> Iterator[httpx.Client]:
    with (
        role(settings, "gateway", "--port", "0", **variables) as process,
        httpx.Client(base_url=listening(process), timeout=120, trust_env=False) as client,
    ):
        yield client
        assert process.stop() == 0


@pytest.fixture
def nowhere(tmp_path: Path) -> Settings:
    """Settings of a gateway whose broker is not there."""
    return Settings(amqp_url=NOWHERE, data_dir=tmp_path)


def scrape(client: httpx.Client) -> Samples:
    answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"ackline_gateway_{name}", frozenset(labels.items())))


def test_requests_are_counted_by_route_and_status_and_their_duration_measured(ackline_settings: Settings) -> None:
    with gateway(ackline_settings) as client:
        for _ in range(3):
            assert client.post("/v1/messages/email.send", json=MAIL).status_code == 202
        assert client.post("/v1/messages/email.send", json={}).status_code == 422
        assert client.get("/v1/types").status_code == 200
        found = scrape(client)
        publish = {"method": "POST", "route": "/v1/messages/{type}"}
        assert value(found, "requests_total", **publish, status="202") == 3
        assert value(found, "requests_total", **publish, status="422") == 1
        assert value(found, "requests_total", method="GET", route="/v1/types", status="200") == 1
        assert value(found, "request_seconds_count", **publish) == 4
        assert value(found, "request_seconds_bucket", **publish, le="+Inf") == 4
        total = value(found, "request_seconds_sum", **publish)
        assert total is not None
        assert total > 0
        buckets = [
            count
            for (name, labels), count in found.items()
            if name.endswith("bucket") and set(publish.items()) <= labels
        ]
        assert buckets == sorted(buckets)
        assert value(found, "requests_in_flight") == 1, "the scrape itself"
        assert found["process_resident_memory_bytes", frozenset()] > 1_000_000


def test_no_client_can_make_new_time_series(nowhere: Settings) -> None:
    with gateway(nowhere) as client:
        before = len(scrape(client))
        for number in range(30):
            assert client.get(f"/nothing/{number}").status_code == 404
            assert client.post(f"/v1/messages/no.such.{number}", json={}).status_code == 404
            assert client.request(("PROPFIND", "REPORT", "MKCOL")[number % 3], "/nothing").status_code == 404
        found = scrape(client)
        assert value(found, "requests_total", method="GET", route="(other)", status="404") == 30
        assert value(found, "requests_total", method="(other)", route="(other)", status="404") == 30
        assert value(found, "requests_total", method="POST", route="/v1/messages/{type}", status="404") == 30
        assert len(found) - before < 100


def test_accepted_messages_are_counted_by_type_and_state(ackline_settings: Settings) -> None:
    with gateway(ackline_settings) as client:
        until(lambda: value(scrape(client), "broker_up") == 1, what="the gateway's connection")
        found = scrape(client)
        until(lambda: client.post("/v1/messages/email.send", json=MAIL).json()["state"] == "waiting", what="the broker")
        assert client.post("/v1/messages/email.send?delay=1h", json=MAIL).json()["state"] == "accepted"
        batch = [{"type": "email.send", "data": MAIL}] * 5
        assert client.post("/v1/messages", json=batch).status_code == 202
        found = scrape(client)
        waiting = value(found, "messages_accepted_total", type="email.send", state="waiting") or 0
        accepted = value(found, "messages_accepted_total", type="email.send", state="accepted") or 0
        assert waiting >= 1
        assert accepted >= 1
        [published] = [
            v
            for (name, labels), v in found.items()
            if name == "ackline_gateway_requests_total" and ("route", "/v1/messages/{type}") in labels
        ]
        assert waiting + accepted == published + 5


def test_what_waits_while_the_broker_is_away_is_told(nowhere: Settings) -> None:
    with gateway(nowhere) as client:
        for _ in range(4):
            assert client.post("/v1/messages/email.send", json=MAIL).json()["state"] == "accepted"
        until(lambda: value(scrape(client), "database_up") == 1, what="an answer of the database in time")
        found = scrape(client)
        assert value(found, "messages_accepted_total", type="email.send", state="accepted") == 4
        assert value(found, "broker_up") == 0
        until(lambda: value(scrape(client), "outbox_depth") == 4, what="the depth, in time")


def test_a_database_that_does_not_answer_holds_up_no_scrape(postgresql_url: str, tmp_path: Path) -> None:
    settings = Settings(amqp_url=NOWHERE, data_dir=tmp_path, database_url=postgresql_url, grace_seconds=1)
    with ExitStack() as stack:
        engine = database.connect(postgresql_url)
        stack.callback(engine.dispose)
        client = stack.enter_context(gateway(settings))
        with engine.begin() as connection:
            connection.execute(text(f"LOCK TABLE {outbox.name} IN ACCESS EXCLUSIVE MODE"))
            for _ in range(3):  # one look is under way, however many ask
                found = scrape(client)
                assert value(found, "database_up") == 0
                assert value(found, "outbox_depth") is None
            waiting = f"SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = '{outbox.name}'::regclass"
            assert connection.execute(text(waiting)).scalar_one() <= 2
        until(lambda: value(scrape(client), "database_up") == 1, what="the database")


@pytest.mark.parametrize(("is_open", "status"), [("false", 401), ("true", 200)])
def test_with_keys_metrics_are_for_their_holders_unless_they_are_open(
    nowhere: Settings, is_open: str, status: int
) -> None:
    with gateway(nowhere, ACKLINE_API_KEYS="the-key", ACKLINE_METRICS_OPEN=is_open) as client:
        assert client.get("/metrics").status_code == status
        assert client.get("/metrics", headers={"Authorization": "Bearer the-key"}).status_code == 200
        assert client.get("/v1/types").status_code == 401
