"""Middleware: what is entered around handlers, for a span, a timing, a tenant, a lock.

A middleware is a function from the `Context` to a context manager, in most cases a generator:

```python
@contextmanager
def timed(ctx: Context) -> Iterator[None]:
    began = time.perf_counter()
    yield                      # the handler; what it raises is raised here, and leaves here or not
    DURATION.labels(ctx.consumer).observe(time.perf_counter() - began)
```

**One order**, from the outside in: those of `use`, in the order of the calls; the consumer's own, in the order given;
its inbox; the handler. What an outer one sees is the outcome of all within: an exception that goes through is a failed
attempt, one that a middleware keeps to itself is none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, TypeAlias

from ackline.consumers.context import Context
from ackline.infra.errors import ConfigurationError

#: Entered around each try of a handler. Sync and async context managers serve an async handler, sync ones a plain one.
Middleware: TypeAlias = Callable[[Context], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]]

_everywhere: list[Middleware] = []


def use(*middleware: Middleware) -> None:
    """Enter *middleware* around the handlers of all consumers of this application, the first one outermost.

    Call it in a module of `ACKLINE_APP`: a worker asks for them when it starts. One that is used already is not again.
    """
    _everywhere.extend(found for found in middleware if found not in _everywhere)


def around(own: tuple[Middleware, ...]) -> tuple[Middleware, ...]:
    """All that is entered around the handler of a consumer with *own* middleware, outermost first."""
    return (*_everywhere, *own)


def check_is_sync(middleware: Middleware, consumer: str) -> None:
    """Raises `ConfigurationError` for what can be entered around an async handler only."""
    if inspect.isasyncgenfunction(inspect.unwrap(middleware)):
        raise ConfigurationError(
            f"The middleware {middleware.__qualname__} is async, but the handler of {consumer!r} is a plain function: "
            "write the handler with `async def`, or the middleware with @contextmanager."
        )
