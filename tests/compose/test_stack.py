"""The whole of docker-compose.yml, brought up for real: `make test-compose`, where Docker answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.waiting import until

ROOT = Path(__file__).parents[2]
SERVICES = {"rabbitmq", "postgres", "mail", "gateway", "worker", "jobs", "flower", "beat", "reviewer", "relay"}
#: What Docker runs in the container of each, to learn whether it is healthy.
CHECKS: dict[str, list[str]] = {
    name: service["healthcheck"]["test"][1:]
    for name, service in yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].items()
}
KEY = "ackline-local"

#: Seconds until every service is healthy: images are here, the database and the broker are new.
START = 180.0

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not os.environ.get("ACKLINE_TEST_COMPOSE"), reason="ten containers and a minute: make test-compose runs it"
    ),
]


class Stack:
    """A Compose project of its own: name, ports and volumes that no other one has."""

    def __init__(self, compose: list[str], image: str) -> None:
        self.amqp_port, self.management_port, self.gateway_port, self.flower_port = free_ports(4)
        self._command = [*compose, "--file", str(ROOT / "docker-compose.yml")]
        self._command += ["--project-name", f"acklinetest{uuid.uuid4().hex[:8]}", "--profile", "flower"]
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("ACKLINE_")} | {
            "ACKLINE_IMAGE": image,
            "ACKLINE_APP": "ackline.consumers.handlers.email,ackline.consumers.handlers.daily_mail",
            "ACKLINE_AMQP_PORT": str(self.amqp_port),
            "ACKLINE_MANAGEMENT_PORT": str(self.management_port),
            "ACKLINE_GATEWAY_PORT": str(self.gateway_port),
            "ACKLINE_FLOWER_PORT": str(self.flower_port),
        }

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [*self._command, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, env=self._environment)
        assert not check or result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result

    def up(self) -> None:
        """Start everything and wait until it is healthy; on failure, say what the containers said."""
        started = self.run("up", "--detach", check=False)
        try:
            assert started.returncode == 0, started.stderr
            until(lambda: set(self.health().values()) == {"healthy"}, deadline=START, what="healthy services")
        except AssertionError as error:
            raise AssertionError(
                f"{error}\n{self.health()}\n{self.run('logs', '--tail=20', check=False).stdout}"
            ) from None

    def containers(self) -> dict[str, dict[str, Any]]:
        """What Docker says of each container, by service."""
        ids = self.run("ps", "--quiet").stdout.split()
        found = subprocess.run(["docker", "inspect", *ids], capture_output=True, text=True).stdout
        return {each["Config"]["Labels"]["com.docker.compose.service"]: each for each in json.loads(found)}

    def health(self) -> dict[str, str]:
        return {name: each["State"]["Health"]["Status"] for name, each in self.containers().items()}

    def publish_mail(self, subject: str, key: str | None = KEY) -> httpx.Response:
        """POST one `email.send` through the published port of the gateway."""
        return httpx.post(
            f"http://127.0.0.1:{self.gateway_port}/v1/messages/email.send",
            json={"to": "ada@example.test", "subject": subject, "body": "from a test"},
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=30,
        )

    def ask_flower(self, path: str) -> Any:
        """What Flower's API answers through its published port; None where it does not know that."""
        answer = httpx.get(f"http://127.0.0.1:{self.flower_port}{path}", auth=("ackline", "ackline-local"), timeout=30)
        return None if answer.status_code == 404 else answer.raise_for_status().json()

    def has_mail(self, subject: str) -> bool:
        return subject in self.ask("mail", "sink", "list")

    def ask(self, role: str, *arguments: str) -> str:
        """What `ackline` with *arguments* prints in the container of *role*; it must end with 0."""
        return self.run("exec", "-T", role, "ackline", *arguments).stdout

    def is_connected(self, role: str) -> bool:
        """What the health check of *role* says now; Docker says so after some more checks only."""
        return self.run("exec", "-T", role, *CHECKS[role], check=False).returncode == 0


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def stack(compose: list[str], image: str) -> Iterator[Stack]:
    running = Stack(compose, image)
    try:
        running.up()
        yield running
    finally:
        running.run("down", "--volumes", "--timeout", "60", check=False)


def test_every_service_is_healthy(stack: Stack) -> None:
    assert stack.health() == dict.fromkeys(SERVICES, "healthy")


