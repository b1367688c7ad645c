"""The broker launcher against real nodes: data, ports, secrets, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pika
import pytest

from ackline.infra.broker import BrokerUnavailable, find_server, launch
from ackline.infra.private_node import PrivateNode
from ackline.infra.running_broker import Broker, credentials, takes_credentials
from tests import broker as test_broker
from tests.amqp import connect
from tests.processes import alive, mentioning
from tests.waiting import until


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `rabbitmq-server` of this machine; these tests are about nodes that are run from one."""
    named = test_broker.environment().rabbitmq_server
    found = Path(named) if named else find_server()
    if found is None:
        pytest.skip("needs a rabbitmq-server on PATH or in ACKLINE_RABBITMQ_SERVER")
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose name needs care: a blank, and letters beyond ASCII."""
    made = tmp_path / "Größe 1"
    made.mkdir()
    return made


@pytest.fixture
def node(server: Path, folder: Path) -> Iterator[PrivateNode]:
    """A node that runs, made as `ackline up` makes it."""
    with _node(server, folder) as running:
        running.start()
        yield running


@pytest.fixture(scope="module")
def shared_node(server: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateNode]:
    """A node that runs, for the tests that only look at it."""
    with _node(server, tmp_path_factory.mktemp("shared")) as running:
        running.start()
        yield running


def _node(server: Path, folder: Path, **options: Any) -> PrivateNode:
    return PrivateNode(server, folder / "rabbitmq", why="for a test", **options)


def _publish(url: str, queue: str, count: int) -> None:
    with _channel(url) as channel:
        properties: Any = pika.BasicProperties
        channel.confirm_delivery()
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
        for _ in range(count):
            channel.basic_publish("", queue, b"kept", properties(delivery_mode=2))


def _count(url: str, queue: str) -> int:
    with _channel(url) as channel:
        return int(channel.queue_declare(queue, passive=True).method.message_count)


class _channel:  # noqa: N801 - reads as a function
    def __init__(self, url: str) -> None:
        self._connection = connect(url)

    def __enter__(self) -> Any:
        return self._connection.channel()

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def _api(broker: Broker, path: str) -> Any:
    with httpx.Client(auth=credentials(broker.amqp_url), timeout=60, trust_env=False) as client:
        return client.get(f"{broker.management_url}{path}").raise_for_status().json()


def test_confirmed_messages_survive_a_stop_and_a_kill_on_the_same_ports(node: PrivateNode) -> None:
    url, management = node.amqp_url, node.management_url
    _publish(url, "q", 10)
    node.restart()
    until(lambda: _count(url, "q") == 10, what="the messages after a stop")
    _publish(url, "q", 10)
    node.kill()
    assert not node.alive()
    node.start()
    until(lambda: _count(url, "q") == 20, what="the messages after a kill")
    assert (node.amqp_url, node.management_url) == (url, management)


def test_a_second_launch_on_the_folder_finds_the_messages_ports_and_user(server: Path, folder: Path) -> None:
    with _node(server, folder) as first:
        first.start()
        _publish(first.amqp_url, "q", 3)
    with _node(server, folder) as second:
        second.start()
        assert second.amqp_url == first.amqp_url
        until(lambda: _count(second.amqp_url, "q") == 3, what="the messages of the first")


def test_the_node_listens_on_loopback_only_and_signs_in_nobody_else(shared_node: PrivateNode) -> None:
    identity = json.loads((shared_node.logs.parent.parent / "node.json").read_text())
    for port in ("amqp_port", "management_port", "distribution_port", "epmd_port"):
        with pytest.raises(ConnectionRefusedError):  # a server on all addresses would answer here
            socket.create_connection(("127.0.0.2", identity[port]), timeout=1).close()
    assert [user["name"] for user in _api(shared_node, "/api/users")] == ["ackline"]
    assert not takes_credentials(re.sub(r"//.*@", "//guest:guest@", shared_node.amqp_url))


def test_what_holds_secrets_is_readable_by_its_user_only(shared_node: PrivateNode) -> None:
    _, password = credentials(shared_node.amqp_url)
    folder = shared_node.logs.parent.parent

    def holds_it_for_all(file: Path) -> bool:
        try:
            return bool(file.stat().st_mode & 0o077) and file.is_file() and password.encode() in file.read_bytes()
        except FileNotFoundError:  # the node runs, and makes and removes files
            return False

    assert [file for file in folder.rglob("*") if holds_it_for_all(file)] == []
    assert not (folder.stat().st_mode & 0o077)
    assert mentioning(password) == []


def test_a_stopped_node_leaves_no_process(node: PrivateNode, folder: Path) -> None:
    pid = node.pid
    assert alive(pid)
    assert mentioning(folder)
    node.stop()
    assert not alive(pid)
    assert mentioning(folder) == []
    assert _listening(folder) == []


def test_a_killed_node_leaves_no_process(node: PrivateNode, folder: Path) -> None:
    os.kill(node.pid, signal.SIGKILL)
    until(lambda: not node.alive(), what="the guardian to notice")
    assert mentioning(folder) == []
    assert _listening(folder) == []


def test_a_node_ends_with_a_starter_that_is_killed(server: Path, folder: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from ackline.infra.private_node import PrivateNode
PrivateNode(Path(sys.argv[1]), Path(sys.argv[2]), why="for a test").start()
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program, str(server), str(folder / "rabbitmq")], check=False, timeout=120)
    until(lambda: mentioning(folder) == [], what="the node to end")
    assert _listening(folder) == []
    with _node(server, folder) as again:
        again.start()
        assert again.alive()


def test_a_second_broker_on_the_folder_of_a_running_one_is_refused(
    shared_node: PrivateNode, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ackline.infra.private_node._PATIENCE_SECONDS", 0.1)
    with pytest.raises(BrokerUnavailable, match="Another broker already runs on the data in"):
        _node(server, shared_node.logs.parent.parent.parent)
    assert shared_node.alive()


def test_a_remembered_port_that_is_taken_is_replaced_and_told(server: Path, folder: Path) -> None:
    first = _node(server, folder)
    port = int(re.findall(r":(\d+)/", first.amqp_url)[0])
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with _node(server, folder) as second:
            second.start()
            assert second.amqp_url != first.amqp_url
            assert f"another program listens on {port}" in second.description


def test_a_restart_onto_a_port_that_was_taken_says_which_and_where_it_is_kept(node: PrivateNode) -> None:
    port = int(re.findall(r":(\d+)/", node.amqp_url)[0])
    node.stop()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(
            BrokerUnavailable, match=rf"another program listens on its amqp port {port} \(kept in .*node.json"
        ):
            node.start()


def test_definitions_are_loaded_and_the_nodes_own_user_still_signs_in(server: Path, folder: Path) -> None:
    definitions = folder / "given.json"
    queue = {"name": "given", "vhost": "/", "durable": True, "auto_delete": False, "arguments": {}}
    definitions.write_text(json.dumps({"vhosts": [{"name": "/"}], "queues": [queue]}))
    with _node(server, folder, definitions=definitions, extra_config=["heartbeat = 17"]) as running:
        running.start()
        assert _count(running.amqp_url, "given") == 0
        assert "heartbeat = 17" in (folder / "rabbitmq" / "rabbitmq.conf").read_text()


def test_denied_features_are_denied_and_the_management_figures_stay(server: Path, folder: Path) -> None:
    with _node(server, folder, deny_deprecated=True, extra_config=["collect_statistics_interval = 500"]) as running:
        running.start()
        version = tuple(map(int, _api(running, "/api/overview")["rabbitmq_version"].split(".")))
        _publish(running.amqp_url, "q", 4)
        until(lambda: _api(running, "/api/queues/%2F/q").get("messages") == 4, what="the queue's length")
        if version < (4, 0):
            return  # harmless is all that is asked of it there
        states = {feature["name"]: feature["state"] for feature in _api(running, "/api/deprecated-features")}
        assert states["transient_nonexcl_queues"] == states["global_qos"] == "denied"


def test_a_broker_that_cannot_boot_is_told_with_its_last_words(server: Path, folder: Path) -> None:
    node = _node(server, folder, extra_config=["no.such.setting = 1"])
    with pytest.raises(BrokerUnavailable, match=r"ended while starting(?s:.)*no\.such\.setting"):
        node.start()
    assert mentioning(folder) == []


def test_a_server_that_is_no_program_is_named(tmp_path: Path) -> None:
    settings = test_broker.environment().model_copy(
        update={"amqp_url": None, "rabbitmq_server": str(tmp_path / "rabbitmq-server")}
    )
    with pytest.raises(BrokerUnavailable, match=r"ACKLINE_RABBITMQ_SERVER names .*rabbitmq-server"):
        launch(settings, data_dir=tmp_path)


def test_a_broker_that_is_configured_is_used_and_never_stopped(broker: Broker, tmp_path: Path) -> None:
    settings = test_broker.environment().model_copy(
        update={"amqp_url": broker.amqp_url, "management_url": broker.management_url}
    )
    with launch(settings, data_dir=tmp_path) as used:
        assert not used.can_stop
        assert used.alive()
    assert broker.alive()
    assert list(tmp_path.iterdir()) == []


def test_a_configured_broker_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    settings = test_broker.environment().model_copy(update={"amqp_url": "amqp://ada:secret@127.0.0.1:1/shop"})
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1 with the user 'ada' and vhost 'shop'") as refused:
        launch(settings, data_dir=tmp_path)
    assert "secret" not in str(refused.value)


def test_without_any_broker_the_message_says_what_was_tried_and_how_to_get_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("ackline.infra.broker._SYSTEM_FOLDERS", ())
    settings = test_broker.environment().model_copy(update={"amqp_url": None, "rabbitmq_server": None})
    with pytest.raises(BrokerUnavailable) as refused:
        launch(settings, data_dir=tmp_path)
    lines = str(refused.value).splitlines()
    assert len(lines) == 6
    for told in ("ACKLINE_AMQP_URL=", "Docker: no `docker` on PATH", "rabbitmq-server: none on PATH", "neither Debian"):
        assert told in str(refused.value)


def test_messages_that_are_in_docker_are_not_hidden_by_an_empty_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ackline.infra.broker.docker_refusal", lambda: "the daemon is asleep")
    (tmp_path / "rabbitmq").mkdir()
    (tmp_path / "rabbitmq" / "kept-by").write_text("docker")
    settings = test_broker.environment().model_copy(update={"amqp_url": None, "rabbitmq_server": None})
    with pytest.raises(
        BrokerUnavailable, match="are in a Docker volume, and Docker does not serve: the daemon is asleep"
    ):
        launch(settings, data_dir=tmp_path)


def _listening(folder: Path) -> list[int]:
    """Ports of the node in *folder* on which something still listens, its epmd's included."""
    identity = json.loads((folder / "rabbitmq" / "node.json").read_text())
    return [port for name, port in identity.items() if name.endswith("_port") and _answers(port)]


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
