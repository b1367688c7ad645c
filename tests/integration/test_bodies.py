"""Bodies that lie about their length, never end, or never come: refused, and the gateway goes on serving."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.requests import Request

from ackline.infra.settings import Settings
from ackline.producer.gateway import uploads
from ackline.producer.gateway.problems import Refusal
from tests.doors import MAIL, NEVER, gateway

JSON = "POST /v1/messages/email.send HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
PNG = "POST /v1/uploads HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"


@pytest.fixture
def client(ackline_settings: Settings) -> Iterator[httpx.Client]:
    limits = {"ACKLINE_MAX_BODY_BYTES": "10000", "ACKLINE_MAX_UPLOAD_BYTES": "10000"}
    with gateway(ackline_settings, **limits) as found:
        yield found
        assert found.post("/v1/messages/email.send", json=MAIL).status_code == 202


@contextmanager
def connected(client: httpx.Client) -> Iterator[socket.socket]:
    address = urlsplit(str(client.base_url))
    with socket.create_connection((address.hostname, address.port), timeout=NEVER) as connection:
        yield connection


def answers(connection: socket.socket) -> bytes:
    """What comes until the gateway closes the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            found += data
    return found


CHUNK = b"1000\r\n" + b" " * 0x1000 + b"\r\n"


def test_a_chunked_body_without_end_is_refused_while_it_is_sent(client: httpx.Client) -> None:
    for head in (JSON, PNG):
        with connected(client) as connection:
            connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            found = b""
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                while not select.select([connection], [], [], 0)[0]:
                    connection.sendall(CHUNK)
                found = connection.recv(65536)
            # An upload's connection is closed soon; who writes on then may lose the answer, as TCP has it.
            assert found.startswith(b"HTTP/1.1 413 ") or (head == PNG and not found)


def test_an_upload_without_end_is_not_read_for_ever(client: httpx.Client) -> None:
    with connected(client) as connection:
        connection.sendall(f"{PNG}Transfer-Encoding: chunked\r\n\r\n".encode())
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(CHUNK * 50_000)  # 200 MB; a timeout would be another error


#: What is wrong with how long a request says that it is, and what follows its head.
FRAMINGS = [
    ("Content-Length: 2", b"{}GARBAGE\r\n\r\n"),
    ("Content-Length: 2\r\nContent-Length: 3", b"{}"),
    ("Content-Length: 3\r\nTransfer-Encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n"),
    ("Transfer-Encoding: gzip", b"{}"),
    ("Transfer-Encoding: chunked", b"-2\r\n{}\r\n0\r\n\r\n"),
    ("Content-Length: -1", b"{}"),
    ("Content-Length: 2x", b"{}"),
    ("Bad Header: x\r\nContent-Length: 2", b"{}"),
    ("X: a\x00b\r\nContent-Length: 2", b"{}"),
    ("X: " + "x" * 1_000_000 + "\r\nContent-Length: 2", b"{}"),
]


def test_framing_that_can_be_read_in_two_ways_and_headers_without_end_are_refused(client: httpx.Client) -> None:
    for head in (JSON, PNG):
        for framing, body in FRAMINGS:
            with connected(client) as connection:
                with contextlib.suppress(ConnectionError):  # it may refuse before all is sent
                    connection.sendall(f"{head}{framing}\r\n\r\n".encode() + body)
                found = answers(connection)
            assert b"HTTP/1.1 2" not in found, framing[:80]
            assert b"HTTP/1.1 4" in found or found == b"", framing[:80]


def test_a_body_that_ends_before_the_length_that_was_said_is_no_message(client: httpx.Client) -> None:
    for head in (JSON, PNG):
        with connected(client) as connection:
            connection.sendall(f"{head}Content-Length: 500\r\n\r\n{{}}".encode())
            connection.shutdown(socket.SHUT_WR)
            assert b"HTTP/1.1 2" not in answers(connection)


def test_a_body_that_does_not_come_holds_up_nobody_else(client: httpx.Client) -> None:
    with contextlib.ExitStack() as waiting:
        for head in [JSON, PNG] * 20:
            connection = waiting.enter_context(connected(client))
            connection.sendall(f"{head}Content-Length: 500\r\n\r\n{{".encode())
        for _ in range(10):
            assert client.post("/v1/messages/email.send", json=MAIL).status_code == 202


def test_an_upload_that_stops_coming_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "SILENCE_SECONDS", 0.05)
    arrived = [{"type": "http.request", "body": b"begun", "more_body": True}]

    async def receive() -> dict[str, object]:
        if not arrived:
            await asyncio.Event().wait()
        return arrived.pop()

    async def read() -> list[bytes]:
        return [chunk async for chunk in uploads._body(Request({"type": "http"}, receive))]

    with pytest.raises(Refusal, match="The upload stopped for") as refused:
        asyncio.run(read())
    assert refused.value.status == 408
