"""The broker of a test run: which one, decided cheaply for the header, started on first use.

The order is that of `ackline up`, with Docker through testcontainers. Each test has a vhost of its own, so one broker
serves all; tests that stop or kill a broker start one for themselves.
"""

from __future__ import annotations

import contextlib
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import httpx
import pytest

from ackline.infra.broker import Choice, choose, launch
from ackline.infra.docker_node import IMAGE, fetch_image
from ackline.infra.node_config import PLUGINS_VARIABLE, advanced_config, rabbitmq_conf
from ackline.infra.node_identity import settle_identity
from ackline.infra.running_broker import Broker, BrokerUnavailable, credentials, wait_until_ready
from ackline.infra.settings import Settings


@cache
def environment() -> Settings:
    """The settings of the environment, but never the broker of an `ackline up` that happens to run in this folder."""
    return Settings(data_dir=Path(tempfile.gettempdir()) / f"ackline-none-{uuid.uuid4().hex}")


@cache
def choice() -> Choice | None:
    """The first way to have a broker that looks possible here; None when there is none."""
    return next(choose(environment()), None)


def header() -> str:
    """The line about the broker in the header of a test run."""
    try:
        chosen = choice()
    except BrokerUnavailable as error:
        return f"broker: none ({error})"
    if chosen is None:
        return "broker: none can be had here; tests that need one say how to get it"
    names = {
        "url": "the one that runs",
        "docker": f"{IMAGE} by testcontainers",
        "node": f"a private node from {chosen.server}",
        "package": "a private node",
    }
    return f"broker: {names[chosen.kind]} ({chosen.why})"


def start(folder: Path) -> Broker:
    """A broker that is ready, with every deprecated feature denied where it is started here; *folder* is its own.

    Raises `BrokerUnavailable` with what was tried.
    """
    chosen = choice()
    refusal = None
    if chosen is not None and chosen.kind == "docker":
        refusal = fetch_image(print)
        if refusal is None:
            broker = ContainerBroker(folder / "container")
            broker.start()
            return broker
    return launch(environment(), data_dir=folder, prefer_docker=refusal is None, deny_deprecated=True, say=print)


@contextlib.contextmanager
def own(folder: Path) -> Iterator[Broker]:
    """A broker that tests may stop, kill, and start again; *folder* is its own."""
    chosen = choice()
    if chosen is not None and chosen.kind == "url":
        pytest.skip("needs a broker that it can stop, and ACKLINE_AMQP_URL names one that others run")
    try:
        running = start(folder)
    except BrokerUnavailable as error:
        pytest.fail(str(error), pytrace=False)
    with running:
        yield running


class ContainerBroker(Broker):
    """RabbitMQ by testcontainers, whose reaper removes the container when the test run is killed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        identity, _ = settle_identity(folder)
        self.amqp_url = identity.amqp_url
        self.management_url = identity.management_url
        self.description = f"RabbitMQ by testcontainers, {IMAGE}."
        conf = rabbitmq_conf(identity, definitions=None).encode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # testcontainers' own, at import
            from testcontainers.core.container import DockerContainer
        container: Any = DockerContainer(IMAGE, hostname="ackline")  # `with_bind_ports` knows no host address
        container.ports = {
            "5672/tcp": ("127.0.0.1", identity.amqp_port),
            "15672/tcp": ("127.0.0.1", identity.management_port),
        }
        for name, value in PLUGINS_VARIABLE.items():
            container.with_env(name, value)
        container.with_copy_into_container(conf, "/etc/rabbitmq/conf.d/90-ackline.conf")
        denied = advanced_config(deny_deprecated=True).encode()
        container.with_copy_into_container(denied, "/etc/rabbitmq/advanced.config")
        self._container = container
        self._created = False

    def start(self) -> None:
        """See `Broker.start`."""
        if self._created:
            self._docker.start()
        else:
            self._container.start()
            self._created = True
        version = wait_until_ready(self, exit_code=self._exit_code, log=None)
        self.description = f"RabbitMQ {version} by testcontainers, {IMAGE}."

    def stop(self) -> None:
        """See `Broker.stop`; the container stays until `remove`, with its data."""
        if self.alive():
            self._docker.stop(timeout=8)

    def kill(self) -> None:
        """See `Broker.kill`."""
        if self.alive():
            self._docker.kill()

    def alive(self) -> bool:
        """See `Broker.alive`."""
        return self._created and self._exit_code() is None

    def __exit__(self, *_: object) -> None:
        if self._created:
            self._container.stop()
            self._created = False

    @property
    def _docker(self) -> Any:
        return self._container.get_wrapped_container()

    def _exit_code(self) -> int | None:
        self._docker.reload()
        state = self._docker.attrs["State"]
        return None if state["Running"] else int(state["ExitCode"])


@dataclass(frozen=True, slots=True)
class Vhost:
    """A vhost of one test: one Ackline of its own."""

    name: str
    amqp_url: str
    management_url: str
    user: str
    password: str

    def api(self) -> httpx.Client:
        """A client of the management API, to be closed; paths begin with `/api/`."""
        return httpx.Client(
            base_url=self.management_url, auth=(self.user, self.password), timeout=60.0, trust_env=False
        )

    @property
    def path(self) -> str:
        """The vhost's name as it stands in a path of the management API."""
        return quote(self.name, safe="")


@contextlib.contextmanager
def fresh_vhost(broker: Broker) -> Iterator[Vhost]:
    """A vhost that exists while the block runs, with full permissions for the broker's user."""
    user, password = credentials(broker.amqp_url)
    name = f"test-{uuid.uuid4().hex[:12]}"
    url = urlunsplit(urlsplit(broker.amqp_url)._replace(path=f"/{name}"))
    assert broker.management_url is not None
    vhost = Vhost(name, url, broker.management_url, user, password)
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    with vhost.api() as api:
        api.put(f"/api/vhosts/{name}").raise_for_status()
        api.put(f"/api/permissions/{name}/{quote(user, safe='')}", json=everything).raise_for_status()
        try:
            yield vhost
        finally:
            with contextlib.suppress(httpx.TransportError):  # a test that left its own broker stopped
                api.delete(f"/api/vhosts/{name}")


def settings_for(amqp_url: str, management_url: str | None, data_dir: Path) -> Settings:
    """Settings that take nothing from the environment but what the arguments leave open."""
    data_dir.mkdir()
    return Settings(
        amqp_url=amqp_url,
        management_url=management_url,
        data_dir=data_dir,
        database_url=f"sqlite:///{data_dir / 'ackline.db'}",
        grace_seconds=5.0,
    )
