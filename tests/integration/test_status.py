"""The status of messages over HTTP: from right after the 202 until it is final, asked for, and watched."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text

from ackline.infra import database, wire
from ackline.infra.database import DatabaseUnavailable
from ackline.infra.names import MESSAGES
from ackline.infra.running_broker import Broker
from ackline.infra.settings import Settings
from ackline.infra.tables import outbox
from tests.amqp import Client
from tests.broker import fresh_vhost, settings_for
from tests.doors import NEVER, gateway, problem
from tests.review import Review
from tests.roles import RoleProcess, listening, role, run
from tests.tracked import FOLDER
from tests.waiting import until

APP = "tests.tracked"


@dataclass(frozen=True)
class Stack:
    """A gateway with a worker and a reviewer, and what a test needs of them."""

    settings: Settings
    client: httpx.Client
    folder: Path

    def publish(self, type_: str = "test.tracked", **payload: Any) -> dict[str, Any]:
        """Publish over HTTP; what the 202 says."""
        answer = self.client.post(f"/v1/messages/{type_}", json=payload)
        assert answer.status_code == 202, answer.text
        accepted: dict[str, Any] = answer.json()
        return accepted

    def status(self, accepted: dict[str, Any]) -> dict[str, Any]:
        """What its status_url answers."""
        answer = self.client.get(accepted["status_url"])
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        assert (found["id"], found["type"]) == (accepted["id"], accepted["type"])
        return found

    def reaches(self, accepted: dict[str, Any], state: str) -> dict[str, Any]:
        """The status, as soon as the message is in *state*."""

        def there() -> dict[str, Any] | None:
            found = self.status(accepted)
            return found if found["state"] == state else None

        return until(there, what=f"{accepted['id']} to be {state!r}")

    def dead_letter(self, accepted: dict[str, Any]) -> int:
        """The number of the only dead letter of the message, as soon as it is there."""
        engine = database.connect(self.settings.database)
        store = Review(engine)

        def there() -> int | None:
            return next((row.id for row in store.page(limit=1000) if row.message_id == accepted["id"]), None)

        try:
            return until(there, what="the dead letter")
        finally:
            engine.dispose()

    def ackline(self, *arguments: str) -> str:
        """Run a command that succeeds; what it prints."""
        done = run(self.settings, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def stack(settings: Settings, folder: Path, *roles: str, **variables: str) -> Iterator[Stack]:
    """A gateway, and *roles* beside it; the queues are there from the beginning."""
    configured = settings.model_copy(update={"app": (APP,)})
    folder.mkdir(exist_ok=True)
    applied = run(configured, "topology", "apply")
    assert applied.returncode == 0, applied.stderr
    with gateway(configured, **variables) as client:
        running = Stack(configured, client, folder)
        with started(running, roles):
            yield running


@contextmanager
def started(running: Stack, roles: tuple[str, ...]) -> Iterator[None]:
    """Roles beside the gateway, while the block runs."""
    if not roles:
        yield
        return
    with role(running.settings, roles[0], **{FOLDER: str(running.folder)}), started(running, roles[1:]):
        yield


@pytest.fixture(scope="module")
def shared(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for all tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("status")
    with fresh_vhost(broker) as vhost:
        settings = settings_for(vhost.amqp_url, vhost.management_url, folder / "data")
        with stack(settings, folder / "files", "worker", "reviewer") as running:
            yield running


def only(status: dict[str, Any]) -> dict[str, Any]:
    """The only delivery."""
    (delivery,) = status["deliveries"]
    assert isinstance(delivery, dict)
    return delivery


def states(status: dict[str, Any]) -> dict[str | None, str]:
    """The state of each delivery, by consumer."""
    return {delivery["consumer"]: delivery["state"] for delivery in status["deliveries"]}


# --- a message's life -------------------------------------------------------------------------------------------------


def test_right_after_the_202_a_status_is_waiting_and_never_404_though_nobody_handles_or_reviews(
    ackline_settings: Settings, tmp_path: Path
) -> None:
    with stack(ackline_settings, tmp_path / "files") as running:
        for _ in range(20):
            status = running.status(running.publish())
            assert (status["state"], status["is_final"]) == ("waiting", False)
            assert only(status) == {
                "consumer": "tracked",
                "state": "waiting",
                "attempts": 0,
                "first_at": None,
                "changed_at": None,
                "due_at": None,
                "error": None,
                "progress": None,
                "progress_text": None,
            }
        both = running.publish("test.tracked.both")
        assert states(running.status(both)) == {"tracked-first": "waiting", "tracked-second": "waiting"}
        with started(running, ("worker",)):  # but no reviewer: what the worker reports waits
            with Client(ackline_settings.broker) as client:
                until(lambda: client.ready("ackline.outcomes"), what="the reports")
            assert running.status(both)["state"] == "waiting"
        with started(running, ("reviewer",)):
            assert running.reaches(both, "handled")["is_final"]


def test_a_handler_that_tells_how_far_it_is_shows_that_until_it_ends(shared: Stack) -> None:
    accepted = shared.publish(task="tell", file="told")

    def told() -> bool:
        delivery = only(shared.status(accepted))
        return (delivery["state"], delivery["progress"], delivery["progress_text"]) == (
            *("being handled", 0.4),
            "4 of 10 rows",
        )

    until(told, what="the progress")
    (shared.folder / "told").touch()
    delivery = only(shared.reaches(accepted, "handled"))
    assert (delivery["progress"], delivery["progress_text"]) == (None, None)


def test_a_message_that_is_handled_is_final(shared: Stack) -> None:
    before = wire.now()
    status = shared.reaches(shared.publish(), "handled")
    delivery = only(status)
    assert status["is_final"]
    assert (delivery["consumer"], delivery["attempts"], delivery["error"]) == ("tracked", 1, None)
    first, changed = (datetime.fromisoformat(delivery[name]) for name in ("first_at", "changed_at"))
    assert before - timedelta(seconds=1) <= first <= changed <= wire.now()


def test_a_handler_that_goes_on_is_seen(shared: Stack) -> None:
    accepted = shared.publish(task="wait for the gate", file="gate")
    status = shared.reaches(accepted, "being handled")
    assert (only(status)["attempts"], status["is_final"]) == (1, False)
    (shared.folder / "gate").touch()
    assert only(shared.reaches(accepted, "handled"))["attempts"] == 1


def test_a_retry_is_seen_with_its_error_and_its_time(shared: Stack) -> None:
    before = wire.now()
    delivery = only(shared.reaches(shared.publish(task="wait for an hour"), "waiting for a retry"))
    assert (delivery["attempts"], delivery["error"]) == (1, "RetryLater: the shop is closed")
    assert datetime.fromisoformat(delivery["due_at"]) >= before + timedelta(hours=1)


def test_a_message_that_is_handled_by_a_retry(shared: Stack) -> None:
    delivery = only(shared.reaches(shared.publish(task="retry once"), "handled"))
    assert (delivery["attempts"], delivery["error"], delivery["due_at"]) == (2, None, None)


def test_a_dead_letter_that_is_discarded_is_final(shared: Stack) -> None:
    accepted = shared.publish(task="fail until repaired", file="never")
    status = shared.reaches(accepted, "in review")
    assert not status["is_final"]
    assert (only(status)["attempts"], only(status)["error"]) == (1, "it is broken")
    shared.ackline("dlq", "discard", str(shared.dead_letter(accepted)), "--reason", "nobody needs it")
    status = shared.status(accepted)
    assert (status["state"], status["is_final"]) == ("discarded", True)


def test_a_dead_letter_that_fails_again_and_is_handled_at_last(shared: Stack) -> None:
    accepted = shared.publish(task="fail until repaired", file="repaired")
    number = str(shared.dead_letter(accepted))
    assert run(shared.settings, "dlq", "retry", number).returncode == 1
    status = shared.status(accepted)
    assert (status["state"], only(status)["attempts"]) == ("in review", 2)
    (shared.folder / "repaired").touch()
    assert "handled by tracked" in shared.ackline("dlq", "retry", number)
    status = shared.status(accepted)  # at once: what answers the redrive and what tells the status is one commit
    assert (status["state"], status["is_final"]) == ("handled", True)
    assert (only(status)["attempts"], only(status)["error"]) == (3, None)


def test_a_message_for_two_consumers_is_final_when_both_are(shared: Stack) -> None:
    accepted = shared.publish("test.tracked.both", task="fail until repaired", file="both")
    status = shared.reaches(accepted, "in review")
    shared.dead_letter(accepted)
    until(lambda: states(shared.status(accepted))["tracked-first"] == "handled", what="the first consumer")
    assert not shared.status(accepted)["is_final"]
    (shared.folder / "both").touch()
    shared.ackline("dlq", "retry", accepted["id"])
    status = shared.status(accepted)
    assert states(status) == {"tracked-first": "handled", "tracked-second": "handled"}
    assert (status["state"], status["is_final"]) == ("handled", True)


def test_a_message_that_nobody_takes_is_in_review_with_the_reason(shared: Stack) -> None:
    delivery = only(shared.reaches(shared.publish("test.tracked.nobody"), "in review"))
    assert delivery["consumer"] is None
    assert delivery["error"] == "No consumer takes messages of type 'test.tracked.nobody'."


def test_anybody_may_have_a_message_tracked_that_is_not_by_its_contract(shared: Stack) -> None:
    with Client(shared.settings.broker) as client:
        for message_id, headers in (("foreign-1", {wire.TRACK: True}), ("foreign-2", {})):
            client.publish(MESSAGES, "test.untracked", b"{}", message_id=message_id, headers=headers)

    def handled() -> dict[str, Any] | None:
        known = _known(shared.client, "foreign-1")
        return known if known is not None and known["state"] == "handled" else None

    assert until(handled, what="the foreign message to be handled")["type"] == "test.untracked"
    with Client(shared.settings.broker) as client:
        until(lambda: client.ready("tracked") == 0 and client.ready("ackline.outcomes") == 0, what="empty queues")
    problem(shared.client.get("/v1/messages/foreign-2"), 404)


def _known(client: httpx.Client, message_id: str) -> dict[str, Any] | None:
    answer = client.get(f"/v1/messages/{message_id}")
    return answer.json() if answer.status_code == 200 else None


# --- who may know what ------------------------------------------------------------------------------------------------


def test_without_the_proof_what_nobody_has_reported_is_unknown(shared: Stack) -> None:
    found = problem(shared.client.get(f"/v1/messages/{wire.uuid7()}"), 404)
    assert "ask with its status_url" in found["detail"]
    for strange in ("%00", "%ff", "a%20b", "x" * 300, "é"):
        problem(shared.client.get(f"/v1/messages/{strange}"), 404)
        problem(shared.client.get(f"/v1/messages/{strange}/events"), 404)
        problem(shared.client.delete(f"/v1/messages/{strange}"), 404)


@pytest.mark.parametrize("path", ["", "/events"])
def test_a_signature_proves_one_message_of_one_type_and_no_other(shared: Stack, path: str) -> None:
    url = httpx.URL(shared.publish()["status_url"])
    signature = url.params["signature"]
    address = f"{url.path}{path}"
    wrong = [
        (address, {"type": "test.tracked", "signature": signature[:-1]}),
        (address, {"type": "test.tracked", "signature": "é"}),
        (address, {"type": "test.tracked", "signature": ""}),
        (address, {"type": "test.untracked", "signature": signature}),
        (address, {"signature": signature}),
        (f"/v1/messages/{wire.uuid7()}{path}", {"type": "test.tracked", "signature": signature}),
    ]
    for where, parameters in wrong:
        found = problem(shared.client.get(where, params=parameters), 403)
        assert found["detail"] == ("The signature is not the one of this message: use its status_url as it was given.")


def test_a_proof_needs_no_key_and_a_key_no_proof_and_with_neither_nothing_is_told(
    ackline_settings: Settings, tmp_path: Path
) -> None:
    with stack(ackline_settings, tmp_path / "files", "worker", "reviewer", ACKLINE_API_KEYS="the-key") as running:
        limited = running.ackline("keys", "create", "others", "--type", "test.untracked").strip()
        with_key = {"Authorization": "Bearer the-key"}
        with_limited = {"Authorization": f"Bearer {limited}"}
        accepted = running.client.post("/v1/messages/test.tracked", json={}, headers=with_key).json()
        plain = f"/v1/messages/{accepted['id']}"
        assert running.reaches(accepted, "handled")["is_final"]
        for path in (plain, f"{plain}/events"):
            problem(running.client.get(path), 401)
        problem(running.client.delete(plain), 401)
        problem(running.client.delete(accepted["status_url"]), 401)
        assert running.client.get(plain, headers=with_key).json() == running.status(accepted)
        until(lambda: running.client.get("/v1/types", headers=with_limited).status_code == 200, what="the new key")
        for path in (plain, f"{plain}/events"):
            problem(running.client.get(path, headers=with_limited), 404)
        problem(running.client.delete(plain, headers=with_limited), 404)
        problem(running.client.delete(accepted["status_url"], headers=with_limited), 403)


def test_a_status_that_was_forgotten_is_not_waiting(ackline_settings: Settings, tmp_path: Path) -> None:
    # Kept for some milliseconds only: the id tells that it is older.
    with stack(ackline_settings, tmp_path / "files", ACKLINE_STATUS_KEEP_DAYS="0.0000001") as running:
        accepted = running.publish()
        found = until(lambda: _gone(running.client, accepted["status_url"]), what="the status to be old")
        assert found["detail"].startswith(f"The message {accepted['id']!r} was accepted, and its status is forgotten")


def _gone(client: httpx.Client, url: str) -> dict[str, Any] | None:
    answer = client.get(url)
    return problem(answer, 404) if answer.status_code != 200 else None


def test_the_reviewer_forgets_what_has_not_changed_for_long(ackline_settings: Settings, tmp_path: Path) -> None:
    with stack(ackline_settings, tmp_path / "files", "worker", "reviewer") as running:
        accepted = running.publish()
        running.reaches(accepted, "handled")
        assert _known(running.client, accepted["id"])
        with role(running.settings, "reviewer", ACKLINE_STATUS_KEEP_DAYS="0.0000001"):
            until(lambda: _known(running.client, accepted["id"]) is None, what="the status to be forgotten")


def test_without_its_database_the_gateway_answers_503_and_goes_on_afterwards(shared: Stack) -> None:
    accepted = shared.publish()
    shared.reaches(accepted, "handled")
    with database_away(shared):
        for method, path in (("GET", accepted["status_url"]), ("GET", f"/v1/messages/{accepted['id']}/events")):
            answer = shared.client.request(method, path)
            assert problem(answer, 503)["detail"].startswith("The database does not answer.")
            assert int(answer.headers["retry-after"]) > 0
    assert shared.status(accepted)["state"] == "handled"


@contextmanager
def database_away(running: Stack) -> Iterator[None]:
    """A database that does not work while the block runs: a table is not where it was."""
    engine = database.connect(running.settings.database)
    try:
        until(lambda: _renamed(engine, "deliveries", "elsewhere"), what="the table's lock")
        try:
            yield
        finally:
            until(lambda: _renamed(engine, "elsewhere", "deliveries"), what="the table's lock")
    finally:
        engine.dispose()


def _renamed(engine: Engine, old: str, new: str) -> bool:
    try:
        with database.writing(engine) as connection:
            connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))
    except DatabaseUnavailable:  # somebody writes
        return False
    return True


# --- calling off ------------------------------------------------------------------------------------------------------


def test_a_message_that_is_not_due_yet_can_be_cancelled(shared: Stack) -> None:
    answer = shared.client.post("/v1/messages/test.tracked?delay=1h", json={})
    accepted = answer.json()
    status = shared.status(accepted)
    assert (status["state"], status["is_final"], status["deliveries"]) == ("scheduled", False, [])
    assert datetime.fromisoformat(status["due_at"]) > wire.now()
    for _ in range(2):  # and again: it is cancelled
        answer = shared.client.delete(f"/v1/messages/{accepted['id']}")
        assert answer.status_code == 200
        assert (answer.json()["state"], answer.json()["is_final"]) == ("cancelled", True)
    assert shared.status(accepted) == answer.json()


def test_it_is_too_late_to_cancel_what_was_sent(shared: Stack) -> None:
    accepted = shared.publish()
    shared.reaches(accepted, "handled")
    for path in (f"/v1/messages/{accepted['id']}", accepted["status_url"]):
        found = problem(shared.client.delete(path), 409)
        assert found["detail"] == (
            f"The message '{accepted['id']}' is handled: only one that is scheduled, and not due yet, can be cancelled."
        )


# --- watching ---------------------------------------------------------------------------------------------------------


class Events:
    """A stream of server-sent events, read on a thread of its own as an EventSource reads it."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        parsed = httpx.URL(url)
        self._url = parsed.copy_with(path=f"{parsed.path}/events")
        self._base = client.base_url
        self.seen: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.retry: str | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with httpx.stream("GET", self._base.join(self._url), timeout=NEVER, trust_env=False) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            event: dict[str, str] = {}
            for line in stream.iter_lines():
                name, _, value = line.partition(": ")
                if name == "retry":
                    self.retry = value
                elif name:  # else a comment, which keeps a quiet stream open
                    event[name] = value
                elif not line and event:
                    assert event["event"] == "status"
                    self.ids.append(event["id"])
                    self.seen.append(json.loads(event["data"]))
                    event = {}

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first event that meets *condition*."""
        return until(lambda: next(filter(condition, self.seen), None), what="an event")

    def ended(self) -> list[str]:
        """The states that were told, once the stream has ended."""
        self._thread.join(NEVER)
        assert not self._thread.is_alive(), "the stream did not end"
        return [status["state"] for status in self.seen]


def test_a_message_is_watched_until_it_is_final(ackline_settings: Settings, tmp_path: Path) -> None:
    with stack(ackline_settings, tmp_path / "files", "reviewer") as running:
        accepted = running.publish(task="wait for the gate", file="gate")
        events = Events(running.client, accepted["status_url"])
        events.until(lambda status: bool(status["state"] == "waiting"))
        with started(running, ("worker",)):
            events.until(lambda status: bool(status["state"] == "being handled"))
            (running.folder / "gate").touch()
            assert events.ended() == ["waiting", "being handled", "handled"]
        assert [status["is_final"] for status in events.seen] == [False, False, True]
        assert events.seen[-1] == running.status(accepted)
        assert events.retry == "2000"
        assert len(set(events.ids)) == 3
        url = httpx.URL(accepted["status_url"])
        again = url.copy_with(path=f"{url.path}/events")
        # A browser comes again with the last id that it saw, until it is told that there is no more.
        assert running.client.get(again, headers={"Last-Event-ID": events.ids[-1]}).status_code == 204
        late = running.client.get(again, headers={"Last-Event-ID": events.ids[0]})
        assert late.text.count("event: status") == 1


def test_a_scheduled_message_is_watched_through_the_outbox(shared: Stack) -> None:
    accepted = shared.client.post("/v1/messages/test.tracked?delay=1h", json={}).json()
    events = Events(shared.client, accepted["status_url"])
    events.until(lambda status: bool(status["state"] == "scheduled"))
    with database.opened(shared.settings.database) as engine, database.writing(engine) as connection:
        hour_over = outbox.update().where(outbox.c.message_id == accepted["id"])
        connection.execute(hour_over.values(due_at=wire.now()))
    with started(shared, ("relay",)):
        told = events.ended()
    assert (told[0], told[-1]) == ("scheduled", "handled")


def test_a_stream_goes_on_when_the_database_was_away(shared: Stack) -> None:
    accepted = shared.publish(task="wait for the gate", file="outage")
    events = Events(shared.client, accepted["status_url"])
    events.until(lambda status: bool(status["state"] == "being handled"))
    with database_away(shared):
        (shared.folder / "outage").touch()
        until(lambda: shared.client.get(accepted["status_url"]).status_code == 503, what="the outage to be noticed")
    assert events.ended()[-1] == "handled"


def test_a_gateway_that_stops_ends_its_streams(ackline_settings: Settings, tmp_path: Path) -> None:
    settings = ackline_settings.model_copy(update={"app": (APP,)})
    with role(settings, "gateway", "--port", "0") as process:
        with httpx.Client(base_url=listening(process), timeout=NEVER, trust_env=False) as client:
            accepted = until(lambda: _accepted(client), what="the gateway's connection")
            streams = [Events(client, accepted["status_url"]) for _ in range(3)]
            for stream in streams:
                stream.until(lambda status: bool(status["state"]))
            assert process.stop() == 0
            for stream in streams:
                stream.ended()
        _stopped_in_order(process)


def _accepted(client: httpx.Client) -> dict[str, Any] | None:
    answer = client.post("/v1/messages/test.tracked", json={})
    return answer.json() if answer.status_code == 202 else None


def _stopped_in_order(process: RoleProcess) -> None:
    log = process.log.read_text()
    assert "timeout graceful shutdown exceeded" not in log
    assert "Traceback" not in log
