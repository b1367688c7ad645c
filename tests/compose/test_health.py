"""The health check that the containers of the roles run."""

from __future__ import annotations

import runpy
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread

import pytest

HEALTH = Path(__file__).parents[2] / "infra" / "docker" / "health.py"

connected_to_broker: Callable[..., bool] = runpy.run_path(str(HEALTH))["connected_to_broker"]


def health(*targets: str, amqp_url: str = "amqp://broker") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HEALTH), *targets]
    return subprocess.run(command, env={"ACKLINE_AMQP_URL": amqp_url}, capture_output=True, text=True)


@contextmanager
def http_server(status: int) -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/readyz"
        server.shutdown()
        thread.join()


def test_a_gateway_that_is_ready_is_healthy() -> None:
    with http_server(200) as url:
        assert health(url).returncode == 0


def test_a_gateway_that_is_not_ready_is_unhealthy_and_says_why() -> None:
    with http_server(503) as url:
        result = health(url)
    assert result.returncode == 1
    assert "503" in result.stderr


def test_a_gateway_that_is_gone_is_unhealthy_and_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/readyz"
    result = health(url)
    assert result.returncode == 1
    assert "refused" in result.stderr


class Greeter(StreamRequestHandler):
    """As much of SMTP as a health check hears."""

    def handle(self) -> None:
        self.wfile.write(b"220 sink\r\n")
        for line in self.rfile:
            self.wfile.write(b"221 bye\r\n" if line.lower().startswith(b"quit") else b"250 ok\r\n")


def test_a_sink_that_greets_is_healthy_and_one_that_is_silent_is_not() -> None:
    with ThreadingTCPServer(("127.0.0.1", 0), Greeter) as sink:
        Thread(target=sink.handle_request, daemon=True).start()
        assert health(f"smtp://127.0.0.1:{sink.server_address[1]}").returncode == 0
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert health(f"smtp://127.0.0.1:{silent.getsockname()[1]}").returncode == 1


@pytest.mark.skipif(sys.platform != "linux", reason="connections are read from Linux's /proc")
def test_a_worker_is_healthy_while_its_connection_to_the_broker_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as broker:
        url = f"amqp://user:password@broker:{broker.getsockname()[1]}/"
        assert health("broker", amqp_url=url).returncode == 1, "nobody has connected yet"
        with socket.create_connection(broker.getsockname()) as worker:
            accepted, _ = broker.accept()
            assert health("broker", amqp_url=url).returncode == 0
            accepted.close()  # as the broker does when heartbeats are missed; the worker has not noticed
            assert health("broker", amqp_url=url).returncode == 1
            worker.close()


@pytest.mark.skipif(sys.platform != "linux", reason="connections are read from Linux's /proc")
def test_flower_is_healthy_while_it_answers_and_its_connection_to_the_broker_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as broker, http_server(200) as page, http_server(503) as no_page:
        url = f"amqp://broker:{broker.getsockname()[1]}/"
        assert health("broker", page, amqp_url=url).returncode == 1, "nobody has connected yet"
        with socket.create_connection(broker.getsockname()):
            assert health("broker", page, amqp_url=url).returncode == 0
            assert health("broker", no_page, amqp_url=url).returncode == 1


#: A header and one connection each, as /proc/net/tcp writes them: 10.0.0.2:40000 to 10.0.0.3, port 5672 or 5671.
HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
PLAIN = "   0: 0200000A:9C40 0300000A:1628 {} 00000000:00000000 00:00000000 00000000 10001 0 12345 1 0 20 4 30 10 -1\n"
TLS = PLAIN.replace("1628", "1627")


@pytest.mark.parametrize(
    ("url", "line", "connected"),
    [
        ("amqp://broker/", PLAIN.format("01"), True),
        ("amqp://broker:5672/", PLAIN.format("01"), True),
        ("amqp://broker/", PLAIN.format("02"), False),  # still connecting
        ("amqp://broker/", PLAIN.format("08"), False),  # closed by the broker
        ("amqp://broker/", TLS.format("01"), False),
        ("amqps://broker/", TLS.format("01"), True),
    ],
)
def test_the_port_of_the_broker_is_the_one_of_its_url(tmp_path: Path, url: str, line: str, connected: bool) -> None:
    for table, lines in (("tcp", ""), ("tcp6", line)):
        (tmp_path / table).write_text(HEADER + lines)
    assert connected_to_broker(url, str(tmp_path)) is connected
