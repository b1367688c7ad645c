"""The promises of docker-compose.yml and of the image, each as far as this machine can check it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"

COMPOSE: Mapping[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text())
SERVICES: Mapping[str, Any] = COMPOSE["services"]
ROLES = {"gateway", "worker", "jobs", "flower", "beat", "reviewer", "relay", "mail"}

each_service = pytest.mark.parametrize("name", SERVICES)


def test_there_is_a_service_per_role_beside_the_broker_and_the_database() -> None:
    assert set(SERVICES) == {"rabbitmq", "postgres"} | ROLES


def test_jobs_run_where_the_application_has_some() -> None:
    """By a profile: `ackline jobs` ends where there are none."""
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert profiles == {"jobs": ["jobs", "flower"], "flower": ["flower"]}


@each_service
def test_a_port_is_published_on_loopback_only(name: str) -> None:
    """The passwords are known to everybody, so none may be of use from another host."""
    for port in SERVICES[name].get("ports", ()):
        assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"
    assert SERVICES[name].get("network_mode") is None


@each_service
def test_a_service_has_a_health_check_and_restarts_and_may_take_its_time_to_stop(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"
    assert int(service["stop_grace_period"].removesuffix("s")) > 10, "Docker would kill it while it finishes its work"


@each_service
def test_a_service_waits_for_healthy_ones(name: str) -> None:
    waits = SERVICES[name].get("depends_on", {})
    assert {condition["condition"] for condition in waits.values()} <= {"service_healthy"}
    if name in ROLES - {"mail"}:
        assert set(waits) == {"rabbitmq", "postgres", "mail"}


@each_service
def test_an_image_has_a_version(name: str) -> None:
    image = SERVICES[name]["image"].replace("${ACKLINE_IMAGE:-", "").rstrip("}")
    assert ":" in image, f"{name}: {image} is whatever is newest"
    assert not image.endswith(":latest")


def test_what_must_outlive_a_container_is_in_a_named_volume() -> None:
    kept = {name: service["volumes"] for name, service in SERVICES.items() if "volumes" in service}
    assert kept == {
        "rabbitmq": ["rabbitmq:/var/lib/rabbitmq"],
        "postgres": ["postgres:/var/lib/postgresql/data"],
        "mail": ["mail:/var/lib/ackline"],
        "gateway": ["uploads:/var/lib/ackline-uploads"],
        "worker": ["uploads:/var/lib/ackline-uploads"],
        "jobs": ["uploads:/var/lib/ackline-uploads"],
    }
    assert set(COMPOSE["volumes"]) == {volume.partition(":")[0] for volumes in kept.values() for volume in volumes}
    assert SERVICES["rabbitmq"]["hostname"] == "rabbitmq", "the broker's data folder carries the name of its host"


def test_every_role_runs_the_one_image_which_one_service_builds() -> None:
    assert {SERVICES[role]["image"] for role in ROLES} == {"${ACKLINE_IMAGE:-ackline:local}"}
    built = {name: service["build"] for name, service in SERVICES.items() if "build" in service}
    assert built == {"mail": {"context": ".", "dockerfile": "infra/docker/Dockerfile"}}


def test_a_password_comes_from_the_environment() -> None:
    """Only a default may be written down, and the default is the one that says where it belongs."""
    for line in COMPOSE_FILE.read_text().splitlines():
        if not line.lstrip().startswith("#"):
            assert "ackline-local" not in re.sub(r"\$\{ACKLINE_\w+:-ackline-local\}", "", line), line


def test_a_role_is_not_root_and_cannot_become_it() -> None:
    for role in ROLES:
        assert SERVICES[role]["cap_drop"] == ["ALL"]
        assert SERVICES[role]["read_only"] is True
    last_stage = DOCKERFILE.read_text().rpartition("\nFROM ")[2]
    user = re.search(r"^USER (\d+):\d+$", last_stage, re.MULTILINE)
    assert user, "a number, or Kubernetes cannot see that it is not root"
    assert int(user[1]) > 0


def test_compose_accepts_the_file(compose: list[str]) -> None:
    result = subprocess.run(
        [*compose, "--file", str(COMPOSE_FILE), "config", "--quiet"], capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")


def in_container(image: str, *command: str) -> str:
    """Standard output of *command* in a container that has a role's limits and no network."""
    limits = ["--rm", "--network=none", "--read-only", "--cap-drop=ALL"]
    run = ["docker", "run", *limits, f"--entrypoint={command[0]}", image, *command[1:]]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout


@pytest.mark.timeout(900)
class TestImage:
    def test_runs_ackline(self, image: str) -> None:
        assert in_container(image, "ackline", "--version").startswith("ackline, version ")

    def test_runs_as_a_user_of_its_own_who_owns_the_data_folder(self, image: str) -> None:
        assert in_container(image, "sh", "-c", 'id -u; stat --format=%u "$ACKLINE_DATA_DIR"').split() == ["10001"] * 2

    def test_holds_every_command_that_the_compose_file_runs(self, image: str) -> None:
        for role in sorted(ROLES):
            assert in_container(image, "ackline", SERVICES[role]["command"][0], "--help").startswith("Usage: ")

    def test_holds_locked_versions_and_nothing_that_only_tests_need(self, image: str) -> None:
        program = "import importlib.metadata as m; [print(d.name, d.version) for d in m.distributions()]"
        lines = in_container(image, "/opt/ackline/bin/python", "-c", program).lower().replace("_", "-").splitlines()
        installed = dict(line.split() for line in lines)
        locked = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
        del installed["ackline"]
        assert {name: version for name, version in installed.items() if locked.get(name) != version} == {}
        assert not installed.keys() & {"pytest", "mypy", "ruff", "testcontainers"}

    def test_has_no_compiler(self, image: str) -> None:
        assert in_container(image, "sh", "-c", "command -v cc gcc make || true") == ""
