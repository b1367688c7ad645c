"""What is told of contracts: by `ackline contracts`, and by the gateway."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from ackline.infra.settings import Settings
from tests.roles import listening, role, run

APP = "tests.odd"
PROBLEM = "odd.unschematic (tests.odd.Unschematic) has no JSON Schema: "


@pytest.fixture
def nowhere(tmp_path: Path) -> Settings:
    """Settings of a broker that is not there: documents need none."""
    return Settings(amqp_url="amqp://app:s3cret@127.0.0.1:1/shop", data_dir=tmp_path, app=(APP,))


def test_the_types_are_listed_with_those_who_take_them(nowhere: Settings) -> None:
    done = run(nowhere, "contracts", "list")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "odd.order        version 2026-01, tracked  tests.odd.Order  -> odd/consumer",
        "odd.tree         version 1  tests.odd.Tree  -> odd/consumer",
        "odd.unschematic  version 1  tests.odd.Unschematic  -> nobody",
    ]


def test_they_are_exported_as_json_schema_and_what_has_none_is_named(nowhere: Settings) -> None:
    done = run(nowhere, "contracts", "export")
    made = json.loads(done.stdout)
    assert set(made["$defs"]) == {"odd.order", "odd.tree"}
    assert done.returncode == 0
    assert done.stderr.startswith(f"ackline: {PROBLEM}")
    assert done.stderr.count("\n") == 1


def test_they_are_exported_as_asyncapi_into_a_file_without_credentials(nowhere: Settings, tmp_path: Path) -> None:
    file = tmp_path / "asyncapi.json"
    done = run(nowhere, "contracts", "export", "--format", "asyncapi", "--output", str(file))
    assert (done.returncode, done.stdout) == (0, "")
    made = json.loads(file.read_text())
    assert made["servers"]["rabbitmq"]["host"] == "127.0.0.1:1"
    assert "s3cret" not in file.read_text()
    assert set(made["operations"]) == {
        "send:odd.order",
        "send:odd.tree",
        "send:odd.unschematic",
        "receive:odd/consumer",
    }


def test_a_file_that_cannot_be_written_is_told_in_a_sentence(nowhere: Settings, tmp_path: Path) -> None:
    done = run(nowhere, "contracts", "export", "--output", str(tmp_path / "no" / "such"))
    assert done.returncode == 1
    assert f"ackline: {tmp_path / 'no' / 'such'} cannot be written: No such file or directory.\n" in done.stderr


def test_the_gateway_tells_the_same_and_never_fails_on_an_odd_contract(nowhere: Settings) -> None:
    with (
        role(nowhere, "gateway", "--port", "0") as process,
        httpx.Client(base_url=listening(process), timeout=60, trust_env=False) as client,
    ):
        types = {listed["type"]: listed for listed in client.get("/v1/types").json()}
        order, tree, unschematic = (types[name] for name in ("odd.order", "odd.tree", "odd.unschematic"))
        assert (order["type"], order["version"], order["track"]) == ("odd.order", "2026-01", True)
        assert order["schema"]["properties"]["limit"]["default"] is None
        assert order["schema"]["$defs"]["Line"]["properties"]["count"]["default"] is None
        assert (tree["type"], tree["version"], tree["track"]) == ("odd.tree", "1", False)
        assert "problem" not in tree
        assert "schema" not in unschematic
        assert unschematic["problem"].startswith(PROBLEM)
        answer = client.get("/asyncapi.json")
        assert answer.headers["content-type"] == "application/asyncapi+json;version=3.0.0"
        served = answer.json()
        exported = json.loads(run(nowhere, "contracts", "export", "--format", "asyncapi").stdout)
        assert served["servers"] == exported["servers"]
        for part in ("channels", "operations"):
            # The gateway has types of its own beside the application's.
            assert {name: served[part][name] for name in exported[part]} == exported[part]
        assert process.stop() == 0


def test_with_keys_contracts_are_told_to_their_holders_only(nowhere: Settings) -> None:
    with (
        role(nowhere, "gateway", "--port", "0", ACKLINE_API_KEYS="the-key") as process,
        httpx.Client(base_url=listening(process), timeout=60, trust_env=False) as client,
    ):
        for path in ("/v1/types", "/asyncapi.json"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer the-key"}).status_code == 200
        assert process.stop() == 0
