"""A gateway is killed in the middle of an upload: nobody ever sees the half file, and the next removes it."""

from __future__ import annotations

import httpx
import pytest

from ackline.infra.settings import Settings
from tests.doors import NEVER
from tests.integration.test_uploads import PNG, half_sent, send, stored
from tests.roles import listening, role
from tests.waiting import until

pytestmark = pytest.mark.faults


def client_of(address: str) -> httpx.Client:
    return httpx.Client(base_url=address, timeout=NEVER, trust_env=False)


def test_what_a_killed_gateway_leaves_is_removed_and_what_another_one_writes_is_not(ackline_settings: Settings) -> None:
    with (
        role(ackline_settings, "gateway", "--port", "0") as killed,
        client_of(listening(killed)) as first,
    ):
        whole = send(first, "x.png", PNG).json()["upload"]["upload_id"]
        with half_sent(first, 900_000):
            [orphan] = until(lambda: [name for name in stored(ackline_settings) if name != whole], what="a half file")
            assert orphan.startswith("incoming/")
            killed.kill()
    assert stored(ackline_settings) == sorted([whole, orphan])

    killed.log.unlink()  # each says its address there
    with (
        role(ackline_settings, "gateway", "--port", "0") as second,
        client_of(listening(second)) as living,
    ):
        assert stored(ackline_settings) == [whole]
        with half_sent(living, 900_000) as connection:
            [begun] = until(lambda: [name for name in stored(ackline_settings) if name != whole], what="a half file")
            second.log.unlink()
            with role(ackline_settings, "gateway", "--port", "0"):
                assert stored(ackline_settings) == sorted([whole, begun]), "it is no orphan: its gateway lives"
            connection.sendall(bytes(300_000))
            assert connection.recv(65536).startswith(b"HTTP/1.1 202 ")
        assert len(stored(ackline_settings)) == 2
        assert not any(name.startswith("incoming/") for name in stored(ackline_settings))
