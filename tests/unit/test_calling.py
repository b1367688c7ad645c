"""From a consumer to the function that runs its handler: middleware, in one order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager

import pytest
from pydantic import BaseModel

from ackline.consumers import Context
from ackline.consumers import middleware as registry
from ackline.consumers.calling import compose
from ackline.consumers.middleware import use
from ackline.infra.errors import ConfigurationError
from ackline.infra.properties import Properties
from ackline.producer import message
from tests.working import consumer_of


@message("test.calling.order")
class Order(BaseModel):
    number: int = 1


@pytest.fixture(autouse=True)
def nothing_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what another one has registered for all consumers."""
    monkeypatch.setattr(registry, "_everywhere", [])


def context() -> Context:
    return Context(
        consumer="billing", message_id="m-1", message_type="test.calling.order", attempt=1, properties=Properties()
    )


def noting(notes: list[str], name: str) -> Callable[[Context], AbstractContextManager[None]]:
    """A middleware that notes when it is entered and how it is left."""

    @contextmanager
    def note(ctx: Context) -> Iterator[None]:
        notes.append(f"{name} for {ctx.id}")
        try:
            yield
        except Exception as error:
            notes.append(f"{name} saw {error}")
            raise
        notes.append(f"{name} over")

    return note


def noting_async(notes: list[str], name: str) -> Callable[[Context], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def note(ctx: Context) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        notes.append(f"{name} for {ctx.id}")
        yield
        await asyncio.sleep(0)
        notes.append(f"{name} over")

    return note


def test_a_handler_gets_the_message_and_the_context_if_it_likes() -> None:
    seen: list[object] = []
    order, ctx = Order(), context()
    compose(consumer_of("billing", lambda order, ctx: seen.append((order, ctx)), Order))(order, ctx)
    compose(consumer_of("billing", lambda order: seen.append(order), Order))(order, None)
    assert seen == [(order, ctx), order]


def test_an_async_handler_gets_the_same() -> None:
    seen: list[object] = []

    async def both(order: Order, ctx: Context) -> None:
        seen.append((order, ctx))

    async def one(order: Order) -> None:
        seen.append(order)

    order, ctx = Order(), context()
    asyncio.run(compose(consumer_of("billing", both, Order))(order, ctx))
    asyncio.run(compose(consumer_of("billing", one, Order))(order, None))
    assert seen == [(order, ctx), order]


def test_a_coroutine_that_nobody_awaits_is_an_error() -> None:
    async def later() -> None: ...

    with pytest.raises(TypeError, match="declare it with `async def`"):
        compose(consumer_of("billing", lambda order: later(), Order))(Order(), None)


def test_middleware_is_entered_from_the_outside_in_that_of_all_consumers_first() -> None:
    notes: list[str] = []
    own = (noting(notes, "own 1"), noting(notes, "own 2"))
    use(noting(notes, "all 1"), noting(notes, "all 2"))
    use(noting(notes, "all 3"))
    compose(consumer_of("billing", lambda order: notes.append("handler"), Order, middleware=own))(Order(), context())
    names = ["all 1", "all 2", "all 3", "own 1", "own 2"]
    assert notes == [
        *(f"{name} for m-1" for name in names),
        "handler",
        *(f"{name} over" for name in reversed(names)),
    ]


def test_an_async_handler_takes_sync_and_async_middleware() -> None:
    notes: list[str] = []
    own = (noting_async(notes, "outer"), noting(notes, "inner"))

    async def handler(order: Order) -> None:
        notes.append("handler")

    asyncio.run(compose(consumer_of("billing", handler, Order, middleware=own))(Order(), context()))
    assert notes == ["outer for m-1", "inner for m-1", "handler", "inner over", "outer over"]


def test_async_middleware_around_a_plain_handler_is_refused_when_the_worker_starts() -> None:
    bad = consumer_of("billing", lambda order: None, Order, middleware=(noting_async([], "outer"),))
    with pytest.raises(ConfigurationError, match=r"note is async, but the handler of 'billing' is a plain function"):
        compose(bad)


def test_middleware_sees_what_the_handler_raises_and_lets_it_through() -> None:
    notes: list[str] = []

    def fail(order: Order) -> None:
        raise ValueError("no such account")

    call = compose(consumer_of("billing", fail, Order, middleware=(noting(notes, "outer"),)))
    with pytest.raises(ValueError, match="no such account"):
        call(Order(), context())
    assert notes == ["outer for m-1", "outer saw no such account"]


def test_a_failure_that_middleware_keeps_to_itself_is_none() -> None:
    @contextmanager
    def forgiving(ctx: Context) -> Iterator[None]:
        try:
            yield
        except ValueError:
            ctx.log.info("forgiven")

    def fail(order: Order) -> None:
        raise ValueError("no such account")

    compose(consumer_of("billing", fail, Order, middleware=(forgiving,)))(Order(), context())


def test_middleware_that_raises_keeps_the_handler_from_running() -> None:
    @contextmanager
    def closed(ctx: Context) -> Iterator[None]:
        raise RuntimeError("closed on Sundays")
        yield

    ran: list[Order] = []
    call = compose(consumer_of("billing", ran.append, Order, middleware=(closed,)))
    with pytest.raises(RuntimeError, match="closed on Sundays"):
        call(Order(), context())
    assert ran == []


def test_what_is_used_twice_is_entered_once() -> None:
    notes: list[str] = []
    note = noting(notes, "all")
    use(note)
    use(note)
    compose(consumer_of("billing", lambda order: None, Order))(Order(), context())
    assert notes == ["all for m-1", "all over"]
