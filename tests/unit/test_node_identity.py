"""What a broker's folder remembers, and what its configuration says."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
from pathlib import Path

import pytest

from ackline.infra.errors import AcklineError
from ackline.infra.node_config import advanced_config, definitions_with_user, rabbitmq_conf
from ackline.infra.node_identity import NodeIdentity, settle_identity
from ackline.infra.ports import FIRST, LAST, free_port, is_free

IDENTITY = NodeIdentity(20001, 20002, 20003, 20004, user="ackline", password="secret", cookie="cookie")


def test_an_identity_is_kept_between_starts_and_private(tmp_path: Path) -> None:
    first, _ = settle_identity(tmp_path)
    second, notes = settle_identity(tmp_path)
    assert (second, notes) == (first, [])
    assert (tmp_path / "node.json").stat().st_mode & 0o777 == 0o600
    assert first.user != "guest"
    assert len({first.amqp_port, first.management_port, first.distribution_port, first.epmd_port}) == 4


def test_only_the_port_that_is_taken_changes(tmp_path: Path) -> None:
    first, _ = settle_identity(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", first.management_port))
        other.listen()
        second, notes = settle_identity(tmp_path)
    assert second.management_port != first.management_port
    assert (second.amqp_port, second.password) == (first.amqp_port, first.password)
    assert notes == [
        f"management port is now {second.management_port}, because another program listens on {first.management_port}"
    ]


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"amqp_port": 1}'])
def test_a_damaged_file_is_told_with_the_way_out_and_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "node.json").write_text(content)
    with pytest.raises(AcklineError, match=r"node\.json .* cannot be read"):
        settle_identity(tmp_path)
    assert (tmp_path / "node.json").read_text() == content


def test_a_free_port_is_outside_of_what_outgoing_connections_get() -> None:
    port = free_port()
    assert FIRST <= port <= LAST < 32768
    assert is_free(port)
    assert free_port(besides=[port]) != port


def test_a_password_hash_is_what_rabbitmq_computes() -> None:
    user = json.loads(definitions_with_user("{}", IDENTITY))["users"][0]
    stored = base64.b64decode(user["password_hash"])
    assert stored[4:] == hashlib.sha256(stored[:4] + b"secret").digest()


def test_given_definitions_stay_and_the_user_may_use_every_vhost() -> None:
    given = {
        "vhosts": [{"name": "shop"}],
        "users": [{"name": "ada", "password_hash": "x", "tags": ""}],
        "permissions": [{"user": "ada", "vhost": "shop", "configure": "", "write": "", "read": ""}],
        "queues": [{"name": "orders"}],
    }
    merged = json.loads(definitions_with_user(json.dumps(given), IDENTITY))
    assert [user["name"] for user in merged["users"]] == ["ada", "ackline"]
    assert [vhost["name"] for vhost in merged["vhosts"]] == ["shop", "/"]
    assert {(entry["user"], entry["vhost"]) for entry in merged["permissions"]} == {
        ("ada", "shop"),
        ("ackline", "shop"),
        ("ackline", "/"),
    }
    assert merged["queues"] == given["queues"]


def test_the_configuration_names_the_user_and_takes_extra_lines_last() -> None:
    lines = rabbitmq_conf(IDENTITY, definitions=Path("/d.json"), extra=["heartbeat = 17"]).splitlines()
    assert "default_user = ackline" in lines
    assert "load_definitions = /d.json" in lines
    assert lines[-1] == "heartbeat = 17"


def test_features_are_denied_only_when_asked_and_never_the_managements_figures() -> None:
    assert advanced_config(deny_deprecated=False) == "[].\n"
    denied = advanced_config(deny_deprecated=True)
    assert "transient_nonexcl_queues => false" in denied
    assert "management_metrics_collection" not in denied
