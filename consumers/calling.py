"""From a consumer to the one function that runs its handler, with all that is to be around it.

It is made once for each consumer, when the worker starts: a message pays for what its consumer uses, and for no more.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

from ackline.consumers.consumer import Consumer
from ackline.consumers.context import Context
from ackline.consumers.handling import Tell, Way
from ackline.consumers.middleware import Middleware, around, check_is_sync
from ackline.consumers.stopping import NEVER, Stopping
from ackline.consumers.time_limit import watchdog

#: Takes the message and its context, or lists of them. Returns what the handler returns; an async one's awaitable.
Call: TypeAlias = Callable[[Any, Any], Any]


def way_of(consumer: Consumer, worker: str, *, stopping: Stopping = NEVER, tell: Tell | None = None) -> Way:
    """How a worker of that name, `host:pid`, runs *consumer*. Raises `ConfigurationError` as `compose` does."""
    has_more = consumer.inbox is not None or consumer.time_limit is not None or bool(surrounding(consumer))
    return Way(consumer, worker, compose(consumer), consumer.takes_context or has_more, stopping, tell)


def compose(consumer: Consumer) -> Call:
    """The handler of *consumer* within its inbox, within its middleware, which a batch handler has none of.

    All of that within its time limit.

    Raises `ConfigurationError` when a middleware is async and the handler is not.
    """
    call = _handler(consumer)
    if consumer.inbox is not None:
        call = consumer.inbox.around(call, is_async=consumer.is_async, is_batch=consumer.batch is not None)
    for middleware in reversed(surrounding(consumer)):
        if consumer.is_async:
            call = _within_async(middleware, call)
        else:
            check_is_sync(middleware, consumer.name)
            call = _within(middleware, call)
    if consumer.time_limit is not None:
        limited = watchdog().around_async if consumer.is_async else watchdog().around
        call = limited(call, consumer.time_limit)
    return call


def surrounding(consumer: Consumer) -> tuple[Middleware, ...]:
    """The middleware of *consumer*, outermost first. It is about one message, so a batch has none."""
    return () if consumer.batch is not None else around(consumer.middleware)


def _handler(consumer: Consumer) -> Call:
    handler: Callable[..., Any] = consumer.handler
    if consumer.is_async:
        return handler if consumer.takes_context else lambda message, _context: handler(message)
    takes_context = consumer.takes_context

    def run(message: Any, context: Any) -> Any:
        result = handler(message, context) if takes_context else handler(message)
        if result is not None and inspect.iscoroutine(result):
            result.close()
            raise TypeError("the handler returned a coroutine that nobody awaits: declare it with `async def`")
        return result

    return run


def _within(middleware: Middleware, call: Call) -> Call:
    enter: Callable[[Context], Any] = middleware  # its kind has been looked at

    def run(message: Any, context: Any) -> Any:
        with enter(context):
            return call(message, context)

    return run


def _within_async(middleware: Middleware, call: Call) -> Call:
    async def run(message: Any, context: Any) -> Any:
        entered = middleware(context)
        if isinstance(entered, AbstractAsyncContextManager):
            async with entered:
                return await call(message, context)
        with entered:
            return await call(message, context)

    return run