def test_nothing_is_published_on_another_address_than_loopback(stack: Stack) -> None:
    published = {
        (name, port, binding["HostIp"])
        for name, container in stack.containers().items()
        for port, bindings in container["NetworkSettings"]["Ports"].items()
        for binding in bindings or ()
    }
    assert published == {
        ("gateway", "8000/tcp", "127.0.0.1"),
        ("flower", "5555/tcp", "127.0.0.1"),
        ("rabbitmq", "5672/tcp", "127.0.0.1"),
        ("rabbitmq", "15672/tcp", "127.0.0.1"),
    }


def test_a_client_without_the_key_is_refused(stack: Stack) -> None:
    assert stack.publish_mail("unasked", key=None).status_code == 401
    assert stack.publish_mail("unasked", key="another").status_code == 401


def test_a_posted_message_becomes_a_mail(stack: Stack) -> None:
    subject = f"hello {uuid.uuid4()}"
    answer = stack.publish_mail(subject)
    assert answer.status_code == 202, answer.text
    until(lambda: stack.has_mail(subject), what="the mail")


def test_a_mail_that_is_refused_is_reviewed_and_sent_again(stack: Stack) -> None:
    subject = f"refused {uuid.uuid4()}"
    stack.ask("mail", "sink", "refuse", "ada@example.test", "--code", "550")
    assert stack.publish_mail(subject).status_code == 202
    until(lambda: "550 No such mailbox here" in stack.ask("reviewer", "dlq", "list"), what="the dead letter")
    stack.ask("mail", "sink", "accept", "ada@example.test")
    assert "1: handled by email" in stack.ask("reviewer", "dlq", "retry", "1")
    assert stack.has_mail(subject)


def test_flower_shows_a_worker_of_jobs_and_what_it_ran(stack: Stack) -> None:
    """The job fails, as nobody is to get its mails: Flower says so, and a dead letter does."""
    job = stack.ask("gateway", "jobs", "run", "mail.daily").strip()
    until(lambda: (stack.ask_flower(f"/api/task/info/{job}") or {}).get("state") == "FAILURE", what="the job in Flower")
    assert [worker["status"] for worker in stack.ask_flower("/workers?json=1")["data"]] == [True]
    until(lambda: job in stack.ask("reviewer", "dlq", "list"), what="the dead letter")
    unsigned = httpx.get(f"http://127.0.0.1:{stack.flower_port}/api/task/info/{job}", timeout=30)
    assert unsigned.status_code == 401


@pytest.mark.parametrize("role", ["gateway", "worker", "jobs", "flower", "beat", "reviewer", "relay"])
def test_the_doctor_finds_no_fault(stack: Stack, role: str) -> None:
    assert "fault" not in stack.ask(role, "doctor")


def test_what_waits_and_what_came_outlive_the_containers(stack: Stack) -> None:
    """The broker finds its data again under a new container, and so do the database and the sink."""
    came, waits = (f"{what} {uuid.uuid4()}" for what in ("came", "waits"))
    assert stack.publish_mail(came).status_code == 202
    until(lambda: stack.has_mail(came), what="the first mail")
    stack.run("stop", "worker")
    assert stack.publish_mail(waits).status_code == 202
    stack.run("down")
    stack.up()
    assert stack.has_mail(came)
    until(lambda: stack.has_mail(waits), what="the mail that waited while nothing ran")


def test_a_role_without_its_broker_is_not_healthy_and_finds_it_again(stack: Stack) -> None:
    roles = ("worker", "jobs", "flower", "beat", "reviewer", "relay")
    stack.run("stop", "rabbitmq")
    until(lambda: not any(map(stack.is_connected, roles)), what="roles that miss the broker")
    stack.up()
    until(lambda: all(map(stack.is_connected, roles)), deadline=90, what="roles that are connected again")


def test_a_stopped_role_ends_by_itself(stack: Stack) -> None:
    """Docker kills what does not end within its time, with the code 137. (uvicorn ends with 143, the signal's.)"""
    roles = ["gateway", "worker", "jobs", "flower", "beat", "reviewer", "relay", "mail"]
    ids = [stack.containers()[role]["Id"] for role in roles]
    stack.run("stop", *roles)
    asked = ["docker", "inspect", "--format={{.State.ExitCode}}", *ids]
    codes = subprocess.run(asked, capture_output=True, text=True).stdout.split()
    assert len(codes) == len(roles)
    assert set(codes) <= {"0", "143"}, dict(zip(roles, codes, strict=True))
