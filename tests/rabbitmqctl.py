"""`rabbitmqctl` for a broker that a test runs for itself."""

from __future__ import annotations

import subprocess

import pytest

from ackline.infra.private_node import PrivateNode
from ackline.infra.running_broker import Broker
from tests.broker import ContainerBroker

#: Seconds that it may take: it starts an Erlang of its own.
SECONDS = 120.0


def rabbitmqctl(broker: Broker, *arguments: str) -> str:
    """Run it against *broker*, and return what it printed. Fails the test when it fails."""
    if isinstance(broker, PrivateNode):
        program = broker._server.resolve().with_name("rabbitmqctl")
        done = subprocess.run(
            [program, *arguments],
            env=broker._environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        code, said = done.returncode, done.stdout + done.stderr
    elif isinstance(broker, ContainerBroker):
        code, output = broker._docker.exec_run(["rabbitmqctl", *arguments])
        said = output.decode()
    else:
        pytest.fail(f"no rabbitmqctl for {broker.description}")
    assert code == 0, said
    return str(said)
