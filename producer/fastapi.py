"""A publisher for your own FastAPI app, in two lines.

```python
app = FastAPI(lifespan=ackline_lifespan())

@app.post("/orders", status_code=202)
async def place(order: OrderPlaced, publisher: PublisherDep) -> ...:
    await publisher.apublish(order)
```
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from starlette.requests import HTTPConnection
from starlette.types import Lifespan, StatefulLifespan

from ackline.infra.errors import ConfigurationError
from ackline.infra.link import BrokerUnreachable
from ackline.infra.settings import Settings, settings
from ackline.producer.publisher import Publisher

#: Where the publisher is in the app's lifespan state.
_STATE = "ackline_publisher"
#: Seconds between looks whether the broker has answered.
_LOOK = 0.05


async def current_publisher(connection: HTTPConnection) -> Publisher:
    """The publisher of the app that serves this request; override it in tests (`app.dependency_overrides`).

    Raises `ConfigurationError` when the app has none.
    """
    found: Publisher | None = getattr(connection.state, _STATE, None)
    if found is None:
        raise ConfigurationError(
            "This app has no publisher: make it with FastAPI(lifespan=ackline_lifespan()). In tests enter the client "
            "(`with TestClient(app) as client`), or override `current_publisher` with a FakePublisher."
        )
    return found


#: A parameter of a route: `publisher: PublisherDep`.
PublisherDep = Annotated[Publisher, Depends(current_publisher)]


def ackline_lifespan(
    inner: Lifespan[Any] | None = None,
    *,
    with_settings: Settings | None = None,
    name: str = "fastapi",
    wait: float | None = None,
) -> StatefulLifespan[FastAPI]:
    """A lifespan for FastAPI: the app has a publisher while it runs, for its routes (`PublisherDep`).

    The publisher begins to connect before the app serves, and is closed after its last request, when what it has in
    flight is confirmed. Each app has its own; apps that are mounted in one use its.

    inner: a lifespan of your own, which runs inside. with_settings: those of the environment otherwise, read when the
    app starts. name: shown in the management UI. wait: seconds that the app waits for the connection before it serves;
    without it, it serves at once, and what is published meanwhile waits within its own deadline.

    When the app starts it raises `ConfigurationError` if no broker is configured, and with *wait* `BrokerUnreachable`.
    Where a test has overridden `current_publisher`, nothing is connected.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            state: dict[str, Any] = {}
            if current_publisher not in app.dependency_overrides:
                chosen = with_settings or settings()
                publisher = Publisher(chosen.broker, name=name, app_id=chosen.service)
                state[_STATE] = await stack.enter_async_context(publisher)
                if wait is not None:
                    await _connected(publisher, wait)
            if inner is not None:
                own: AbstractAsyncContextManager[Any] = inner(app)
                state.update(await stack.enter_async_context(own) or {})
            yield state

    return lifespan


async def _connected(publisher: Publisher, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while (problem := publisher.problem) is not None:
        if time.monotonic() >= deadline:
            raise BrokerUnreachable(problem)
        await asyncio.sleep(_LOOK)
