"""What the tests of docker-compose.yml need of Docker: each fixture skips with the reason when it cannot be had."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"

#: Another base to build the image on, as `docker build --build-arg BASE=…` takes it.
BASE = os.environ.get("ACKLINE_TEST_BASE") or re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)[0]

#: Seconds for Docker to say whether it is there.
INFO_SECONDS = 30


def answers(*command: str) -> bool:
    return bool(shutil.which(command[0])) and subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture(scope="session", params=["docker compose", "docker-compose"])
def compose(request: pytest.FixtureRequest) -> list[str]:
    """Each Compose of this machine: the plugin (2 and newer) and docker-compose."""
    command: list[str] = request.param.split()
    if not answers(*command, "version"):
        pytest.skip(f"there is no `{request.param}` here")
    return command


@pytest.fixture(scope="session")
def image() -> Iterator[str]:
    """The image, built from this tree."""
    if not shutil.which("docker"):
        pytest.skip("the image is not built: there is no docker on PATH")
    if subprocess.run(["docker", "info"], capture_output=True, timeout=INFO_SECONDS).returncode != 0:
        pytest.skip("the image is not built: no Docker daemon answers")
    if not answers("docker", "image", "inspect", BASE):
        pytest.skip(f"the image is not built: {BASE} is not here (docker pull {BASE})")
    tag = "ackline:test"
    build = ["docker", "build", "--file", str(DOCKERFILE), "--build-arg", f"BASE={BASE}", "--tag", tag, str(ROOT)]
    result = subprocess.run(build, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    yield tag
    subprocess.run(["docker", "image", "rm", tag], capture_output=True)
