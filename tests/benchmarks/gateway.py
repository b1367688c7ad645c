"""`POST /v1/messages/{type}` beside FastAPI with Celery, and FastAPI alone: 1 KB, wrk with 32 connections."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from ackline.infra.errors import ConfigurationError
from ackline.infra.ports import free_port
from ackline.infra.settings import Settings
from ackline.infra.topology import ConsumerQueue, declare
from tests import broker as test_broker
from tests.benchmarks.comparing import ROOT, Bench, Contender, alternate, median, spread, table
from tests.benchmarks.publish_contenders import TYPE, sent
from tests.doors import wait_connected
from tests.roles import role
from tests.waiting import until

CONNECTIONS, BATCH, BATCH_CONNECTIONS = 32, 500, 4
RATE, P99, CPU = "messages per second", "p99 ms", "CPU µs per message"
#: What wrk does: each connection posts the body again and again.
_SCRIPT = """
wrk.method = "POST"
wrk.body = io.open("{body}", "r"):read("*a")
wrk.headers["Content-Type"] = "application/json"
done = function(summary, latency, requests)
  local bad = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout
  io.write(string.format("figures %f %f %d %d\\n", summary.requests / summary.duration * 1e6,
           latency:percentile(99) / 1000, bad, summary.requests))
end
"""


def run(bench: Bench) -> str:
    """Needs wrk (Debian: wrk), and Celery: the extra `bench`."""
    if shutil.which("wrk") is None:
        raise ConfigurationError("This benchmark puts load on with wrk, which is not here: apt-get install wrk.")
    names: dict[str, Callable[[], Mapping[str, float]]] = {
        "FastAPI, a route that returns at once": lambda: _other(bench, "at-once"),
        "FastAPI + Celery `delay` with confirms": lambda: _other(bench, "celery"),
        "Ackline, one message": lambda: _ackline(bench, f"/v1/messages/{TYPE}", 1),
        "Ackline, one message, tracked": lambda: _ackline(bench, f"/v1/messages/{TYPE}?track=true", 1),
        f"Ackline, a batch of {BATCH}": lambda: _ackline(bench, "/v1/messages", BATCH),
    }
    figures = alternate([Contender(name, measure) for name, measure in names.items()], bench.rounds)
    at_once, celery, single, *_ = (median(figures, name, RATE) for name in names)
    return table(
        f"HTTP to a confirm, 1 KB, one uvicorn process, wrk with {CONNECTIONS} connections, "
        f"{BATCH_CONNECTIONS} for the batch (medians of {bench.rounds})",
        ["", "messages/s", "least–most", "p99 ms", "CPU µs each", "× at once", "× Celery", "× one message"],
        [
            [
                name,
                f"{median(figures, name, RATE):,.0f}",
                spread(figures, name, RATE),
                f"{median(figures, name, P99):.0f}",
                f"{median(figures, name, CPU):.0f}",
                *(f"{median(figures, name, RATE) / other:.2f}" for other in (at_once, celery, single)),
            ]
            for name in names
        ],
    )


def _ackline(bench: Bench, path: str, messages: int) -> Mapping[str, float]:
    with test_broker.fresh_vhost(bench.broker) as vhost:
        declare(vhost.amqp_url, [ConsumerQueue("bench", (TYPE,))])
        folder = bench.folder / f"data-{vhost.name}"
        folder.mkdir()
        settings = Settings(
            amqp_url=vhost.amqp_url,
            data_dir=folder,
            database_url=f"sqlite:///{folder / 'ackline.db'}",
            app=("tests.benchmarks.publish_contenders",),
        )
        port = free_port()
        with (
            role(settings, "gateway", "--port", str(port)) as process,
            httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
        ):
            wait_connected(client)
            return _load(bench, process.pid, port, path, messages)


def _other(bench: Bench, name: str) -> Mapping[str, float]:
    with test_broker.fresh_vhost(bench.broker) as vhost:
        port = free_port()
        command = [sys.executable, "-m", "tests.benchmarks.gateway_contenders", name, vhost.amqp_url, str(port)]
        process = subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.DEVNULL)
        try:
            until(lambda: _listens(port), what=f"{name} to listen")
            return _load(bench, process.pid, port, f"/v1/messages/{TYPE}", 1)
        finally:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _load(bench: Bench, pid: int, port: int, path: str, messages: int) -> Mapping[str, float]:
    """The figures of wrk against *path*; the first second warms up, and is not counted."""
    payload = sent(7).model_dump()
    body = bench.folder / "body.json"
    body.write_text(json.dumps(payload if messages == 1 else [{"type": TYPE, "data": payload}] * messages))
    script = bench.folder / "post.lua"
    script.write_text(_SCRIPT.format(body=body))
    url = f"http://127.0.0.1:{port}{path}"
    connections = CONNECTIONS if messages == 1 else BATCH_CONNECTIONS
    cpu = 0.0
    for seconds in ("1s", "2s" if bench.short else "8s"):
        command = ["wrk", "-t", "1", "-c", str(connections), "-d", seconds, "--timeout", "30s", "-s", str(script), url]
        cpu = _cpu_seconds(pid)
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    cpu = _cpu_seconds(pid) - cpu
    found = re.search(r"figures (\S+) (\S+) (\d+) (\d+)", done.stdout)
    if found is None or int(found[3]):
        raise RuntimeError(f"not every request was answered well:\n{done.stdout}{done.stderr}")
    return {
        RATE: float(found[1]) * messages,
        P99: float(found[2]),
        CPU: 1e6 * cpu / (int(found[4]) * messages),
    }


def _cpu_seconds(pid: int) -> float:
    """What a process has used of its processor so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
