"""Gateways as processes of their own, and what they answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx

from ackline.infra.settings import Settings
from tests.roles import RoleProcess, listening, role
from tests.waiting import until

PROBLEM = "application/problem+json"
MAIL = {"to": "ada@example.test", "subject": "Hello", "body": "From a test"}
#: Seconds after which a request counts as never answered.
NEVER = 90.0


def gateway(settings: Settings, *arguments: str, **variables: str) -> AbstractContextManager[httpx.Client]:
    """A gateway as a process of its own on a free port, and a client of it.

    It waits for a confirm however slow the broker is: without a relay, one message in the outbox would end the straight
    way. See `hurried_gateway`.
    """
    patient = settings.model_copy(update={"app": (*settings.app, "tests.unhurried")})
    return hurried_gateway(patient, *arguments, **variables)


@contextmanager
def hurried_gateway(settings: Settings, *arguments: str, **variables: str) -> Iterator[httpx.Client]:
    """A `gateway` that gives a message to the outbox when its confirm takes some seconds, as they do."""
    with role(settings, "gateway", "--port", "0", *arguments, **variables) as process:
        with httpx.Client(base_url=listening(process), timeout=NEVER, trust_env=False) as client:
            wait_connected(client)
            yield client
        assert process.stop() == 0
        assert "Traceback" not in process.log.read_text()


def connected(process: RoleProcess) -> str:
    """The address of a gateway, as soon as its messages go straight to the broker."""
    address = listening(process)
    with httpx.Client(base_url=address, timeout=NEVER, trust_env=False) as client:
        wait_connected(client)
    return address


def wait_connected(client: httpx.Client) -> None:
    """Wait until the gateway's messages go straight to the broker."""
    until(lambda: is_connected(client), what="the gateway's connection")


def is_connected(client: httpx.Client) -> bool:
    """Whether the gateway's messages go straight to the broker now."""
    return bool(client.get("/readyz").json()["broker"] == "connected")


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The problem that *answer* is, in the shape of RFC 9457."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    found: dict[str, Any] = answer.json()
    assert found["status"] == status
    assert found["title"]
    assert found["detail"].endswith(".")
    return found
