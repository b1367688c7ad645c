"""A desk that serves HTTP in this process, people who use it, and dead letters to work on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import httpx
import uvicorn

from ackline.dlq.api import create_app
from ackline.dlq.deadletter import DeadLetter
from ackline.dlq.people import People
from ackline.dlq.rights import Actor, Role
from ackline.dlq.store import Store
from ackline.infra import database
from ackline.infra.settings import Settings
from ackline.producer.gateway.server import Server
from tests.doors import NEVER
from tests.waiting import until

#: Who makes the first people known.
OWNER = Actor("owner", Role.ADMIN)
PASSWORD = "correct horse battery"


@dataclass(frozen=True)
class Desk:
    """A running desk, and its database."""

    client: httpx.Client
    settings: Settings
    clients: ExitStack

    def person(self, name: str, role: Role = Role.ADMIN) -> httpx.Client:
        """Somebody new, who acts by an API token. The first one but an admin needs an admin beside them."""
        engine = database.connect(self.settings.database)
        try:
            people = People(engine)
            if role is not Role.ADMIN and not people.exist():
                people.add(OWNER, OWNER.name, Role.ADMIN)
            people.add(OWNER, name, role, f"{PASSWORD} of theirs")
            token, _ = people.create_token(OWNER, "test", person=name)
        finally:
            engine.dispose()
        return self.caller(Authorization=f"Bearer {token}")

    def caller(self, **headers: str) -> httpx.Client:
        """Another client of it, without cookies; closed with it."""
        url = self.client.base_url
        return self.clients.enter_context(httpx.Client(base_url=url, headers=headers, timeout=NEVER, trust_env=False))

    def arrives(self, *letters: DeadLetter) -> None:
        """Dead letters come in."""
        engine = database.connect(self.settings.database)
        try:
            assert Store(engine).ingest(letters) == []
        finally:
            engine.dispose()


@contextmanager
def serving(settings: Settings) -> Iterator[Desk]:
    """A desk on a free port, in a thread of this process."""
    database.upgrade(settings.database)
    app = create_app(settings)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = Server(app, config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="desk")
        thread.start()
        try:
            until(lambda: server.started or not thread.is_alive(), what="the desk")
            assert server.started, "the desk did not start: its log says why"
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            with ExitStack() as clients, httpx.Client(base_url=url, timeout=NEVER, trust_env=False) as client:
                yield Desk(client, settings, clients)
        finally:
            server.should_exit = True
            thread.join()
